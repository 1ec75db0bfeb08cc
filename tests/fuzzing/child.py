"""One surface's inputs in this process, which its memory limits and its parent watches."""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from . import cases, surface_named
from .surface import Surface

_BATCH = 1000
_MEMORY = 3 << 30
_HEAD = struct.Struct("<QQ")
CURRENT, RESULT = "current", "result.json"


class Current:
    """The input in work, where the parent finds it even after a crash: its number, its length, its JSON."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / CURRENT, os.O_RDWR | os.O_CREAT, 0o600)
        self._number = 0

    def note(self, case: Any) -> None:
        """This input comes next."""
        data = cases.dumps(case)
        self._number += 1
        os.pwrite(self._file, _HEAD.pack(self._number, len(data)) + data, 0)

    @staticmethod
    def read(folder: Path) -> tuple[int, bytes]:
        """The number of the input in work, 0 before the first, and its JSON."""
        try:
            raw = (folder / CURRENT).read_bytes()
        except FileNotFoundError:
            return 0, b""
        if len(raw) < _HEAD.size:
            return 0, b""
        number, size = _HEAD.unpack_from(raw)
        return number, raw[_HEAD.size : _HEAD.size + size]


def hunt(surface: Surface, inputs: int, first_seed: int, note: Callable[[Any], None]) -> dict[str, Any]:
    """At least `inputs` inputs (fewer when there are no more), and what came of them; the first escape ends it."""
    counts = {"inputs": 0, "accepted": 0}
    last: list[Any] = [None]

    def run(case: Any) -> None:
        # As a replay will see it: through JSON.
        case = last[0] = cases.loads(cases.dumps(case))
        note(case)
        counts["inputs"] += 1
        try:
            counts["accepted"] += surface.check(case)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            # A panic in Rust code, or an exit, is no Exception; hypothesis would not shrink it.
            raise AssertionError(f"{type(error).__name__}: {error}") from error

    began = time.process_time()
    for batch in range(2 * (inputs // _BATCH) + 2):
        left = inputs - counts["inputs"]
        if left <= 0:
            break
        rules = settings(
            max_examples=min(left, _BATCH),
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        try:
            seed(first_seed + batch)(rules(given(surface.cases)(run)))()
        except HypothesisException:
            raise
        except Exception as error:
            return {**counts, "seconds": time.process_time() - began, "why": why(error), "case": last[0]}
    return {**counts, "seconds": time.process_time() - began, "why": None}


def why(error: BaseException) -> str:
    """The end of a traceback, without the case, which is kept by itself."""
    error.__notes__ = []
    return "".join(traceback.format_exception(error, limit=-6))[-4000:]


def bound_memory() -> None:
    """From here on no more address space than is in use now, and 3 GiB."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))


def again(surface: Surface, paths: list[Path], note: Callable[[Any], None]) -> dict[str, Any]:
    """Kept inputs, and what came of them; stops at the first that escapes, which `why` names."""
    counts = {"inputs": 0, "accepted": 0}
    began = time.process_time()
    for path in paths:
        _, case = cases.load(path)
        note(case)
        counts["inputs"] += 1
        try:
            counts["accepted"] += surface.check(case)
        except BaseException as error:
            said = f"{path.name}: {why(error)}"
            return {**counts, "seconds": time.process_time() - began, "why": said, "case": case}
    return {**counts, "seconds": time.process_time() - began, "why": None}


def main() -> None:
    """SURFACE FOLDER hunt INPUTS SEED, or SURFACE FOLDER again CASE.json ...; the result is left in the folder."""
    name, where, what, *rest = sys.argv[1:]
    surface = surface_named(name)
    folder = Path(where).absolute()
    paths = [Path(path).absolute() for path in rest] if what == "again" else []
    current = Current(folder)
    os.environ["TMPDIR"] = str(folder)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    if what == "again":
        bound_memory()
        result = again(surface, paths, current.note)
    else:
        hunt(surface, 3, int(rest[1]), lambda case: None)  # imports and caches are no input's memory
        bound_memory()
        result = hunt(surface, int(rest[0]), int(rest[1]), current.note)
    if "case" in result:
        result["case"] = json.loads(cases.dumps(result["case"]))
    (folder / RESULT).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
