"""Checkpoints: which tensors a folder holds, and reading them. Safetensors only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import ModelError
from .folder import weight_files
from .settings import named

# Checkpoint layouts differ by these infixes only: "released" leaves them out, "in memory" spells them.
_INFIXES = {"encoder.text_model.": "encoder.", "vision_tower.vision_model.": "vision_tower."}
# Tensors that a checkpoint may hold and this runtime does not use.
_UNUSED_PREFIXES = ("encoder.vision_tower.head.", "encoder.vision_tower.embeddings.position_ids")
_TIED_COPIES = ("decoder.embed_tokens.weight", "decoder.embed_tokens.eoi_embedding", "lm_head.out_proj.weight")


def canonical_name(name: str) -> str:
    """A tensor's name without the infixes that only one of the layouts spells."""
    name = name.removeprefix("model.")
    for infix, plain in _INFIXES.items():
        name = name.replace(infix, plain)
    return name


def load_tensors(folder: Path, expected: Mapping[str, torch.Size], tied: bool) -> Iterator[tuple[str, Tensor]]:
    """Each expected tensor once, by canonical name, read lazily from the weight files.

    ModelError names the first tensor that is missing, unknown, doubled or of another shape.
    """
    for name, read in _stored(folder, expected, tied):
        yield name, read()


def _stored(folder: Path, expected: Mapping[str, torch.Size], tied: bool) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    seen: set[str] = set()
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as shard:
                for stored in shard.keys():  # noqa: SIM118 - not a mapping
                    name = canonical_name(stored)
                    if is_unused(name, tied):
                        continue
                    check_tensor(path, stored, tuple(shard.get_slice(stored).get_shape()), expected, seen)
                    yield name, partial(shard.get_tensor, stored)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read as safetensors: {_first_line(error)}") from error
    check_complete(folder, expected, seen)


def check_tensors(folder: Path, expected: Mapping[str, torch.Size], tied: bool) -> None:
    """Compare the weight files' headers with what is expected, reading no tensor; ModelError as `load_tensors`."""
    for _ in _stored(folder, expected, tied):
        pass


def weights_dtype(folder: Path) -> torch.dtype:
    """The dtype the weights are stored in, from the first tensor's header; the tensor itself is not read."""
    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    path = weight_files(folder)[0]
    try:
        with safe_open(path, framework="pt") as shard:
            for stored in shard.keys():  # noqa: SIM118 - not a mapping
                return names.get(shard.get_slice(stored).get_dtype(), torch.float32)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {_first_line(error)}") from error
    raise ModelError(f"{path} holds no tensor")


def is_unused(name: str, tied: bool) -> bool:
    """Whether a checkpoint may hold the tensor of this canonical name though no runtime uses it."""
    return name.startswith(_UNUSED_PREFIXES) or (tied and name in _TIED_COPIES)


def check_tensor(
    where: Path | str, stored: str, shape: tuple[int, ...], expected: Mapping[str, torch.Size], seen: set[str]
) -> str:
    """The canonical name of a tensor stored as `stored`, now in `seen`; ModelError when it is none that is expected."""
    name = canonical_name(stored)
    if name not in expected:
        raise ModelError(f"{where} holds the tensor {named(stored)}, which a T5Gemma 2 of this config does not have")
    if name in seen:
        raise ModelError(f"{where} holds the tensor {named(name)} a second time")
    if shape != tuple(expected[name]):
        raise ModelError(f"{where}: tensor {stored} has shape {list(shape)}, the config says {list(expected[name])}")
    seen.add(name)
    return name


def check_complete(where: Path | str, expected: Mapping[str, torch.Size], seen: set[str]) -> None:
    """ModelError names the first expected tensor that was not seen."""
    missing = sorted(set(expected) - seen)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{where} lacks the tensor {missing[0]}{more}")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
