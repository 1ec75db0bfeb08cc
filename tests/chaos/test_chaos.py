"""A round of the chaos test, and that its own checks notice what they are for."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.checks import check_table, check_work, started_at
from tests.chaos.corpus import Corpus
from tests.chaos.killer import CHILDREN, KINDS, TITLES, Killer, Plan
from tests.chaos.processes import descendants, kill, named, start, state
from tests.chaos.reader import Reader
from tests.chaos.round import Outcome

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_is_lost_twice_or_different_whatever_is_killed(tmp_path):
    command = [sys.executable, "-m", "tests.chaos", "--rounds", "1", "--seed", "14", "--json"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [*command, "--folder", str(tmp_path / "logs")],
        cwd=ROOT,
        env=plain,
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["rounds"] == 1 and not summary["wrong"]
    # How much dies before a round is over depends on the machine, but for this seed's two kills of a publisher, which
    # no run gets past; `make chaos` counts what 20 rounds came to.
    assert summary["kills"] >= 2 and summary["drivers"] >= 3 and summary["looks_with_rows"] > 2
    assert (summary["lost"], summary["duplicated"], summary["differing"], summary["failed"]) == (0, 0, 0, 0)
    assert summary["done_before"] == 0


def test_only_descendants_are_ever_named(tmp_path):
    script = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60) # mine']);"
    )
    process = start(["-c", f"{script} print(1, flush=True); time.sleep(60)"], tmp_path / "said", dict(os.environ))
    try:
        while not (tmp_path / "said").read_text():
            assert process.poll() is None
            time.sleep(0.02)
        family = descendants([process.pid])
        assert len(named(family, "# mine")) == 1 and process.pid not in family and os.getpid() not in family
        assert {process.pid, *family} <= descendants([os.getpid()])
    finally:
        kill(descendants([process.pid]))
        process.kill()
        process.wait()


def test_a_publisher_is_killed_at_the_file_that_was_drawn(tmp_path):
    killed: list[float] = []
    plan = Plan(kills=0, publishes=[(2, 0.0)], weights={}, rng=random.Random(1))
    killer = Killer(cluster=None, plan=plan, table=tmp_path, kill_driver=lambda: killed.append(1))
    write(tmp_path, "results/a/old.parquet", row(0))
    killer.driver_started()
    for n in range(3):
        killer.tick()
        assert len(killed) == (n >= 2), "an old file is none, and the first new one not the second"
        write(tmp_path, f"results/a/new-{n}.parquet", row(n))
    killer.tick()
    assert killer.counts["publish"] == killer.total == len(killed) == 1


class OneWorker:
    """Stands for a cluster with one worker process of every stage, which runs `module` below it."""

    def __init__(self, said: Path, module: str) -> None:
        child = f"[sys.executable, '-c', 'import time; time.sleep(60) # {module}']"
        script = f"import subprocess, sys, time; subprocess.Popen({child}); print(1, flush=True); time.sleep(60)"
        self.process = start(["-c", script], said, dict(os.environ))
        while not said.read_text():
            assert self.process.poll() is None
            time.sleep(0.02)

    def workers(self, title: str) -> list[int]:
        return [] if title == TITLES["prepare"] else [self.process.pid]


@pytest.mark.parametrize("kind", ["frozen", "model", "engine"])
def test_what_was_drawn_dies_and_what_was_stopped_wakes_up(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("tests.chaos.killer._FROZEN_SECONDS", 0.3)
    monkeypatch.setattr("tests.chaos.killer._DELAY", 0.0)
    cluster = OneWorker(tmp_path / "said", CHILDREN["engine"][1])
    try:
        restarts: list[str] = []
        plan = Plan(kills=1, publishes=[], weights={kind: 1}, rng=random.Random(1))
        killer = Killer(cluster, plan, tmp_path, lambda: restarts.append(state(cluster.process.pid)))
        killer.driver_started()
        write(tmp_path, "_work/r/x.parquet", row(1))
        deadline = time.monotonic() + 20
        while not killer.total:
            assert time.monotonic() < deadline
            killer.tick()
            time.sleep(0.01)
        if kind == "frozen":
            assert restarts == ["T"], "the driver dies while the worker is stopped"
            while state(cluster.process.pid) == "T":
                assert time.monotonic() < deadline
                killer.tick()
                time.sleep(0.01)
            assert cluster.process.poll() is None
        elif kind == "engine":
            while named(descendants([cluster.process.pid]), CHILDREN["engine"][1]):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert cluster.process.poll() is None, "its worker lives on"
        else:
            assert cluster.process.wait(10) == -9 and not restarts
        assert killer.counts[kind] == 1 and not plan.kills
    finally:
        kill(descendants([cluster.process.pid]))
        cluster.process.kill()
        cluster.process.wait()


def test_a_plan_is_the_seed_s_and_no_kind_that_was_not_asked_for():
    plans = [Plan.draw(random.Random(f"1/{n}")) for n in range(50)]
    again = [Plan.draw(random.Random(f"1/{n}")) for n in range(50)]
    assert [(p.kills, p.publishes) for p in plans] == [(p.kills, p.publishes) for p in again]
    assert {p.kills + len(p.publishes) for p in plans} == set(range(3, 9))
    only = [Plan.draw(random.Random(n), ("node", "driver")) for n in range(50)]
    assert all(set(p.weights) == {"node", "driver"} and not p.publishes for p in only)
    assert all(not p.kills for p in (Plan.draw(random.Random(n), ("publish",)) for n in range(50)))
    assert set(plans[0].weights) <= set(KINDS)


def row(number: int, task: str = "a", **changes) -> dict:
    return {
        "key": f"{number:031x}{task}", "document_id": f"d{number}", "task": task, "status": "ok",
        "text": f"text {number}", "error_code": None, "source_path": "/corpus/s.parquet", "source_row": number,
        "attempt": 1, "run_id": RUN, **changes,
    }  # fmt: skip


RUN = "20260101T000010000-00000000"


def write(table: Path, name: str, *rows: dict) -> Path:
    path = table / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows) or [row(0)]).slice(0, len(rows)), path)
    return path


def test_the_reader_sees_a_key_twice_a_broken_file_and_a_key_that_goes(tmp_path):
    reader = Reader(str(tmp_path))
    reader.look()
    assert reader.notes.looks == 1 and not reader.notes.filled and not reader.notes.wrong, (
        "a table that is not there yet"
    )
    first = write(tmp_path, "results/a/one.parquet", row(1), row(2))
    write(tmp_path, "errors/a/current.parquet", row(3, status="rejected"))
    work = write(tmp_path, "_work/r/x.parquet", row(4))
    reader.look()
    work.unlink()
    reader.look()
    assert reader.notes.filled == 2 and not reader.notes.wrong
    assert [(run, key) for run, _, key, _ in reader.notes.made] == [(RUN, row(4)["key"])], (
        "once, however often it was seen"
    )
    write(tmp_path, "results/a/two.parquet", row(2))
    reader.look()
    assert [line for line in reader.notes.wrong if row(2)["key"] in line and "stands 2 times" in line]
    reader.notes.wrong.clear()
    (tmp_path / "results/a/two.parquet").write_bytes(first.read_bytes()[:-9])
    reader.look()
    assert any("cannot be read" in line for line in reader.notes.wrong) and "not whole" in reader.notes.wrong[-1]
    reader.notes.wrong.clear()
    (tmp_path / "results/a/two.parquet").unlink()
    write(tmp_path, "results/a/one.parquet", row(1))
    reader.look()
    assert reader.notes.wrong and "is gone" in reader.notes.wrong[0]


def test_the_checks_count_what_is_lost_twice_different_and_failed(tmp_path):
    expected = {("s.parquet", n, "a"): None for n in range(6)} | {("s.parquet", 6, "a"): "empty_input"}
    reference = {(pair, 0): {"text": f"text {pair[1]}"} for pair in expected}

    def checked(*results: dict, errors: tuple[dict, ...] = ()) -> Outcome:
        table = tmp_path / str(len(list(tmp_path.iterdir())))
        write(table, "results/a/x.parquet", *results)
        write(table, "errors/a/x.parquet", *errors)
        outcome = Outcome(round=1, seed=1)
        check_table(outcome, table, Corpus("", expected), reference)
        return outcome

    right = [row(n) for n in range(6)]
    rejected = row(6, status="rejected", error_code="empty_input", text=None)
    fine = checked(*right, errors=(rejected,))
    assert not fine.wrong and (fine.ok, fine.rejected, fine.pairs) == (6, 1, 7)
    assert checked(*right[1:], errors=(rejected,)).lost == 1
    assert checked(*right, right[0], errors=(rejected,)).duplicated == 1
    assert checked(*right, errors=(rejected, row(0, status="failed", error_code="internal"))).duplicated == 1
    assert checked(*right[1:], {**right[0], "text": "other"}, errors=(rejected,)).differing == 1
    assert checked(*right[1:], errors=(rejected, row(0, status="failed", error_code="internal"))).failed == 1
    assert checked(*right, errors=({**rejected, "error_code": "bad_row"},)).wrong
    assert checked(*right, row(9), errors=(rejected,)).wrong, "a row that belongs to nothing"


def test_the_checks_notice_work_that_is_done_again(tmp_path):
    write(tmp_path, "results/a/x.parquet", row(1), row(2), row(3))
    began = started_at(RUN)
    before, later = "20260101T000000000-00000000", began + 5

    def checked(*made: list) -> Outcome:
        outcome = Outcome(round=1, seed=1)
        check_work(outcome, tmp_path, list(made), 1)
        return outcome

    k1, k2 = row(1)["key"], row(2)["key"]
    in_flight = checked([before, later, k1, "ok"], [RUN, later + 1, k1, "ok"])
    assert not in_flight.wrong and (in_flight.rows_made, in_flight.made_again) == (4, 1)
    assert checked([before, began - 1, k1, "ok"], [RUN, later, k1, "ok"]).done_before == 1
    assert checked([before, began - 1, k1, "failed"], [RUN, later, k1, "ok"]).done_before == 0, (
        "a failed row is tried again"
    )
    assert checked(*[[RUN, later, k2, "ok"]] * 3).wrong, "three times, with one kill"
