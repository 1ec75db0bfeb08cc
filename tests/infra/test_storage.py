"""Storage: the same promises on local files, in memory and on a real S3 server."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import local_files
from infra.storage import Location, Problem, StorageError, base_folder, expand, explain, redact, stage_model
from tests.s3_server import S3Server, aws_settings, s3_server


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path, s3) -> Location:
    name = uuid.uuid4().hex
    return Location({"local": str(tmp_path), "memory": f"memory://{name}", "s3": s3.url(name)}[request.param])


def test_what_is_written_is_read_listed_and_deleted(root, tmp_path):
    file = root.child("a", "x.parquet")
    assert root.list_files() == [] and not file.exists() and file.info() is None
    file.write_bytes(b"old")
    first = file.info()
    file.write_bytes(b"newer")
    assert file.read_bytes() == b"newer" and file.info().size == 5 and file.info().etag != first.etag
    assert root.child("a").is_dir() and not file.is_dir()
    local = tmp_path / "upload.bin"
    local.write_bytes(b"u" * 100)
    root.child("b.bin").upload(local)
    assert [f.url for f in root.list_files()] == [file.url]
    assert root.list_files()[0] == file.info()
    assert root.child("b.bin").read_bytes() == b"u" * 100
    file.delete()
    file.delete()
    assert root.list_files() == []
    assert pickle.loads(pickle.dumps(file)) == file
    assert abs(root.child("b.bin").modified() - time.time()) < 60


def test_hidden_names_are_not_listed_and_neighbours_are_not_below(root):
    for name in ("t/a.parquet", "t/.b.parquet", "t/.c/d.parquet", "t/_e.parquet", "t2/f.parquet"):
        root.child(name).write_bytes(b"1")
    below = root.child("t")
    assert [below.below(f) for f in below.list_files()] == ["_e.parquet", "a.parquet"]
    assert [below.below(f) for f in expand(below.url)] == ["a.parquet"]


def test_expand_means_a_file_a_folder_or_a_glob(root):
    for name in ("d/p1/a.parquet", "d/p2/b.parquet", "d/p2/notes.txt", "d/_tmp/c.parquet", "d/e.pq"):
        root.child(name).write_bytes(b"1")
    d = root.child("d")

    def names(path: str) -> list[str]:
        return [d.below(f) for f in expand(path)]

    assert names(d.url) == ["e.pq", "p1/a.parquet", "p2/b.parquet"]
    assert names(d.url + "/") == names(d.url)
    assert names(f"{d.url}/p1/a.parquet") == ["p1/a.parquet"]
    assert names(f"{d.url}/*/*.parquet") == ["p1/a.parquet", "p2/b.parquet"]
    assert names(f"{d.url}/**/*.parquet") == ["p1/a.parquet", "p2/b.parquet"]
    assert names(f"{d.url}/p*") == ["p1/a.parquet", "p2/b.parquet"]
    assert names(f"{d.url}/_tmp/*.parquet") == ["_tmp/c.parquet"]
    assert names(f"{d.url}/*.nothing") == []
    assert expand(d.url) == [f for f in d.list_files("") if d.below(f) not in ("_tmp/c.parquet", "p2/notes.txt")]
    assert expand(f"{d.url}/**/*.parquet") == [f for f in expand(d.url) if f.url.endswith(".parquet")]
    with pytest.raises(StorageError, match="nothing at this path") as missing:
        expand(d.child("absent").url)
    assert missing.value.problem is Problem.MISSING
    assert base_folder(f"{d.url}/p1/a.parquet") == d.child("p1")
    assert base_folder(f"{d.url}/p?/*.parquet") == d and base_folder(d.url) == d


def test_parquet_is_read_by_ranges(root, tmp_path):
    pq.write_table(pa.table({"a": range(100_000), "b": ["x" * 50] * 100_000}), tmp_path / "t", row_group_size=10_000)
    root.child("t.parquet").upload(tmp_path / "t")
    with root.child("t.parquet").open_input() as source:
        file = pq.ParquetFile(source)
        assert file.read_row_group(3, columns=["a"]).column("a")[0].as_py() == 30_000


def test_exclusive_creation(root):
    file = root.child("lease")
    assert file.create_exclusive(b"1") and not file.create_exclusive(b"2")
    assert file.read_bytes() == b"1"


def test_a_child_cannot_lead_out(root):
    for part in ("..", "a/../..", "", "a//b", "./a"):
        with pytest.raises(ValueError):
            root.child(part)


def test_a_listing_is_never_stale(s3):
    here, elsewhere = Location(s3.url("stale")), fsspec.filesystem("s3", skip_instance_cache=True)
    here.child("a.parquet").write_bytes(b"1")
    assert len(here.list_files()) == 1
    elsewhere.pipe_file(here.child("b.parquet").path, b"2")
    assert len(here.list_files()) == 2 and here.child("b.parquet").exists()


@pytest.mark.parametrize("act", ["list_files", "exists", "read_bytes", "open_input", "write"])
def test_s3_troubles_are_told_apart(s3: S3Server, monkeypatch, act):
    def problem(url: str) -> StorageError:
        location = Location(url)
        with pytest.raises(StorageError) as caught:
            location.write_bytes(b"1") if act == "write" else getattr(location, act)()
        assert "\n" not in str(caught.value) and location.url in str(caught.value)
        return caught.value

    assert problem("s3://no-such-bucket/x").problem is Problem.NO_BUCKET
    if act in ("read_bytes", "open_input"):
        assert problem(s3.url("absent")).problem is Problem.MISSING
    for name, value in aws_settings(s3.endpoint, secret="marker-wrong-secret").items():
        monkeypatch.setenv(name, value)
    refused = problem(s3.url("x"))
    assert refused.problem is Problem.CREDENTIALS and "AWS_SECRET_ACCESS_KEY" in refused.reason
    assert "marker" not in str(refused)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    assert "AWS_ACCESS_KEY_ID" in problem(s3.url("x")).reason


def test_an_endpoint_that_cannot_be_reached_ends_soon(s3, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StorageError, match="cannot be reached") as caught:
            Location(s3.url("x")).list_files()
    assert time.monotonic() - started < 20 and caught.value.problem is Problem.UNREACHABLE


def test_missing_credentials_are_named(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID") as caught:
        Location(s3.url("x")).list_files()
    assert caught.value.problem is Problem.CREDENTIALS


def test_local_troubles(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        Location(str(tmp_path / "file" / "below")).read_bytes()
    with pytest.raises(StorageError, match="this is a folder"):
        Location(str(tmp_path)).open_input()
    with pytest.raises(StorageError, match="nosuchscheme"):
        Location("nosuchscheme://x/y").exists()
    with pytest.raises(StorageError, match="three slashes"):
        Location("file://data/x")
    if os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0)
        with pytest.raises(StorageError, match="permission denied"):
            Location(str(closed / "x")).write_bytes(b"1")


def test_a_full_disk_is_named():
    assert explain(OSError(errno.ENOSPC, "No space left on device"), "/x").problem is Problem.FULL


def test_local_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Location("a/./b").url == str(tmp_path / "a/b")
    assert Location("~/a").url == "/home/somebody/a"
    assert Location("file:///data/x/").url == "/data/x"
    assert Location("s3://b/c/") == Location("s3://b/c")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "t"
    target.write_bytes(b"old")

    def fail(out):
        out.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        local_files.replace(str(target), fail)
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["t"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    script = (
        "import os, signal, sys; from infra import local_files\n"
        "local_files.replace(sys.argv[1], lambda out: (out.write(b'half'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "t")], cwd=Path(__file__).parents[2])
    assert len(os.listdir(tmp_path)) == 1 and Location(str(tmp_path)).list_files("") == []
    (tmp_path / local_files.temporary_name()).write_bytes(b"a living writer's")
    assert local_files.remove_dead_temporaries(str(tmp_path)) == 1
    assert len(os.listdir(tmp_path)) == 1


def test_a_circle_of_links_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.parquet").write_bytes(b"1")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    assert len(Location(str(tmp_path)).list_files()) == 1


def test_a_folder_that_goes_away_while_it_is_empty_is_made_again(tmp_path, monkeypatch):
    made, makedirs = [], os.makedirs

    def removed_at_once(path, **options) -> None:
        makedirs(path, **options)
        made.append(path)
        if len(made) < 3:
            os.rmdir(path)

    monkeypatch.setattr(os, "makedirs", removed_at_once)
    Location(str(tmp_path / "a" / "x")).write_bytes(b"1")
    assert len(made) == 3 and (tmp_path / "a" / "x").read_bytes() == b"1"


def test_one_of_many_creates(tmp_path):
    file, won = Location(str(tmp_path / "x")), []
    threads = [threading.Thread(target=lambda: won.append(file.create_exclusive(b"1"))) for _ in range(16)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert won.count(True) == 1


def test_secrets_leave_no_text(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "marker/secret+1")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("MY_DB_PASSWORD", "marker-password")
    monkeypatch.setenv("SHORT_KEY", "en")
    text = redact(
        "get s3://me:marker@host/x?X-Amz-Signature=marker then marker/secret+1 or marker%2Fsecret%2B1, hf_x, "
        "marker-password; https://marker-token@github.com/a 'en' stays, a@b.c stays"
    )
    assert "marker" not in text and "hf_x" not in text
    assert "'en' stays, a@b.c stays" in text and "host/x" in text and "github.com/a" in text
    monkeypatch.setenv("STORE_CONNECTION_STRING", "marker;in;one")
    text = redact("sftp://me:ma'rker@host/x then https://host/y?marker, marker;in;one, s3://b/part-?.parquet stays")
    assert "marker" not in text and "rker" not in text
    assert "host/x then" in text and "host/y?***" in text and "s3://b/part-?.parquet stays" in text


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_model_is_staged_once_and_anew_when_it_changes(kind, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("CORPUSMILL_CACHE", str(tmp_path / "cache"))
    model = Location(f"memory://{uuid.uuid4().hex}" if kind == "memory" else s3.url("model"))
    for name in (
        "config.json",
        "a.safetensors",
        "tokenizer.json",
        "tasks.json",
        "pytorch_model.bin",
        "old/config.json",
    ):
        model.child(name).write_bytes(name.encode())
    staged = stage_model(model.url)
    assert sorted(os.listdir(staged)) == ["a.safetensors", "config.json", "tasks.json", "tokenizer.json"]
    before = os.stat(staged).st_ino
    assert stage_model(model.url + "/") == staged and os.stat(staged).st_ino == before
    model.child("a.safetensors").write_bytes(b"other weights")
    again = stage_model(model.url)
    assert again != staged and Path(again, "a.safetensors").read_bytes() == b"other weights"
    with pytest.raises(StorageError, match=r"no config\.json"):
        stage_model(model.child("old", "x").url)
    assert stage_model("google/t5gemma-2-270m-270m") == "google/t5gemma-2-270m-270m"
    assert stage_model("./folder") == "./folder" and stage_model("file:///m") == "/m"


def test_two_processes_stage_once(s3, tmp_path):
    model = Location(s3.url("shared-model"))
    for name in ("config.json", "a.safetensors"):
        model.child(name).write_bytes(os.urandom(1 << 20))
    script = "import sys; from infra.storage import stage_model; print(stage_model(sys.argv[1]))"
    environment = {**os.environ, "CORPUSMILL_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, model.url],
            stdout=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]  # fmt: skip
    paths = {process.communicate()[0].strip() for process in running}
    assert len(paths) == 1 and sorted(os.listdir(paths.pop())) == ["a.safetensors", "config.json"]
    assert len([name for name in os.listdir(tmp_path / "models") if not name.startswith(".")]) == 1


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:MARK@bucket/x", "s3://key:MA/RK+MARK@bucket/x", "https://h/x?X-Amz-Signature=MARK&y=1",
        "https://h/x?MARK", "abfs://c@a.dfs.core.windows.net/x?sv=1&sig=MARK%2F", "az://c/x?sig=MARK",
        "AccountName=a;AccountKey=MARK==;x", "SharedAccessSignature=MARK", "Authorization: Bearer MARK-MARK",
        "{'Authorization': 'Basic MARKMARK'}", "Bearer MARKMARKMARKMARK", "api_key=MARK", "password = MARK",
        "sftp://me:MARK@host/x", "the key is env-MARK-1", "env-MARK-2!", "env-MARK-3", "env%2FMARK%204",
    ],
)  # fmt: skip
def test_a_secret_is_hidden_wherever_it_stands(text, monkeypatch):
    monkeypatch.setenv("STORE_KEY", "env-MARK-1")
    monkeypatch.setenv("DB_PASSWORD_2", "env-MARK-2")
    monkeypatch.setenv("ACME_PW", "env-MARK-3")
    monkeypatch.setenv("ACME_SAS", "env/MARK 4")
    assert "MARK" not in redact(text) and "***" in redact(text)


def test_what_is_no_secret_stays(monkeypatch):
    monkeypatch.setenv("PWD", "/data/somewhere/long")
    monkeypatch.setenv("OLDPWD", "/data/somewhere/else")
    for text in (
        "http://host:8080/a@2x.png", "http://host/a:b@c.png", "s3://b/part-?.parquet", "a basic understanding of it",
        "the bearer of good news", "/data/somewhere/long", "/data/somewhere/else", "s3://bucket/sign=5/x.parquet",
        "s3://b/date=2026-01-01/lang=de/part-1.parquet",
    ):  # fmt: skip
        assert redact(text) == text


@pytest.mark.parametrize("user", ["key:MARK@", "key:MA/RK@", "MARK@"])
def test_a_user_in_an_s3_url_is_refused_before_the_client_sees_it(user):
    with pytest.raises(StorageError, match="names no user") as caught:
        Location(f"s3://{user}bucket/x")
    assert "MARK" not in str(caught.value)
    assert Location("s3://arn:aws:s3:us-east-1:123:accesspoint/x/y@2x.png").path.endswith("y@2x.png")
