"""`python -m tests.chaos --rounds 20 --seed 1`: exits with 1 when any promise was broken in any round."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.s3_server import aws_settings, s3_server

from .cluster import three_nodes
from .corpus import make_corpus
from .killer import KINDS, NOT_AVAILABLE
from .round import Outcome, Place, RoundError, play, run_in_peace

_SUMS = ("drivers", "looks", "looks_with_rows", "pairs", "lost", "duplicated", "differing", "failed")
_MORE = ("failed_on_the_way", "rows_made", "made_again", "done_before", "work_left", "seconds")


def main(arguments: list[str]) -> int:
    """Plays the rounds; 0 when all is well, 1 when not, 130 when interrupted."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(asked.folder or tempfile.mkdtemp(prefix="corpusmill-chaos-"))
    outcomes = {o.round: o for o in _recorded(asked)}
    todo = [number for number in range(1, asked.rounds + 1) if number not in outcomes]
    try:
        if todo:
            _play(asked, folder, todo, outcomes)
    except KeyboardInterrupt:
        print("interrupted; rounds that ended are recorded" if asked.record else "interrupted", file=sys.stderr)
        return 130
    except RoundError as error:
        print(f"chaos: {error}\nlogs: {folder}", file=sys.stderr)
        return 1
    summary = summarize(list(outcomes.values()))
    print(json.dumps(summary) if asked.json else _table(summary), flush=True)
    if summary["wrong"]:
        print(f"logs: {folder}", file=sys.stderr)
        return 1
    if asked.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def summarize(outcomes: list[Outcome]) -> dict[str, Any]:
    """All rounds together."""
    kills: Counter[str] = Counter()
    for outcome in outcomes:
        kills.update(outcome.kills)
    sums = {name: round(sum(getattr(o, name) for o in outcomes), 1) for name in (*_SUMS, *_MORE)}
    codes = Counter(str(code) for o in outcomes for code, _ in o.gave_up)
    wrong = [f"round {o.round}: {line}" for o in outcomes for line in o.wrong]
    return {
        "rounds": len(outcomes), "kills": kills.total(), "kills_by_kind": dict(kills), **sums,
        "gave_up": dict(codes), "not_available": NOT_AVAILABLE, "wrong": wrong,
    }  # fmt: skip


def _play(asked: argparse.Namespace, folder: Path, todo: list[int], outcomes: dict[int, Outcome]) -> None:
    with _store(asked.s3, folder) as (base, store, settings):
        corpus = make_corpus(store / "corpus", f"{base}/corpus", asked.seed)
        reference: dict | None = None
        left = list(todo)
        while left:
            # A round that did not end may have left its cluster in any state: the next one gets another.
            with three_nodes() as cluster:
                if reference is None:
                    began = time.monotonic()
                    place = _place(base, store, "reference")
                    reference = run_in_peace(cluster, corpus, place, folder / "reference-logs", settings)
                    seconds = time.monotonic() - began
                    _say(asked, f"a run that nobody disturbed: {len(reference)} rows in {seconds:.1f} s")
                ended = True
                while left and ended:
                    number = left.pop(0)
                    name = f"round-{number:03d}"
                    logs = folder / f"{name}-logs"
                    for old in (logs, store / name):
                        shutil.rmtree(old, ignore_errors=True)
                    outcome = Outcome(round=number, seed=asked.seed)
                    try:
                        play(
                            outcome, cluster=cluster, corpus=corpus, reference=reference, settings=settings,
                            place=_place(base, store, name), folder=logs, limit=asked.limit, again=number == todo[-1],
                            kinds=asked.kinds,
                        )  # fmt: skip
                    except RoundError as error:
                        ended = False
                        outcome.wrong.append(str(error))
                    outcomes[number] = outcome
                    _tell(asked, outcome)
                    if not outcome.wrong:
                        shutil.rmtree(store / name, ignore_errors=True)


def _place(base: str, store: Path, name: str) -> Place:
    return Place(url=f"{base}/{name}/table", folder=store / name / "table")


def _tell(asked: argparse.Namespace, outcome: Outcome) -> None:
    if asked.record:
        with open(asked.record, "a") as record:
            record.write(json.dumps(outcome.as_json()) + "\n")
    print(json.dumps(outcome.as_json()) if asked.json else _line(outcome), flush=True)


@contextmanager
def _store(s3: bool, folder: Path) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """(URL, folder on this disk, environment) of where corpus and tables stand."""
    with s3_server(folder / "s3") if s3 else nullcontext() as server:
        if server is None:
            yield str(folder), folder, {}
        else:
            yield server.url("chaos"), server.folder / server.bucket / "chaos", aws_settings(server.endpoint)


def _recorded(asked: argparse.Namespace) -> list[Outcome]:
    """Rounds of the same seed that an earlier command ended well."""
    if not asked.record or not Path(asked.record).exists():
        return []
    known = {field.name for field in fields(Outcome)}
    lines = [json.loads(line) for line in Path(asked.record).read_text().splitlines() if line.strip()]
    outcomes = [Outcome(**{k: v for k, v in line.items() if k in known}) for line in lines]
    return [o for o in outcomes if o.seed == asked.seed and o.round <= asked.rounds and not o.wrong]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=300, help="seconds in which a round must end")
    parser.add_argument("--s3", action="store_true", help="corpus and tables on an S3 server instead of the disk")
    parser.add_argument("--kinds", type=_kinds, default=KINDS, help=f"what dies, of {','.join(KINDS)}; default: all")
    parser.add_argument("--folder", help="where everything is written; kept. Default: a new one, gone when all is well")
    parser.add_argument("--record", help="a file of JSON lines: rounds in it are not played again, new ones are added")
    parser.add_argument("--json", action="store_true", help="one JSON line for each round and one for all")
    return parser


def _kinds(named: str) -> tuple[str, ...]:
    kinds = tuple(named.split(","))
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(KINDS)}")
    return kinds


def _line(outcome: Outcome) -> str:
    kills = ", ".join(f"{count} {kind}" for kind, count in outcome.kills.items() if count)
    text = (
        f"round {outcome.round}: {outcome.seconds:.0f} s, {sum(outcome.kills.values())} kills ({kills}), "
        f"{outcome.drivers} drivers, {outcome.looks} looks, {outcome.lost} lost, {outcome.duplicated} duplicated, "
        f"{outcome.differing} differing, {outcome.failed} failed, "
        f"{outcome.rows_made} rows made for {outcome.pairs} pairs"
    )
    return "\n".join([text, *(f"  WRONG: {line}" for line in outcome.wrong)])


def _table(summary: dict[str, Any]) -> str:
    return "\n".join(f"{name:18} {value}" for name, value in summary.items())


def _say(asked: argparse.Namespace, line: str) -> None:
    print(line, file=sys.stderr if asked.json else sys.stdout, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
