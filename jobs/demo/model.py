"""The demo's model: T5Gemma 2's architecture, a few layers small, with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

from .texts import DOCUMENTS

NOISE = (
    "This model is untrained: its weights are random numbers, so the texts above are noise. The demo shows the flow; "
    "for real texts put a trained checkpoint into the job file's model.path."
)


def write_model(folder: Path) -> Path:
    """Make the random checkpoint in `folder`, unless it stands there already; returns `folder`."""
    if (folder / "config.json").exists():
        return folder
    from model_runtime.synthetic import make_random_checkpoint

    # Made beside its place and moved there when it is whole: a killed demo leaves no half model.
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    make_random_checkpoint(partial, texts=[d.text for d in DOCUMENTS if d.text], seed=0, size="demo")
    partial.rename(folder)
    return folder
