"""Choose a backend in one place, and import it there."""

from __future__ import annotations

from .errors import ModelError
from .types import Backend, EngineConfig


def load_backend(config: EngineConfig) -> Backend:
    """Load `config.model` into the backend that `config.backend` names; ModelError when it cannot be used."""
    match config.backend:
        case "native":
            from .engine import NativeBackend

            return NativeBackend.load(config)
        case "transformers":
            from .backends.transformers import TransformersBackend

            return TransformersBackend.load(config)
        case other:
            raise ModelError(f"backend {other!r} is not known; choose native or transformers")
