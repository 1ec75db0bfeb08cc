"""The demo's model: T5Gemma 2's architecture, two million parameters, trained by `jobs/demo/train.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

MODEL = Path(__file__).parent / "model"


def copy_model(folder: Path) -> Path:
    """A copy of the model that ships with the project in `folder`, unless it stands there already; returns `folder`."""
    if (folder / "config.json").exists():
        return folder
    # Made beside its place and moved there when it is whole: a killed demo leaves no half model.
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(MODEL, partial)
    partial.rename(folder)
    return folder
