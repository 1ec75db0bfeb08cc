"""SQL for `corpusmill query`, through the command line: rows, or one line, and nothing else touched."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from jobs.cli import main
from tests.jobs.tables import write_table

from .mutate import damaged_text
from .surface import Escaped, Surface, line

_SEEDS = (
    "SELECT * FROM results LIMIT 3",
    "SELECT task, count(*) FROM results GROUP BY task",
    "SELECT text FROM errors",
    "SELECT document_id, text, created_at FROM results WHERE text LIKE '%Farbe%' ORDER BY source_row DESC",
    "WITH a AS (SELECT key FROM results UNION ALL SELECT key FROM errors) SELECT count(DISTINCT key) FROM a",
    "SELECT * FROM results JOIN errors USING (document_id)",
    "DESCRIBE results",
    "SUMMARIZE results",
    "SELECT sum(input_tokens) OVER (PARTITION BY task), [1,2], {'a': 1}, 1.5::DECIMAL(9,2) FROM results",
    "SELECT regexp_replace(text, '\\s+', ' '), 'nan'::DOUBLE, 'x'::BLOB, INTERVAL 1 DAY, NULL FROM results LIMIT 2",
    "SELECT unnest(range(5)), uuid(), MAP {'a': 1}, '\\xff'::BLOB, 170141183460469231731687303715884105727",
)
_PIECES = (
    "SELECT",
    "FROM",
    "*",
    ",",
    "(",
    ")",
    "'",
    '"',
    ";",
    "--",
    "/*",
    "*/",
    "$$",
    "$1",
    "?",
    ":x",
    "::INT",
    "::BLOB",
    "::UUID",
    "::TIMESTAMP_NS",
    "::JSON",
    "::BIT",
    "::TIMETZ",
    "::HUGEINT",
    "::VARCHAR[]",
    "results",
    "errors",
    "NULL",
    "read_csv('/etc/passwd')",
    "'/etc/passwd'",
    "read_parquet('x')",
    "glob('*')",
    "INSTALL httpfs;",
    "LOAD httpfs;",
    "ATTACH 'x.db';",
    "COPY results TO 'out.csv';",
    "SET enable_external_access = true;",
    "PRAGMA database_list;",
    "CALL pragma_version();",
    "EXPORT DATABASE 'x';",
    "CREATE TABLE t AS SELECT 1;",
    "DROP VIEW results;",
    "DELETE FROM results;",
    "getenv('HOME')",
    "current_setting('x')",
    "BEGIN;",
    "EXPLAIN",
    "SHOW TABLES;",
    "EXECUTE x;",
    "PREPARE x AS SELECT 1;",
    "\x00",
    "\ud800",
    "\n",
    "\u2028",
    "é",
    "𝕏",
    "1e400",
    "-9223372036854775808",
    "'infinity'::DATE",
    "'infinity'::TIMESTAMP",
    "TIME '24:00:00'",
    "DATE '99999-01-01'",
    "TIMESTAMP '290000-01-01'",
    "'1 year'::INTERVAL",
    "[[]]",
    "{}",
    "(SELECT 1)",
    "range(3)",
    "duckdb_settings()",
)


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    sql = draw(damaged_text(_SEEDS, _PIECES, 2))
    return {"sql": sql, "format": draw(st.sampled_from(("table", "csv", "json")))}


@cache
def _table() -> tuple[Path, list[str]]:
    folder = write_table(Path("table"), 5)
    return folder, _listed()


def _listed() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.name not in ("current", "log"))


def shown(*words: str) -> bool:
    """Runs `corpusmill` with `words` in this process: True for exit code 0, False for a refusal in one line."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(words))
        except SystemExit as ended:
            code = ended.code
    said = err.getvalue()
    if code == 0:
        if said:
            raise Escaped(f"works, and says {said!r}")
        return True
    if code not in (2, 3) or not said.startswith("corpusmill: ") or "Traceback" in said:
        raise Escaped(f"exit code {code}, said {said!r}")
    line(said.removesuffix("\n"))
    return False


def _check(case: dict[str, Any]) -> bool:
    folder, before = _table()
    worked = shown("query", str(folder), case["sql"], "--format", case["format"])
    if _listed() != before:
        raise Escaped(f"left files: {sorted(set(_listed()) ^ set(before))}")
    return worked


SURFACE = Surface(name="queries", cases=_cases(), check=_check, share=4)
