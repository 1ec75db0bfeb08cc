"""Safetensors headers and the index of a sharded model: tensors of the expected shapes, or one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from model_runtime.errors import ModelError
from model_runtime.folder import model_revision, weight_files

from .mutate import NUMBERS, VALUES, damaged_tree
from .surface import Surface, line

_SHAPES = {
    "encoder.layers.0.mlp.up_proj.weight": [8, 4],
    "encoder.norm.weight": [4],
    "decoder.layers.0.self_attn.q_proj.weight": [4, 4],
    "encoder.vision_tower.post_layernorm.bias": [3],
    "encoder.embed_tokens.weight": [16, 4],
}
_KINDS = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "U8": 1, "F8_E4M3": 1}
_INDEX = "model.safetensors.index.json"
_NAMES = ("a.safetensors", "b.safetensors")
_WRONG = (
    *VALUES,
    "F32",
    "BF16",
    "F64",
    "I4",
    "BOOL",
    [4, 8],
    [8, 4, 1],
    [0],
    [0, 8],
    [8, 0],
    [1 << 40],
    [1 << 63, 2],
    [-1],
)
_KEYS = (
    "__metadata__",
    "dtype",
    "shape",
    "data_offsets",
    "",
    "two\nlines",
    "encoder.norm.weight",
    "model.encoder.norm.weight",
)


def _header(prefix: str, kind: str, names: tuple[str, ...]) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        size = _KINDS[kind]
        for side in _SHAPES[name]:
            size *= side
        header[prefix + name] = {"dtype": kind, "shape": _SHAPES[name], "data_offsets": [at, at + size]}
        at += size
    return header


_ALL = tuple(_SHAPES)
_WHOLE = [
    _header("", "F32", _ALL),
    _header("model.", "BF16", _ALL),
    _header("model.", "F32", (*_ALL[:3], _ALL[4], _ALL[3])),
    _header("", "U8", _ALL),
]
_FIRST, _SECOND = _header("", "F32", _ALL[:3]), _header("", "F32", _ALL[3:])
_INDEXES = [
    {"metadata": {"total_size": 500}, "weight_map": {n: _NAMES[i > 2] for i, n in enumerate(_ALL)}},
    {"weight_map": {n: _NAMES[i > 2] for i, n in enumerate(_ALL)}},
]
_INDEX_VALUES = (
    *VALUES,
    "a.safetensors",
    "b.safetensors",
    "c.safetensors",
    "../a.safetensors",
    "/etc/hostname",
    ".",
    "a\0b",
)


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    sharded = draw(st.booleans())
    index = draw(damaged_tree(_INDEXES, _INDEX_VALUES, (*_KEYS, "weight_map"), draw(st.sampled_from((0, 0, 2)))))
    index = index if sharded else None
    seeds = [[_FIRST], [_SECOND]] if sharded else [_WHOLE]
    # Damage in one place at a time, mostly: more hides what is behind the first.
    where = draw(st.integers(0, 3))
    headers = [
        draw(damaged_tree(seed, _WRONG, _KEYS, 2 if where == 3 or (index is None) or n == where else 0))
        for n, seed in enumerate(seeds)
    ]
    damage = draw(st.integers(0, 15))
    return {
        "index": index,
        "headers": headers,
        # What the length before the header says beyond the truth, and bytes too many or too few at the end.
        "length": draw(st.sampled_from((-1, 1, 8, 1 << 31, 1 << 62, -40))) if damage == 0 else 0,
        "rest": draw(st.sampled_from((-1, -7, 1, 64))) if damage == 1 else 0,
        "flip": [draw(st.integers(0, 60)), draw(st.sampled_from(NUMBERS))] if damage == 2 else None,
    }


def _file(header: Any, case: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    ends = [4]
    for entry in header.values() if isinstance(header, dict) else ():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list):
            ends += [end for end in offsets if isinstance(end, int) and 0 <= end < 4096]
    data = bytearray((len(text) + case["length"]).to_bytes(8, "little", signed=True) + text + bytes(max(ends)))
    if case["flip"]:
        at, value = case["flip"]
        data[at % len(data)] = value
    return bytes(data + bytes(case["rest"]) if case["rest"] >= 0 else data[: case["rest"]])


@cache
def _expected() -> dict[str, Any]:
    import torch

    return {name: torch.Size(shape) for name, shape in _SHAPES.items()}


def _check(case: dict[str, Any]) -> bool:
    from model_runtime.checkpoint import check_tensors, load_tensors, weights_dtype

    folder = Path("weights")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if case["index"] is not None:
        (folder / _INDEX).write_text(json.dumps(case["index"]))
    names = _NAMES if case["index"] is not None else ("model.safetensors",)
    for name, header in zip(names, case["headers"]):
        (folder / name).write_bytes(_file(header, case))
    worked = [
        _refused(lambda: weight_files(folder)) is None,
        _refused(lambda: weights_dtype(folder)) is None,
        _refused(lambda: model_revision(folder)) is None,
    ]
    for tied in (True, False):
        worked.append(_refused(lambda tied=tied: check_tensors(folder, _expected(), tied)) is None)
        worked.append(_refused(lambda tied=tied: list(load_tensors(folder, _expected(), tied))) is None)
    return all(worked)


def _refused(call: Callable[[], object]) -> str | None:
    try:
        call()
    except ModelError as error:
        line(str(error))
        return str(error)
    return None


SURFACE = Surface(name="weights", cases=_cases(), check=_check, share=90)
