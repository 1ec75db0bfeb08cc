"""Fine-tuning whole: killed and gone on, by one worker or two, from bad data, to a folder that both backends load."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from infra.cluster import Cluster
from infra.storage import Location
from model_runtime import Decode, EngineConfig, ModelError, Request, Sampling, load_backend
from model_runtime.processing import Processor
from pipelines.errors import JobError, RunError, SkipRateError, SourceError, TableError
from pipelines.feed import Cursor, Pool, Step, pool_table, pool_units, steps_of
from pipelines.finetune import Event, TrainReport, finetune
from pipelines.finetune_job import FinetuneSpec
from pipelines.finetune_plan import plan
from pipelines.training_checkpoint import Checkpoints, History, SkipLog
from pipelines.training_loop import TrainingLoop, Workers
from tests.s3_server import S3Server
from workers.tasks import TaskTable

from .child import started
from .corpora import SCHEMA, picture, text, write_shards

ROWS = 96
LEARN = pa.schema([*SCHEMA, *((name, pa.string()) for name in ("target", "alt", "q"))])
WORDS = ("red", "blue", "green")


def rows_to_learn(count: int = ROWS, first: int = 0) -> list[dict[str, Any]]:
    """Documents whose target is one of three words; every fourth has an image and a caption."""
    return [
        {
            "doc_id": f"d{n}",
            "body": f"{WORDS[n % 3]} {text(n, 3 + n % 5)}",
            "photos": [picture(n)] if n % 4 == 0 else [],
            "year": n,
            "target": WORDS[n % 3],
            "alt": f"dot {n % 2}" if n % 4 == 0 else None,
            "q": "which?",
        }
        for n in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learn")
    write_shards(folder / "train", rows_to_learn(), shards=2, group=16, schema=LEARN)
    write_shards(folder / "held", rows_to_learn(12, first=500), shards=1, group=12, schema=LEARN)
    return folder


def document(data: Path, base: Path, out: Path | str, /, **changes: Any) -> dict[str, Any]:
    made = {
        "name": "learn",
        "model": {"path": str(base)},
        "source": {"path": str(data / "train"), "id": "doc_id", "text": "body", "images": "photos"},
        "tasks": [
            {"name": "colour", "kind": "summarize", "language": "de", "target": "target"},
            {"name": "alt", "kind": "caption", "target": "alt"},
            {"name": "asked", "kind": "answer", "language": "en", "question_column": "q", "target": "target"},
        ],
        "held_out": {"path": str(data / "held"), "every": 4, "rows": 12},
        "training": {
            "steps": 8, "lanes": 2, "documents_per_lane": 6, "shuffle_rows": 30, "learning_rate": 3e-3,
            "warmup_steps": 2, "precision": "float32",
        },
        "output": {"path": str(out), "checkpoint_every": 3, "dtype": "float32"},
    }  # fmt: skip
    for key, value in changes.items():
        made[key] = {**made.get(key, {}), **value} if isinstance(value, dict) else value
    return made


def train(made: dict[str, Any], events: list[Event] | None = None) -> TrainReport:
    job = FinetuneSpec.model_validate(made)
    return finetune(job, plan(job), on_event=(events if events is not None else []).append)


def train_here(made: dict[str, Any]) -> tuple[History, SkipLog]:
    """The training alone: one worker in this process, no Ray; the course of the run and what it left out."""
    job = FinetuneSpec.model_validate(made)
    settings = plan(job).settings(Cluster(4, 0, 1, True))

    def steps(lane: int, cursor: Cursor) -> Iterator[Step]:
        while True:
            if cursor.pool >= len(pool_units(settings.feed, lane, cursor.epoch)):
                cursor = Cursor(cursor.epoch + 1)
            block = Pool(settings.feed)(pool_table(settings.feed, [(lane, cursor.epoch, cursor.pool)]))
            yield from (step for step in steps_of(block, cursor.epoch) if step.after.step > cursor.step)
            cursor = Cursor(cursor.epoch, cursor.pool + 1)

    TrainingLoop(settings, Workers(), steps, lambda event: None).run()
    checkpoints = Checkpoints(Location(job.output.path), keep=2)
    last = checkpoints.latest()
    assert last is not None
    skips = SkipLog()
    for lane in range(job.lanes):
        log = checkpoints.load_skips(last.step, lane)
        skips.counts.update(log.counts)
        skips.listed += log.listed
    return last.history, skips


@pytest.fixture(scope="module")
def whole(local_ray: None, data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """An uninterrupted run of one worker over two lanes: its folder, its report, its events."""
    out = tmp_path_factory.mktemp("whole") / "out"
    events: list[Event] = []
    return out, train(document(data, model, out), events), events


def test_a_run_learns_and_leaves_a_model_folder(whole: tuple[Path, Any, Any]) -> None:
    out, report, events = whole
    history = report.history
    assert len(history.loss) == 8 and history.loss[-1] < 0.8 * history.loss[0]
    assert {event.event for event in events} == {"start", "step", "held_out", "saved"}
    assert [scores["step"] for scores in history.held_out] == [4, 8]
    assert history.held_out[-1]["tasks"].keys() == {"colour", "alt", "asked"}
    assert sum(score["n"] for score in history.held_out[-1]["tasks"].values()) == 12 + 3 + 12
    assert not list((out / "checkpoints").glob("*/*")), "a finished run keeps no checkpoints"
    assert json.loads((out / "training.json").read_text())["steps"] == 8
    assert not report.skips.counts and not report.already_done


def test_the_folder_loads_in_both_backends_and_brings_its_prompts(whole: tuple[Path, Any, Any]) -> None:
    out, _, _ = whole
    processor = Processor.load(out)
    table = TaskTable.parse(processor.tasks_document)
    assert table.prompt_in == "decoder" and table.languages == {"summarize": ("de",), "answer": ("en",)}
    ids = processor.encoder_input(text="red fox", images=0, max_tokens=100, overflow="reject").ids
    decode = Decode(key="k", prefix_ids=processor.prefix_ids("Summarize in German:"), sampling=Sampling(max_tokens=6))
    texts = []
    for backend in ("native", "transformers"):
        engine = load_backend(EngineConfig(model=str(out), backend=backend, device="cpu", dtype="float32"))
        (made,) = engine.generate([Request(id="r", input_ids=ids, pixel_values=None, decodes=(decode,))])
        engine.close()
        assert made.error is None
        texts.append(made.token_ids)
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_two_workers_learn_what_one_learns_with_twice_the_batch(
    whole: tuple[Path, Any, Any], data: Path, model: Path, tmp_path: Path
) -> None:
    report = train(document(data, model, tmp_path / "two", workers={"count": 2, "threads": 1}))
    one, two = whole[1].history, report.history
    assert two.loss[-1] == pytest.approx(one.loss[-1], rel=0.01)
    # Sums in another order, which Adam's first steps amplify; the very first loss is before any update.
    assert two.loss[0] == pytest.approx(one.loss[0], rel=1e-5)
    assert two.loss == pytest.approx(one.loss, rel=0.01) and two.examples == one.examples
    assert two.held_out[-1]["loss"] == pytest.approx(one.held_out[-1]["loss"], rel=0.01)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(
    whole: tuple[Path, Any, Any], data: Path, model: Path, tmp_path: Path
) -> None:
    started: list[dict[str, Any]] = []
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        if event.event == "start":
            started.append(event.figures)
        if event.event == "step" and event.figures["step"] >= 4 and not killed:
            killed.append(started[0]["pid"])
            os.kill(killed[0], signal.SIGKILL)

    job = FinetuneSpec.model_validate(document(data, model, tmp_path / "out", training={"steps": 20}))
    report = finetune(job, plan(job), on_event=kill_once)
    assert killed and len(report.history.loss) == 20
    assert [figures["step"] for figures in started] == [0, started[1]["step"]]
    assert started[1]["step"] >= 3, "it goes on from a checkpoint"
    # The first steps are those of the uninterrupted run, but for the course of the learning rate.
    assert report.history.loss[:2] == pytest.approx(whole[1].history.loss[:2], rel=1e-3)


def test_a_finished_run_is_not_done_again(whole: tuple[Path, Any, Any], data: Path, model: Path) -> None:
    out, report, _ = whole
    before = (out / "model.safetensors").stat().st_mtime_ns
    again = train(document(data, model, out))
    assert again.already_done and again.history.loss == report.history.loss
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(TableError, match=r"another training made .* choose another output\.path"):
        train(document(data, model, out, training={"learning_rate": 1e-3}))


def test_checkpoints_and_model_on_s3(s3: S3Server, data: Path, model: Path) -> None:
    made = document(data, model, "s3://corpus/trained", training={"steps": 3, "lora": {"rank": 2}})
    first, _ = train_here(made)
    assert len(first.loss) == 3
    again, _ = train_here(made)
    assert again.loss == first.loss, "it is at its end already, and only the model is written again"
    folder = s3.folder / "corpus" / "trained"
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "config.json", "tasks.json"}
    Processor.load(folder)


def test_bad_rows_are_left_out_with_their_reasons(model: Path, tmp_path: Path) -> None:
    rows = rows_to_learn(40)
    rows[3] |= {"target": None, "alt": None}
    rows[8] |= {"photos": [b"GIF89a nothing"]}
    rows[11] |= {"target": "long " * 60}
    rows[20] |= {"body": None, "photos": [], "alt": None}
    write_shards(tmp_path / "train", rows, shards=1, group=10, schema=LEARN)
    write_shards(tmp_path / "held", rows_to_learn(6, first=500), shards=1, group=6, schema=LEARN)
    made = document(
        tmp_path, model, tmp_path / "out", training={"steps": 6}, limits={"max_target_tokens": 20, "max_skip_rate": 0.2}
    )
    history, skips = train_here(made)
    assert history.skipped == 5
    assert skips.counts == {"missing_target": 1, "image_format": 1, "target_too_long": 2, "empty_input": 1}
    places = {(skip.source_row, skip.task, skip.code) for skip in skips.listed}
    assert places == {
        (3, None, "missing_target"), (8, None, "image_format"), (11, "colour", "target_too_long"),
        (11, "asked", "target_too_long"), (20, None, "empty_input"),
    }  # fmt: skip
    assert all(skip.message for skip in skips.listed)


def test_too_many_bad_rows_end_the_run(model: Path, tmp_path: Path) -> None:
    rows = [row | ({"target": None, "alt": None} if n % 3 else {}) for n, row in enumerate(rows_to_learn(180))]
    write_shards(tmp_path / "train", rows, shards=1, group=30, schema=LEARN)
    write_shards(tmp_path / "held", rows_to_learn(6, first=500), shards=1, group=6, schema=LEARN)
    with pytest.raises(SkipRateError, match=r"cannot be learned from, most often missing_target: mend the data"):
        train_here(document(tmp_path, model, tmp_path / "out", training={"steps": 30}))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"source": {"path": "/nowhere"}}, SourceError, r"source\.path: /nowhere"),
        ({"held_out": {"path": "/nowhere"}}, SourceError, r"held_out\.path: /nowhere"),
        ({"tasks": [{"name": "a", "kind": "caption", "target": "absent"}]}, SourceError, "has no column 'absent'"),
        ({"tasks": [{"name": "a", "kind": "caption", "target": "year"}]}, SourceError, "'year' is int32"),
        ({"training": {"lanes": 1000}}, SourceError, "96 rows for 1,000 lanes"),
        ({"limits": {"max_target_tokens": 10**6}}, JobError, "does not fit the model's"),
        ({"model": {"path": "/nowhere"}}, (ModelError, RunError), "/nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    data: Path, model: Path, tmp_path: Path, changes: dict[str, Any], error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        plan(FinetuneSpec.model_validate(document(data, model, tmp_path / "out", **changes)))


def test_held_out_rows_may_not_be_trained_on(data: Path, model: Path, tmp_path: Path) -> None:
    made = document(data, model, tmp_path / "out", held_out={"path": str(data / "train")})
    with pytest.raises(JobError, match="is also trained on"):
        plan(FinetuneSpec.model_validate(made))


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_goes_on_and_loses_nothing(
    whole: tuple[Path, Any, Any], data: Path, model: Path, tmp_path: Path
) -> None:
    """SIGKILL to the command: the same command ends with the loss of an uninterrupted run, from the last checkpoint."""
    made = document(data, model, tmp_path / "out")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(made))
    chance = random.Random(11)
    with started(tmp_path, "finetune") as child:
        child.wait_for(lambda: list((tmp_path / "out" / "checkpoints").glob("*/state.json")), 300)
        time.sleep(chance.uniform(0, 1))
        child.process.kill()
        assert child.process.wait(timeout=10) == -signal.SIGKILL
    reached = max(
        json.loads(path.read_text())["step"] for path in (tmp_path / "out" / "checkpoints").glob("*/state.json")
    )
    assert 3 <= reached < 8
    with started(tmp_path, "finetune") as child:
        assert child.process.wait(timeout=240) == 0, child.said.read_text()
        said = child.said.read_text()
    assert f"going on from step {reached}" in said and "Traceback" not in said
    found = json.loads((tmp_path / "out" / "training.json").read_text())["history"]
    expected = whole[1].history
    assert found["loss"] == pytest.approx(expected.loss, rel=0.01)
    assert found["examples"] == expected.examples
    assert (tmp_path / "out" / "README.md").read_text().startswith("---") and (
        tmp_path / "out" / "training.png"
    ).exists()


def test_a_target_column_may_bear_a_name_of_the_output_table(data: Path, model: Path, tmp_path: Path) -> None:
    rows = [row | {"text": row["target"]} for row in rows_to_learn(12)]
    schema = pa.schema([*LEARN, ("text", pa.string())])
    write_shards(tmp_path / "train", rows, shards=1, group=12, schema=schema)
    tasks = [{"name": "a", "kind": "summarize", "target": "text"}]
    made = document(data, model, tmp_path / "out", source={"path": str(tmp_path / "train")}, tasks=tasks, held_out=None)
    assert plan(FinetuneSpec.model_validate(made)).corpus.documents == 12


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"fingerprint": 1}', b"3"])
def test_a_result_that_is_none_is_refused_in_one_line(data: Path, model: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "training.json").write_bytes(content)
    with pytest.raises(TableError, match="is not a training run's result"):
        train(document(data, model, tmp_path / "out"))
