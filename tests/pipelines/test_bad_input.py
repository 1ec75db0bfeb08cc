"""Bad rows become rows with a code, and the run goes on; a bad job ends in one line that names the thing."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from infra.cluster import Cluster
from infra.storage import Location, StorageError
from model_runtime import ModelError
from pipelines.errors import JobError, RunError, SourceError, TableError, TableHeldError
from pipelines.generate import run_job
from pipelines.job import JobSpec
from pipelines.lease import Lease
from pipelines.lineage import new_run_id
from pipelines.resolve import check_gpus, resolve
from tests.checkpoints import read_tensors, write_tensors
from tests.s3_server import S3Server, aws_settings

from .corpora import broken_images, documents, odd_images, picture, write_shards

TASKS = [
    {"name": "summary", "kind": "summarize", "max_tokens": 5},
    {"name": "alt", "kind": "caption", "max_tokens": 5},
]
SCHEMA = pa.schema(
    [
        ("doc_id", pa.string()),
        ("body", pa.string()),
        ("photo", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)


def make_job(folder: Path, model: Path | str, *, source: dict | None = None, tasks=TASKS, **changes) -> JobSpec:
    spec = {
        "name": "bad",
        "model": {"path": str(model), "dtype": "float32"},
        "source": {"path": str(folder / "corpus"), "id": "doc_id", "text": "body", "images": "photo"} | (source or {}),
        "tasks": tasks,
        "output": {"path": str(folder / "table")},
    }
    return JobSpec.model_validate({**spec, **changes})


def rows_of(folder: Path, zone: str) -> dict[tuple[str | None, str], dict]:
    rows = ds.dataset(folder / "table" / zone).to_table().to_pylist()
    return {(row["document_id"] or f"row {row['source_row']}", row["task"]): row for row in rows}


@pytest.mark.usefixtures("local_ray")
def test_each_bad_row_gets_its_code_and_the_good_ones_are_made(tmp_path, model):
    outside = tmp_path / "outside.png"
    outside.write_bytes(picture(1))
    (tmp_path / "corpus" / "pictures").mkdir(parents=True)
    (tmp_path / "corpus" / "pictures" / "inside.png").write_bytes(picture(2))

    def row(name, body="a plain text about a fox", data=None, path=None):
        photo = None if data is None and path is None else {"bytes": data, "path": path}
        return {"doc_id": name, "body": body, "photo": photo}

    spelled = row("spelled", "a <start_of_image> <eos> <bos> <image_soft_token> b")
    good = [row("good"), spelled, row("inside", path="pictures/inside.png")]
    good += [row(f"odd-{name}", data=data) for name, data in odd_images().items()]
    bad = {name: (row(name, data=data), code) for name, (data, code) in broken_images().items()}
    bad |= {
        "outside": (row("outside", path=str(outside)), "image_forbidden"),
        "climbing": (row("climbing", path="../outside.png"), "image_forbidden"),
        "gone": (row("gone", path="pictures/gone.png"), "image_not_found"),
    }
    empty = [row("empty", ""), row("blank", " \n\t ")]
    ids = [row(None), row("good", "the second of that name")]
    rows = [*good, *(r for r, _ in bad.values()), *empty, *ids]
    write_shards(tmp_path / "corpus", rows, shards=3, group=4, schema=SCHEMA)
    (tmp_path / "corpus" / "zzz.parquet").write_bytes(b"PAR1 no Parquet at all PAR1")

    report = run_job(make_job(tmp_path, model), job_text="")

    made, errors = rows_of(tmp_path, "results"), rows_of(tmp_path, "errors")
    for name in (r["doc_id"] for r in good):
        assert made[(name, "summary")]["text"] is not None
    assert {name for name, task in made if task == "alt"} == {"inside", *(f"odd-{name}" for name in odd_images())}
    for name, (_, code) in bad.items():
        for task in ("summary", "alt"):
            assert errors[(name, task)]["error_code"] == code, name
            assert errors[(name, task)]["status"] == "rejected" and errors[(name, task)]["text"] is None
    assert {errors[(name, "summary")]["error_code"] for name in ("empty", "blank")} == {"empty_input"}
    codes = {row["error_code"] for row in errors.values()}
    assert {"null_id", "duplicate_id", "bad_row"} <= codes
    duplicate = next(row for row in errors.values() if row["error_code"] == "duplicate_id")
    source = pq.read_table(duplicate["source_path"]).to_pylist()[duplicate["source_row"]]
    assert source["body"] == "the second of that name", "the first one is kept, the second rejected"
    unread = [row for row in errors.values() if row["error_code"] == "bad_row"]
    assert {Path(row["source_path"]).name for row in unread} == {"zzz.parquet"} and len(unread) == 2
    assert all("\n" not in row["error_message"] for row in errors.values())
    counts = report.tasks
    total = sum(c.ok + c.rejected + c.failed for c in counts.values())
    assert total == len(made) + len(errors) == sum(c.applicable for c in counts.values())

    again = run_job(make_job(tmp_path, model), job_text="")
    assert all(c.made == 0 for c in again.tasks.values()), "rejected rows are final"
    assert rows_of(tmp_path, "errors").keys() == errors.keys()


@pytest.mark.usefixtures("local_ray")
def test_too_long_is_cut_or_rejected_as_the_job_says(tmp_path, model):
    rows = [{"doc_id": "long", "body": "fox " * 500, "photo": None}, {"doc_id": "short", "body": "fox", "photo": None}]
    write_shards(tmp_path / "corpus", rows, shards=1, group=4, schema=SCHEMA)
    limits = {"max_input_tokens": 64}
    run_job(make_job(tmp_path, model, limits={**limits, "overflow": "truncate"}, tasks=TASKS[:1]), job_text="")
    made = rows_of(tmp_path, "results")
    assert made[("long", "summary")]["truncated"] and made[("long", "summary")]["input_tokens"] == 64
    assert not made[("short", "summary")]["truncated"]
    rejecting = make_job(tmp_path, model, limits={**limits, "overflow": "reject"}, tasks=TASKS[:1])
    run_job(rejecting, job_text="")
    assert rows_of(tmp_path, "errors")[("long", "summary")]["error_code"] == "too_long"


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message and "\n" not in message, message
    return message


def test_a_source_that_does_not_fit_is_named(tmp_path, model):
    write_shards(tmp_path / "corpus", documents(4), shards=1, group=4)
    cases = {
        "text": ({"text": "bodyy", "images": None}, "bodyy"),
        "type": ({"text": "year", "images": None}, "'year' is int32"),
        "carry": ({"images": None, "carry": ["body", "nope"]}, "nope"),
        "filter": ({"images": None, "filter": [["year", "=", "abc"]]}, "filter"),
    }
    for source, word in cases.values():
        with pytest.raises(SourceError) as caught:
            run_job(make_job(tmp_path, model, source=source), job_text="")
        assert word in one_line(caught.value)
    with pytest.raises(SourceError, match=r"nothing|not there|no such|does not exist") as caught:
        run_job(make_job(tmp_path, model, source={"path": str(tmp_path / "elsewhere")}), job_text="")
    assert "elsewhere" in one_line(caught.value)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.parquet").write_bytes(b"junk")
    with pytest.raises(SourceError, match="not a Parquet file"):
        run_job(make_job(tmp_path, model, source={"path": str(tmp_path / "junk")}), job_text="")
    assert not (tmp_path / "table").exists(), "nothing was written for a job that cannot run"


def test_a_wrong_secret_and_a_missing_bucket_are_told_apart(tmp_path, model, s3: S3Server, monkeypatch):
    with pytest.raises((SourceError, StorageError)) as missing:
        run_job(make_job(tmp_path, model, source={"path": "s3://no-such-bucket/x"}), job_text="")
    assert "no-such-bucket" in one_line(missing.value)
    for name, value in aws_settings(s3.endpoint, secret="wrong-secret-of-a-test").items():
        monkeypatch.setenv(name, value)
    with pytest.raises((SourceError, StorageError)) as refused:
        run_job(make_job(tmp_path, model, source={"path": s3.url("documents/")}), job_text="")
    assert "wrong-secret" not in one_line(refused.value)
    assert one_line(refused.value) != one_line(missing.value)
    assert os.environ["AWS_ACCESS_KEY_ID"] not in one_line(refused.value)


def test_a_checkpoint_with_a_missing_tensor_is_named_before_anything_runs(tmp_path, model):
    import shutil

    broken = shutil.copytree(model, tmp_path / "broken")
    tensors = read_tensors(broken)
    gone = next(name for name in tensors if name.endswith("decoder.layers.1.mlp.up_proj.weight"))
    del tensors[gone]
    write_tensors(broken, tensors)
    write_shards(tmp_path / "corpus", documents(2), shards=1, group=4)
    with pytest.raises(ModelError, match=r"decoder\.layers\.1\.mlp\.up_proj\.weight") as caught:
        run_job(make_job(tmp_path, broken, source={"images": "photos"}), job_text="")
    one_line(caught.value)
    with pytest.raises(ModelError, match="no-such-model") as caught:
        run_job(make_job(tmp_path, tmp_path / "no-such-model"), job_text="")
    one_line(caught.value)


@pytest.mark.usefixtures("local_ray")
def test_a_job_beyond_its_model_or_its_cluster_is_refused(tmp_path, model):
    write_shards(tmp_path / "corpus", documents(3), shards=1, group=4)
    long = [{"name": "essay", "kind": "summarize", "max_tokens": 4096}, TASKS[0]]
    with pytest.raises(JobError, match=r"task essay: max_tokens 4096 .* the model takes 4096") as caught:
        run_job(make_job(tmp_path, model, source={"images": None}, tasks=long), job_text="")
    assert caught.value.exit_code == 2 and one_line(caught.value)
    alone = Cluster(cpus=4, gpus=0, nodes=1, local=True)
    job = make_job(tmp_path, model, source={"images": None}, workers={"gpus": 1})
    with pytest.raises(JobError, match=r"workers\.gpus asks for 1 .* this machine has 0"):
        check_gpus(job, alone)
    assert "waits until it grows" in check_gpus(job, Cluster(cpus=4, gpus=0, nodes=1, local=False))
    assert check_gpus(job, Cluster(cpus=4, gpus=2, nodes=1, local=True)) is None


@pytest.mark.usefixtures("local_ray")
def test_a_held_table_and_other_carried_columns_are_refused(tmp_path, model):
    write_shards(tmp_path / "corpus", documents(3), shards=1, group=4)
    job = make_job(tmp_path, model, source={"images": "photos", "carry": ["year"]}, tasks=TASKS[:1])
    run_job(job, job_text="")
    other = make_job(tmp_path, model, source={"images": "photos", "carry": []}, tasks=TASKS[:1])
    with pytest.raises(TableError, match="year"):
        run_job(other, job_text="")
    with Lease.acquire(Location(str(tmp_path / "table")), new_run_id(), "somebody"):
        with pytest.raises(TableHeldError) as caught:
            run_job(job, job_text="")
        assert caught.value.exit_code == 5 and isinstance(caught.value, RunError)
        one_line(caught.value)


def test_a_table_and_its_source_are_kept_apart(tmp_path, model):
    write_shards(tmp_path / "corpus", documents(2), shards=1, group=4)
    corpus = str(tmp_path / "corpus")
    (tmp_path / "link").symlink_to(corpus)
    (tmp_path / "table").mkdir()
    for output in (corpus, f"{corpus}/table", f"{corpus}/a/b/", f"{tmp_path}/link/table", f"{tmp_path}/x/../corpus/t"):
        with pytest.raises(JobError, match=r"output\.path .* lies inside source\.path") as caught:
            resolve(make_job(tmp_path, model, source={"images": "photos"}, output={"path": output}))
        assert caught.value.exit_code == 2 and one_line(caught.value)
    for output in (f"{corpus}2/table", f"{corpus}/_table", f"{corpus}/.table", str(tmp_path)):
        resolve(make_job(tmp_path, model, source={"images": "photos"}, output={"path": output}))
    for zone in ("results/summary", "errors/summary", "_work/run"):
        write_shards(tmp_path / "table" / zone, documents(2), shards=1, group=4)
    for path in (
        "table/results",
        "table/*/summary/*.parquet",
        "table/_work/run/shard-0.parquet",
        "*/results/*/*.parquet",
    ):
        with pytest.raises(JobError, match="a file of this job's own table"):
            resolve(make_job(tmp_path, model, source={"images": "photos", "path": f"{tmp_path}/{path}"}))
    elsewhere = {"path": f"{tmp_path}/other"}
    source = {"images": "photos", "path": f"{tmp_path}/table/results"}
    resolve(make_job(tmp_path, model, source=source, output=elsewhere))
