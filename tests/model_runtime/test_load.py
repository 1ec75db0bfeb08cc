"""What is decided before torch loads: how OpenMP's threads wait for each other."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from model_runtime import EngineConfig, ModelError, load_backend
from model_runtime.load import check_installed
from tests.checkpoints import SHAPES, cached_checkpoint

CODE = """
import os, sys
from model_runtime import EngineConfig, ModelError, load_backend
try:
    load_backend(EngineConfig(model="nowhere/at-all-here", shares_cores=sys.argv[1] == "shared", backend="elsewhere"))
except ModelError:
    print(os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("cores", "given", "expected"),
    [
        ("shared", {}, "PASSIVE 0"),
        ("own", {}, "PASSIVE 2000"),
        ("own", {"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
        ("shared", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
    ],
)
def test_threads_wait_as_the_user_says_or_as_suits_who_shares_the_cores(
    cores: str, given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = subprocess.run([sys.executable, "-c", CODE, cores], capture_output=True, text=True, check=True)
    assert found.stdout.split() == expected.split()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_planning_says_it_too_before_anything_is_loaded() -> None:
    check_installed("native")
    with pytest.raises(ModelError, match="setup-vllm"):
        check_installed("vllm")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_without_vllm_one_line_says_how_to_install_it() -> None:
    with pytest.raises(ModelError, match=r"setup-vllm.*corpusmill\[vllm\].*docs/vllm.md") as raised:
        load_backend(EngineConfig(model=str(cached_checkpoint(SHAPES[0])), backend="vllm", device="cpu"))
    assert "\n" not in str(raised.value)
