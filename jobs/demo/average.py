"""The mean of two checkpoints of one training: what each forgot of the other's documents, the mean mostly knows."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"


def average(earlier: Path, later: Path, out: Path) -> Path:
    """Makes `out` a model folder with the mean of the weights of `earlier` and `later`, and all else of `later`.

    What `out` was before is replaced, and it appears whole. ValueError when their tensors differ in name, shape or
    type. (Wortsman et al., Model soups, arXiv:2203.05482.)
    """
    first, second = load_file(earlier / WEIGHTS), load_file(later / WEIGHTS)
    if {name: (t.shape, t.dtype) for name, t in first.items()} != {n: (t.shape, t.dtype) for n, t in second.items()}:
        raise ValueError(f"{earlier} and {later} are not checkpoints of one model")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in later.iterdir():
        if file.is_file() and file.name != WEIGHTS and not file.name.startswith("."):
            shutil.copy(file, partial)
    mean = {name: ((tensor.astype("f8") + second[name]) / 2).astype(tensor.dtype) for name, tensor in first.items()}
    save_file(mean, partial / WEIGHTS, metadata={"format": "pt"})
    shutil.copymode(later / WEIGHTS, partial / WEIGHTS)
    card = partial / "README.md"
    card.write_text(_said(card.read_text(encoding="utf-8"), earlier, later), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def _said(card: str, earlier: Path, later: Path) -> str:
    """The later one's model card, with what was done after it."""
    return (
        f"{card.rstrip()}\n\n## Mean\n\n"
        f"The weights are the mean of this training's (`{later.name}`) and of those that it began with "
        f"(`{earlier.name}`). Loss and scores above are those before the mean was taken.\n"
    )
