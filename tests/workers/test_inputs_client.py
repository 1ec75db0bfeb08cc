"""Preparing in a process of its own: what crashes it costs one document, and the rest is what it is in this process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_runtime import ModelError
from tests.tokenizers_tiny import model_folder
from workers.inputs import Inputs
from workers.inputs_client import InputsClient
from workers.prepare import Prepare
from workers.tasks import LimitsSpec

from .broken_inputs import BrokenInputs, UnloadableInputs
from .test_prepare import REVISION, Bucket, Table, errors, made, picture, row, tasks_of

LIMITS = LimitsSpec()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def client(folder: Path) -> Iterator[InputsClient]:
    client = InputsClient(BrokenInputs(str(folder), tasks_of(), LIMITS))
    yield client
    client.close()


def prepared(work) -> Prepare:
    return Prepare(work, tasks_of(), LIMITS, REVISION, Table(), Bucket())


def test_what_crashes_the_process_is_one_failed_document(folder: Path, client: InputsClient) -> None:
    rows = [row(f"d{n}", f"the fox {n}", *([picture()] if n % 2 else [])) for n in range(12)]
    rows[3] = row("d3", "segfault", picture())
    rows[7] = row("d7", "abort")
    rows[8] = row("d8", "leave")
    stage = prepared(client)
    documents = made(stage, *rows)
    assert client.deaths == 6, "each of them twice, and nobody else"
    plain = made(prepared(Inputs(str(folder), tasks_of(), LIMITS)), *rows)
    for n, (document, same) in enumerate(zip(documents, plain, strict=True)):
        if n not in (3, 7, 8):
            assert document == same
    assert set(errors(documents[3]).values()) == {"engine_crash"} and len(errors(documents[3])) == 4
    for n, said in ((3, "was ended by SIGSEGV"), (7, "was ended by SIGABRT"), (8, "ended by itself with exit code 7")):
        [message] = {pair["error_message"] for pair in documents[n]["pairs"]}
        assert message == f"the process that prepares documents {said} while it worked on this alone"
    assert errors(made(stage, row("after", "the fox"))[0]) == {"summary": None, "to_fr": None, "animals": None}


def test_a_document_that_never_ends_is_ended(client: InputsClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made(prepared(client), row("first", "the fox"))
    monkeypatch.setattr("workers.child_process._HANG_SECONDS", 8.0)
    before, hangs, after = made(prepared(client), row("a", "the fox"), row("b", "hang"), row("c", "the fox"))
    assert set(errors(hangs).values()) == {"engine_hang"} and client.deaths == 2
    assert set(errors(before).values()) == set(errors(after).values()) == {None}


def test_kills_from_outside_fail_nothing(client: InputsClient) -> None:
    stage = prepared(client)
    for n in range(3):
        documents = made(stage, *[row(f"d{n}-{i}", "the fox") for i in range(5)])
        assert all(set(errors(document).values()) == {None} for document in documents)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
    assert client.deaths == 2


def test_what_is_done_asks_no_process(folder: Path) -> None:
    client = InputsClient(Inputs(str(folder), tasks_of(), LIMITS))
    stage = Prepare(client, tasks_of(), LIMITS, REVISION, Table(), Bucket())
    made(stage, row(None, "no id"), row("a", None, "gone.png"))
    assert client.pid is None


def test_a_model_folder_that_cannot_be_used_is_one_line(tmp_path: Path, folder: Path) -> None:
    client = InputsClient(Inputs(str(tmp_path / "none"), tasks_of(), LIMITS))
    with pytest.raises(ModelError) as failed:
        made(prepared(client), row("a", "the fox"))
    assert "none" in str(failed.value) and "\n" not in str(failed.value)
    crashing = InputsClient(UnloadableInputs(str(folder), tasks_of(), LIMITS))
    with pytest.raises(ModelError, match=r"the process that does it was ended by SIGSEGV, every time"):
        made(prepared(crashing), row("a", "the fox"))
    assert crashing.deaths == 3


def test_closing_ends_the_process(client: InputsClient) -> None:
    made(prepared(client), row("a", "the fox"))
    pid = client.pid
    assert pid is not None and b"workers.inputs_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    client.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
