"""Where files are: any fsspec URL, one-line errors without secrets, model folders staged once per node."""

from __future__ import annotations

from .file_info import FileInfo, hidden
from .local_files import remove_dead_temporaries, scratch_folder
from .location import Location
from .retry import impatient
from .source_files import PARQUET_SUFFIXES, base_folder, expand
from .staging import stage_model
from .storage_errors import Problem, StorageError, explain, full_scratch, redact, redact_url, storage_errors

__all__ = [
    "PARQUET_SUFFIXES",
    "FileInfo",
    "Location",
    "Problem",
    "StorageError",
    "base_folder",
    "expand",
    "explain",
    "full_scratch",
    "hidden",
    "impatient",
    "redact",
    "redact_url",
    "remove_dead_temporaries",
    "scratch_folder",
    "stage_model",
    "storage_errors",
]
