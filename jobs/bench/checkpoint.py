"""The checkpoint that is measured: full size, random weights, written once."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from model_runtime.errors import ModelError


def write_checkpoint(folder: Path, size: str, say: Callable[[str], None] = lambda line: None) -> Path:
    """The random checkpoint of `size` in `folder`, made in a process of its own unless it is there already."""
    if (folder / "config.json").exists():
        return folder
    say(f"writing a {size} checkpoint with random weights to {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Gigabytes pass through it, and this process measures nothing but still holds what it once held.
    process = multiprocessing.get_context("spawn").Process(target=_write, args=(folder, size), daemon=True)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise ModelError(f"the {size} checkpoint could not be written to {folder} (exit code {process.exitcode})")
    return folder


def _write(folder: Path, size: str) -> None:
    # Ctrl-C is for the parent, which ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from model_runtime.synthetic import make_random_checkpoint

    from .texts import DOCUMENTS

    # Made beside its place and moved there when it is whole: a killed benchmark leaves no half model.
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    dtype = torch.float32 if size == "demo" else torch.bfloat16
    device = "cuda" if torch.cuda.is_available() else "cpu"
    texts = [document.text for document in DOCUMENTS]
    make_random_checkpoint(partial, texts=texts, size=size, dtype=dtype, device=device)
    partial.rename(folder)
