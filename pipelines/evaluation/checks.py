"""Checks that need no references: wrong language, empty, looping, copied, cut or oddly long outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workers.score.languages import language_check
from workers.score.signs import copied_share, loop_share, repeated_share
from workers.score.text import words

from .job import ChecksSpec, TextSpec
from .outputs import Outputs
from .parquet import as_text, batches, files_of
from .report import Check, CheckedTask

# Characters of an output for one of its source, outside of which it is counted. Chinese takes a third of English.
_RATIOS = {"translate": (0.15, 6.0), "summarize": (0.0, 1.0)}
# A source of fewer characters says nothing of the ratio.
_SHORTEST_SOURCE = 40
# A text that goes round in circles does so at its end: loops are looked for in this many words there.
_TAIL = 4000

Say = Callable[[str], None]


def check_outputs(
    table: Outputs, spec: ChecksSpec, source: TextSpec | None, say: Say = lambda line: None
) -> list[CheckedTask]:
    """Looks at up to `spec.rows` outputs of every task and language of the table."""
    samples = [(name, *rest, _spread(rows, spec.rows)) for name, *rest, rows in _groups(table)]
    texts = _source_texts(source, samples) if source else {}
    found = []
    for task, kind, language, total, not_made, rows in samples:
        say(f"checking {task}")
        group = _Group(spec, kind, language, texts if source else None)
        for row, text in zip(rows.to_pylist(), table.texts(rows), strict=True):
            group.look(row, text or "")
        checks, figures = group.results(table, rows)
        found.append(
            CheckedTask(
                task=task,
                kind=kind,
                language=language,
                rows=total,
                not_made=not_made,
                checked=len(rows),
                checks=checks,
                figures=figures,
            )
        )
    return found


def _groups(table: Outputs) -> Iterable[tuple[str, str, str | None, int, int, pa.Table]]:
    """(task, kind, language, outputs, rows without one, the outputs' rows), in the order of names."""
    rows = table.rows
    keys = rows.group_by(["task", "kind", "language"]).aggregate([]).to_pylist()
    for key in sorted(keys, key=lambda key: (key["task"], key["language"] or "", key["kind"])):
        mask = pc.and_(pc.equal(rows.column("task"), key["task"]), pc.equal(rows.column("kind"), key["kind"]))
        language = rows.column("language")
        same = pc.is_null(language) if key["language"] is None else pc.equal(language, key["language"])
        mine = rows.filter(pc.and_(mask, pc.fill_null(same, False)))
        made = mine.filter(pc.equal(mine.column("status"), "ok"))
        yield key["task"], key["kind"], key["language"], len(made), len(mine) - len(made), made


def _spread(rows: pa.Table, most: int) -> pa.Table:
    """At most `most` rows, always the same: those whose documents' hashes come first."""
    if len(rows) <= most:
        return rows
    hashes = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in rows.column("document_id").to_pylist()]
    first = np.argsort(np.frombuffer(b"".join(hashes), dtype=">u8"), kind="stable")[:most]
    return rows.take(pa.array(np.sort(first)))


def _source_texts(source: TextSpec, samples: Sequence[tuple[Any, ...]]) -> dict[str, str]:
    """The text of each sampled document, the first where an id stands twice, as in a run."""
    names = {name for *_, rows in samples for name in rows.column("document_id").to_pylist()}
    wanted = pa.array(sorted(names), pa.string())
    columns = {source.id: "source.id", source.text: "source.text"}
    found: dict[str, str] = {}
    for file in files_of("source.path", source.path):
        for table in batches("source.path", file, columns):
            ids = as_text("source.id", table.column(source.id))
            mask = pc.is_in(ids, value_set=wanted)
            # As bytes: a run rejects a text that is no UTF-8, and goes on.
            texts = as_text("source.text", table.column(source.text).filter(mask)).cast(pa.binary())
            for name, text in zip(ids.filter(mask).to_pylist(), texts.to_pylist(), strict=True):
                found.setdefault(name, (text or b"").decode(errors="replace"))
    return found


