"""Choose a backend in one place, and import it there."""

from __future__ import annotations

import os
from importlib.util import find_spec

from .errors import ModelError
from .types import Backend, EngineConfig

_SPINS = "2000"


VLLM_MISSING = (
    "the vllm backend needs vLLM in an environment of its own: `make setup-vllm` on a CPU, "
    "pip install 'corpusmill[vllm]' on a GPU (docs/vllm.md)"
)


def check_installed(backend: str) -> None:
    """ModelError when `backend` needs a package that is not in this environment; imports nothing."""
    if backend == "vllm" and find_spec("vllm") is None:
        raise ModelError(VLLM_MISSING)


def load_backend(config: EngineConfig) -> Backend:
    """Load `config.model` into the backend that `config.backend` names; ModelError when it cannot be used."""
    _choose_waiting(config.shares_cores)
    match config.backend:
        case "native":
            from .engine import NativeBackend

            return NativeBackend.load(config)
        case "transformers":
            from .backends.transformers import TransformersBackend

            return TransformersBackend.load(config)
        case "vllm":
            from .backends.vllm import VllmBackend

            return VllmBackend.load(config)
        case other:
            raise ModelError(f"backend {other!r} is not known; choose native, transformers or vllm")


def _choose_waiting(shares_cores: bool) -> None:
    """Let OpenMP's threads sleep while they wait for each other, or spin for microseconds first.

    Read when torch's OpenMP is loaded. By default they spin for milliseconds: on a core that another process uses too,
    that made a tiny model 17 times slower. Not spinning at all costs a wake-up for each of a step's hundreds of small
    products, a third of a step of one row, where nobody else wants the cores. docs/benchmarks.md has the figures.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        # GNU's goes by this in place of the policy; others do not know it.
        os.environ.setdefault("GOMP_SPINCOUNT", "0" if shares_cores else _SPINS)
