"""`corpusmill benchmark` for real on the demo's shape: figures, peers lost and missing, children, Markdown and plot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.bench.cases import Case, Sample
from jobs.bench.checkpoint import write_checkpoint
from jobs.bench.crew import Crew, PeerLost
from jobs.bench.types import PeerSpec, Settings
from jobs.cli import main

NATIVE = PeerSpec(name="native", dtype="float32")
TINY = ("--size", "demo", "--tokens", "2", "--documents", "3", "--repeat", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A benchmark folder whose checkpoint is there."""
    found = tmp_path_factory.mktemp("benchmark")
    write_checkpoint(found / "demo", "demo")
    return found


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(model=folder / "demo", folder=folder, size="demo", peers=(NATIVE,), repeat=3, settle_seconds=0)


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "benchmark", "--dir", str(folder), *TINY, *words]


def figures(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_the_suite_against_every_peer(folder: Path, tmp_path: Path) -> None:
    peers = "native:float32,transformers-expert:float32,ctranslate2:int8,vllm"
    page, kept = tmp_path / "page.md", tmp_path / "kept.jsonl"
    words = ("--figures", "encode,corpus", "--peers", peers, "--lengths", "16,80", "--tasks", "2")
    made = subprocess.run(
        command(folder, *words, "--output", str(page), "--json", str(kept)), capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    found = figures(made.stdout)
    assert [(figure["name"], figure["work"].get("tokens")) for figure in found] == [
        ("encode", 16),
        ("encode", 80),
        ("corpus", None),
    ]
    assert figures(kept.read_text()) == found
    for figure in found:
        assert [value["peer"] for value in figure["values"]] == [
            "native float32",
            "transformers-expert float32",
            "ctranslate2 int8",
        ]
        assert all(len(value["samples"]) == 1 and value["median"] > 0 for value in figure["values"])
        assert all(value["extra"]["peak_mib"] >= 0 for value in figure["values"])
        assert figure["missing"] == {"vllm bfloat16": "vllm is not installed"}
        assert set(figure["ratios"]) == {
            "native float32 / transformers-expert float32",
            "native float32 / ctranslate2 int8",
        }
        assert figure["device"] and figure["date"] and figure["versions"]["torch"]
    encode, corpus = found[0], found[2]
    assert encode["ceiling"]["kind"] == "MFU"
    assert set(encode["ceiling"]["reached"]) == {value["peer"] for value in encode["values"]}
    agreement = encode["checks"]["difference from transformers float32 at 16 tokens"]
    assert agreement["native float32"] < 1e-4
    # Its 8 bits are coarser on CPUs without VNNI.
    assert agreement["ctranslate2 int8"] < 0.3
    assert corpus["checks"]["produced_tokens"] == 3 * 2 * 2
    assert 0 < corpus["values"][0]["extra"]["occupancy"] <= 1

    text = page.read_text()
    assert "### encode, tokens/s" in text
    assert "vllm bfloat16: vllm is not installed" in text
    assert str(folder) not in text
    picture = page.parent / text.split("](")[1].split(")")[0]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_other_figures(folder: Path) -> None:
    words = ("--figures", "decode,share,long", "--peers", "native:float32,vllm", "--lengths", "24", "--tasks", "1,3")
    made = subprocess.run(command(folder, *words), capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    one, three, share, long = figures(made.stdout)
    assert (one["work"]["tasks"], three["work"]["tasks"]) == (1, 3)
    assert one["ceiling"]["kind"] == "MBU"
    assert three["checks"]["produced_tokens"] == 9
    assert share["better"] == "lower"
    assert share["values"][0]["extra"]["one_task_s"] > 0
    assert long["checks"]["finished"] == ["native float32"]
    assert long["missing"] == {"vllm bfloat16": "vllm is not installed"}


def test_quality_and_documents_in_flight(folder: Path) -> None:
    peers = "native:float32,native:bfloat16,ctranslate2:int8"
    words = ("--figures", "quality,flight", "--peers", peers, "--lengths", "24", "--tasks", "2")
    made = subprocess.run(command(folder, *words), capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    quality, flight = figures(made.stdout)
    exact, rounded = quality["values"]
    assert (exact["peer"], rounded["peer"]) == ("native float32", "native bfloat16")
    assert exact["median"] < 1e-4 < rounded["median"] < 0.1
    assert exact["extra"]["other_token"] == 0
    assert 0 <= exact["extra"]["divergence"] < rounded["extra"]["divergence"]
    assert "gives no logits" in quality["missing"]["ctranslate2 int8"]
    assert flight["work"] == {"documents": 8, "tokens": 24, "tasks": 2, "max_tokens": 3}
    assert [value["peer"] for value in flight["values"]] == ["native float32", "native bfloat16", "ctranslate2 int8"]
    # A peer with smaller batches reads other bytes in a step: no share of the bandwidth is told.
    assert flight["ceiling"]["kind"] == "best other peer"


@pytest.mark.slow
def test_resume_finds_every_key(folder: Path) -> None:
    made = subprocess.run(command(folder, "--figures", "resume"), capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    keys, shards, files = figures(made.stdout)
    assert [figure["checks"]["keys_found"] for figure in (keys, shards, files)] == [20_000, 400, 2_000]
    for figure, ways in ((keys, ["index", "plan", "run"]), (shards, ["scan", "plan"]), (files, ["index", "plan"])):
        assert figure["checks"]["to_do"] == figure["checks"]["source_bytes_read_again"] == 0
        assert [value["peer"] for value in figure["values"]] == ways
        assert all(value["median"] > 0 and value["extra"]["peak_mib"] > 50 for value in figure["values"])


def test_a_killed_peer_is_named_and_the_others_go_on(settings: Settings) -> None:
    other = PeerSpec(name="native", dtype="bfloat16")
    case = Case(name="killed", work={}, unit="times")
    with Crew(settings) as crew:

        def measure(peer: PeerSpec, repetition: int) -> Sample:
            pid = crew.pid(peer)
            if (peer, repetition) == (NATIVE, 1):
                os.kill(pid, signal.SIGKILL)
            crew.ask(peer, "rest")
            return Sample(value=1.0)

        case.repeat(crew, settings, measure, peers=[NATIVE, other])
        assert len(case.samples[NATIVE.label]) == 1
        assert len(case.samples[other.label]) == 3
        assert "SIGKILL" in case.missing[NATIVE.label]
        # The next case gives it another chance.
        crew.ask(NATIVE, "rest")


def test_a_peer_that_hangs_or_fails_is_ended(settings: Settings) -> None:
    import dataclasses

    with Crew(settings) as crew:
        pid = crew.pid(NATIVE)
        with pytest.raises(PeerLost, match="no_such_thing"):
            crew.ask(NATIVE, "no_such_thing")
        assert not alive(pid)
    with Crew(dataclasses.replace(settings, limit_seconds=0.001)) as crew:
        with pytest.raises(PeerLost, match="no answer in"):
            crew.pid(NATIVE)
        assert crew.gone


def test_children_die_with_their_parent(folder: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from jobs.bench.crew import Crew; from tests.jobs import test_benchmark as t\n"
        "from jobs.bench.types import Settings\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1])\n"
        "    crew = Crew(Settings(model=folder / 'demo', folder=folder, size='demo', peers=(t.NATIVE,)))\n"
        "    print(crew.pid(t.NATIVE), flush=True); time.sleep(300)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    assert gone([child])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds children through /proc")
def test_ctrl_c_leaves_no_child_and_keeps_what_is_made(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    words = ("--figures", "encode,corpus", "--peers", "native:float32", "--lengths", "16", "--output", str(page))
    run = subprocess.Popen(
        command(folder, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert run.stdout is not None and run.stderr is not None
    assert json.loads(run.stdout.readline())["name"] == "encode"
    time.sleep(1)
    children = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert gone(children)
    assert "### encode" in page.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--figures", "speed"), "'speed' is not known; choose from encode"),
        (("--figures", ","), "names none"),
        (("--figures", "gpu", "--device", "cpu"), "wants a CUDA device"),
        (("--peers", "onnx"), "'onnx' is not known; choose from native"),
        (("--peers", "native:int3"), "'int3' is not known; choose from bfloat16"),
        (("--dtype", "int3"), "--dtype"),
        (("--size", "2b"), "choose one of demo"),
        (("--size", "demo", "--model", "somewhere"), "--size"),
        (("--lengths", "many"), "'many' is no whole number"),
        (("--tasks", "0"), "at least 1"),
        (("--repeat", "0"), "--repeat"),
        (("--device", "tpu"), "choose auto, cpu or cuda"),
        (("--output", "page.txt"), "no Markdown file"),
        (("--output", "nowhere/page.md"), "nowhere is not there"),
    ],
)
def test_bad_usage_is_one_line(words: tuple[str, ...], said: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["benchmark", *words])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_none_is_one_line(capsys, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["benchmark", "--model", str(tmp_path), "--dir", str(tmp_path / "kept"), "--device", "cpu"])
    assert caught.value.code == 3
    assert "config.json" in capsys.readouterr().err


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(alive, pids))