class _Group:
    """One task and language while its outputs are looked at."""

    def __init__(self, spec: ChecksSpec, kind: str, language: str | None, sources: dict[str, str] | None) -> None:
        self._spec, self._kind, self._language, self._sources = spec, kind, language, sources
        self._other_language = language_check(language)
        self._seen: dict[str, list[tuple[int, str]]] = {}
        self._looked: dict[str, int] = {}
        self._figures: dict[str, list[float]] = {}
        self._row = -1

    def look(self, row: dict[str, Any], text: str) -> None:
        """Look at the next output."""
        self._row += 1
        cut = row["finish_reason"] == "length"
        self._count("cut", cut, "ended at max_tokens")
        self._count("input_cut", bool(row["truncated"]), "its document was cut to max_input_tokens")
        self._count("empty", not text.strip(), "no text")
        if not text.strip():
            return
        tokens = words(text)
        loop, repeated = loop_share(text[-8 * _TAIL :], tokens[-_TAIL:]), repeated_share(tokens)
        self._figures.setdefault("repeated", []).append(repeated)
        looping = loop >= self._spec.loop or repeated >= self._spec.repeated
        self._count("looping", looping, f"{max(loop, repeated):.0%} repeats")
        if self._other_language is not None:
            other = self._other_language(text)
            self._count("wrong_language", other is not None, f"looks like {other}")
        if self._sources and (source := self._sources.get(row["document_id"])):
            self._beside(text, tokens, source)

    def results(self, table: Outputs, rows: pa.Table) -> tuple[dict[str, Check], dict[str, float]]:
        """Counts with examples, and figures."""
        shown = sorted({at for seen in self._seen.values() for at, _ in seen[: self._spec.examples]})
        keys = dict(zip(shown, table.texts(rows.take(pa.array(shown, pa.int64())), "key"), strict=True))
        names = rows.column("document_id")
        checks = {}
        for name, looked in self._looked.items():
            seen = self._seen.get(name, [])
            examples = [
                {"key": keys[at] or "", "document_id": names[at].as_py(), "why": why}
                for at, why in seen[: self._spec.examples]
            ]
            checks[name] = Check(found=len(seen), looked_at=looked, examples=examples)
        if self._other_language is None:
            said = "the task names no language" if self._language is None else f"{self._language} is not one it knows"
            checks["wrong_language"] = Check(found=0, looked_at=0, note=f"not checked: {said}")
        if self._sources is not None and "looping" in checks and "copied" not in checks:
            checks["copied"] = Check(found=0, looked_at=0, note="not checked: source has no text of these documents")
        return checks, {
            name: value for name, values in self._figures.items() for name, value in _spread_of(name, values)
        }

    def _beside(self, text: str, tokens: list[str], source: str) -> None:
        copied = copied_share(tokens, words(source))
        self._figures.setdefault("copied", []).append(copied)
        self._count("copied", copied >= self._spec.copied, f"{copied:.0%} stands so in the document")
        if len(source) < _SHORTEST_SOURCE:
            return
        ratio = len(text) / len(source)
        self._figures.setdefault("length_ratio", []).append(ratio)
        if self._kind in _RATIOS:
            low, high = _RATIOS[self._kind]
            self._count("odd_length", not low <= ratio <= high, f"{ratio:.2g} characters for one of the document")

    def _count(self, name: str, found: bool, why: str) -> None:
        self._looked[name] = self._looked.get(name, 0) + 1
        if found:
            self._seen.setdefault(name, []).append((self._row, why))


def _spread_of(name: str, values: list[float]) -> list[tuple[str, float]]:
    if name != "length_ratio":
        return [(f"{name}_mean", float(np.mean(values)))]
    low, middle, high = np.percentile(values, [5, 50, 95])
    return [(f"{name}_p5", float(low)), (f"{name}_median", float(middle)), (f"{name}_p95", float(high))]
