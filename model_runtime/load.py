"""Choose a backend in one place, and import it there."""

from __future__ import annotations

import os

from .errors import ModelError
from .types import Backend, EngineConfig


def load_backend(config: EngineConfig) -> Backend:
    """Load `config.model` into the backend that `config.backend` names; ModelError when it cannot be used."""
    # Read when torch's OpenMP is loaded, which is below. By default its threads spin while they wait for each other; on
    # a core that another process uses too, one such wait takes milliseconds (seen: 17 times slower on two cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    match config.backend:
        case "native":
            from .engine import NativeBackend

            return NativeBackend.load(config)
        case "transformers":
            from .backends.transformers import TransformersBackend

            return TransformersBackend.load(config)
        case other:
            raise ModelError(f"backend {other!r} is not known; choose native or transformers")
