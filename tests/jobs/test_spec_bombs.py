"""Job files that would take memory or time without end: refused in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_READ = (
    "import resource, sys\n"
    "from jobs.spec import JobFileError, load_job\n"
    "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
    "try: load_job(sys.argv[1])\n"
    "except JobFileError as error: print(error)\n"
)


def _nested(line: str, levels: int = 12) -> str:
    text = "l0: &l0 {a: 1, b: 2, c: 3}\n"
    for level in range(1, levels):
        above = ", ".join([f"*l{level - 1}"] * 9)
        text += f"l{level}: &l{level} {line.format(above=above)}\n"
    return text


BOMBS = {
    "aliases": _nested("[{above}]"),
    "merged aliases": _nested("{{<<: [{above}]}}"),
    "merged keys": _nested("{{<<: [{above}], x: 1}}", 30),
    "brackets": "[" * 100_000,
    "blocks": "".join(" " * n + "a:\n" for n in range(2_000)),
    "base 60": "name: 1" + ":59" * 1_000_000,
    "a long number": "name: 1" + "0" * 3_000_000,
    "a long float": "name: 1" + "0" * 3_000_000 + ".0",
    "an alias of itself": "a: &a [*a]\n",
    "a merge of itself": "a: &a {<<: *a}\n",
    "keys": "".join(f"k{n}: 1\n" for n in range(200_000)),
    "anchors": "a: [" + ", ".join(f"&a{n} x" for n in range(200_000)) + "]\n",
    "tags": "a: !!python/object/apply:os.system ['touch {here}/made']\n",
    "megabytes": "name: " + "x" * (5 << 20),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(BOMBS[kind].replace("{here}", str(tmp_path)))
    said = read(path)
    assert len(said.splitlines()) == 1 and len(said) < 500, said[:500]
    assert not (tmp_path / "made").exists()


def test_a_file_without_end_is_one_line() -> None:
    assert "too large for a job file" in read(Path("/dev/zero"))


def read(path: Path) -> str:
    """What a process with 4 GiB and 30 seconds says of the file."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0 and done.stdout, done.stderr[-2000:]
    return done.stdout
