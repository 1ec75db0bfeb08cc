"""What T5Gemma 2 computes: documents in, generations out. Knows no Ray and no Parquet."""

from .errors import ErrorCode, ModelError, RequestError
from .load import load_backend
from .types import Backend, Decode, EngineConfig, EngineStats, Generation, Request, Sampling

__all__ = [
    "Backend",
    "Decode",
    "EngineConfig",
    "EngineStats",
    "ErrorCode",
    "Generation",
    "ModelError",
    "Request",
    "RequestError",
    "Sampling",
    "load_backend",
]
