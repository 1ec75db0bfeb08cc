"""The suite in two processes: no test is left out or run twice, and what fails in one of them fails the whole."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

import pytest

from tests.__main__ import LANES, ROOT, main, outcome, places, total, vllm_lanes
from tests.conftest import FAULT_TESTS

PASSES, FAILS = "def test_good(): pass\n", "def test_bad(): assert 1 == 2\n"


@pytest.fixture
def lanes(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[str, ...]]:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    # What fails leaves its temporary files to be looked at: below this test's own.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("t")))
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "test_some.py").write_text(PASSES)
    (tmp_path / "test_others.py").write_text(PASSES)
    return {"some": (str(tmp_path / "some"),), "others": (str(tmp_path),)}


def files_of(name: str) -> list[Path]:
    where = places(LANES)[name]
    ignored = {ROOT / path.removeprefix("--ignore=") for path in where if path.startswith("--ignore=")}
    found = [ROOT / path for path in where if not path.startswith("--")]
    files = [file for path in found for file in (path.rglob("test_*.py") if path.is_dir() else [path])]
    return [file for file in files if not ignored & {file, *file.parents}]


def test_each_test_file_is_in_one_lane() -> None:
    assert sorted([*files_of("ray"), *files_of("others")]) == sorted((ROOT / "tests").rglob("test_*.py"))


def test_what_joins_the_shared_ray_is_in_its_lane() -> None:
    joining = {file for file in (ROOT / "tests" / "pipelines").glob("test_*.py") if "local_ray" in file.read_text()}
    assert len(joining) > 5 and joining <= set(files_of("ray"))


def test_faults_are_counted_in_one_lane() -> None:
    assert set(FAULT_TESTS) <= {file.name for file in files_of("others")}


def test_both_run_and_the_last_line_counts_them_together(lanes, capfd) -> None:
    assert main([], lanes) == 0
    *_, some, others, last = capfd.readouterr().out.splitlines()
    assert some.startswith("some: 1 passed in ") and others.startswith("others: 1 passed in ")
    assert last.startswith("2 passed in ") and last.endswith("s, exit status 0")


@pytest.mark.parametrize("where", ["some/test_some.py", "test_others.py"])
def test_what_fails_in_one_fails_all_and_hides_nothing(lanes, tmp_path, capfd, where) -> None:
    (tmp_path / where).write_text(PASSES + FAILS)
    assert main([], lanes) == 1
    out = capfd.readouterr().out
    assert "assert 1 == 2" in out and "temporary files: " in out
    assert out.splitlines()[-1].startswith("1 failed, 2 passed in ") and out.endswith("exit status 1\n")
    after = out.partition("temporary files: ")[2]
    assert "assert 1 == 2" in after and "FAILED " in after and "::test_bad" in after


def test_a_lane_that_is_killed_fails_all(lanes, tmp_path, capfd) -> None:
    (tmp_path / "test_others.py").write_text("import os\ndef test_kill(): os.kill(os.getpid(), 9)\n")
    assert main([], lanes) == 9
    assert "others: ended without a closing line" in capfd.readouterr().out


def test_options_reach_both_and_may_leave_one_without_tests(lanes, tmp_path, capfd) -> None:
    (tmp_path / "test_others.py").write_text("def test_other(): pass\n")
    assert main(["-k", "good"], lanes) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith("1 passed, 1 deselected in ")
    assert main(["-k", "nothing"], lanes) == pytest.ExitCode.NO_TESTS_COLLECTED


_LOOK = """
import os, pathlib, tempfile
def test_good(tmp_path):
    found = [tempfile.gettempdir(), os.environ["RAY_TMPDIR"], str(tmp_path), os.environ["OMP_NUM_THREADS"]]
    pathlib.Path(__file__).with_suffix(".txt").write_text(" ".join(found))
"""


def test_lanes_share_no_temporary_folder(lanes, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    files = [tmp_path / "some" / "test_some.py", tmp_path / "test_others.py"]
    for file in files:
        file.write_text(_LOOK)
    assert main([], lanes) == 0
    (temporary, ray, base, threads), other = (file.with_suffix(".txt").read_text().split() for file in files)
    assert temporary == ray and base.startswith(f"{temporary}/") and temporary != other[0]
    assert int(threads) >= 1 and not Path(temporary).exists()


def test_what_tests_start_can_be_interrupted_in_the_background_too(lanes, tmp_path, monkeypatch) -> None:
    (tmp_path / "test_others.py").write_text(
        "import signal\ndef test_good(): assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main([], lanes) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_counts_are_added_up() -> None:
    lines = ["1 failed, 2 passed, 1 warning in 0.1s", "3 passed, 2 skipped, 1 error, 2 warnings in 61.0s (0:01:01)", ""]
    assert total(lines) == "1 failed, 1 errors, 5 passed, 2 skipped, 3 warnings"
    assert total([]) == "no counts"


def test_the_first_failure_is_the_status() -> None:
    assert [outcome(s) for s in ([0, 0], [0, 5], [5, 5], [5, 1], [0, 2], [1, 3], [-9, 0])] == [0, 0, 5, 1, 2, 1, 9]


def test_the_lanes_of_vllm_hold_each_file_of_the_marker_once() -> None:
    lanes = vllm_lanes()
    files = [file for lane in lanes.values() for file in lane]
    assert len(files) == len(set(files)) > 8
    assert all((ROOT / file).is_file() for file in files)
    assert "tests/pipelines/test_vllm_run.py" in lanes["serving"]
    assert "tests/model_runtime/test_vllm_parity.py" in lanes["engines"]
    assert not set(files) & {"tests/test_lanes.py", "tests/model_runtime/test_parity.py"}
