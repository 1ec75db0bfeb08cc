"""A run's job file, as its manifest holds it: ${ENV} unexpanded, credentials hidden."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pipelines.job import JobSpec

from .spec import JobFileError, parse_job


def recorded_job(manifest: Mapping[str, Any]) -> JobSpec | str:
    """The job of a run, filled in from the environment as it is now; or why it cannot be, in a few words."""
    entry = manifest.get("job") or {}
    text = str(entry.get("text") or "")
    if not text.strip():
        return "its manifest holds no job file"
    if "***" in text and hashlib.sha256(text.encode()).hexdigest() != entry.get("sha256"):
        return "its manifest holds the job file without its credentials"
    try:
        return parse_job(text, "its job file")
    except JobFileError as error:
        return error.problems[0]
