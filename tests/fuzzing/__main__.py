"""`python -m tests.fuzzing [--inputs N] [--seed S] [--surface NAME ...] [--replay FILE ...]`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from . import NAMES, cases, surface_named
from .runner import replay, run


def main() -> int:
    """One line for each surface and a total; 1 when something escaped."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description="Hostile inputs for every surface.")
    parser.add_argument("--inputs", type=int, default=100_000, help="over all surfaces (default 100,000)")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time; it is printed")
    parser.add_argument("--surface", action="append", choices=NAMES, help="only these; repeatable")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--replay", nargs="+", type=Path, metavar="FILE", help="kept inputs again")
    asked = parser.parse_args()
    began = time.monotonic()
    if asked.replay:
        reports = (replay(surface_named(cases.load(path)[0]), [path]) for path in asked.replay)
    else:
        first = int(time.time()) if asked.seed is None else asked.seed
        print(f"seed {first}", flush=True)
        reports = run([surface_named(name) for name in asked.surface or NAMES], asked.inputs, first, asked.jobs)
    done = []
    for report in reports:
        done.append(report)
        print(report, flush=True)
        if report.why:
            print(report.why, file=sys.stderr, flush=True)
    inputs, escaped = sum(report.inputs for report in done), sum(report.why is not None for report in done)
    print(f"{'total':<14}{inputs:>9,} inputs, {escaped} escaped, {time.monotonic() - began:.0f} s")
    return int(escaped > 0)


if __name__ == "__main__":
    sys.exit(main())
