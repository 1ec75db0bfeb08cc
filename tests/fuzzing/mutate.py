"""Strategies that damage good inputs a little, so that most of them get past the first check."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

# What breaks readers: limits of integers and floats, half characters, wrong kinds, deep and long ones.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    255,
    10**9,
    1 << 31,
    1 << 63,
    -(10**30),
    10**400,
    0.0,
    0.5,
    -0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "x",
    "5",
    "two\nlines",
    "\ud800",
    "\x00",
    "\u2028",
    "\x1b[31m",
    "long" * 500,
    "../..",
    "${HOME}",
    "$${x}",
    "quick_gelu",
    "linear",
    "full_attention",
    "de",
    "auto",
    "native",
    "summarize",
    "2024-01-01",
    [],
    [1],
    [1, 2],
    [0.5, 0.5],
    [None],
    ["x"],
    [[]],
    [{}],
    [0] * 100,
    ["full_attention"] * 3,
    ["a", "=", 1],
    {},
    {"x": 1},
    {"rope_type": "linear"},
    {"full_attention": 5},
    {"": {"": {}}},
)
KEYS = (
    "",
    "x\ny",
    "tasks",
    "prompt",
    "rope_scaling",
    "type",
    "factor",
    "where",
    "filter",
    "language",
    "__class__",
    "\ud800",
)
NUMBERS = (0, 1, 2, 4, 8, 16, 32, 127, 128, 255)


@st.composite
def damaged(draw: Draw, seeds: Sequence[bytes], most: int = 4) -> bytes:
    """One of `seeds` with up to `most` changes of bytes: flipped, overwritten, cut out, doubled, cut off, joined."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, most))):
        size = len(data)
        at = draw(st.integers(0, max(0, size - 1)))
        match draw(st.integers(0, 11)):
            case 0 | 1 | 2 | 3 if size:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 4 | 5 | 6 if size:
                data[at] = draw(st.sampled_from(NUMBERS))
            case 7:
                data[at : at + 4] = draw(
                    st.sampled_from((b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80"))
                )
            case 8:
                del data[at : at + draw(st.integers(1, 16))]
            case 9:
                data[at:at] = data[at : at + draw(st.integers(1, 32))]
            case 10:
                del data[at:]
            case _:
                other = draw(st.sampled_from(seeds))
                data[at:] = other[min(at, len(other)) :] if draw(st.booleans()) else other
    return bytes(data)


@st.composite
def damaged_tree(
    draw: Draw, seeds: Sequence[Any], values: Sequence[Any] = VALUES, keys: Sequence[str] = KEYS, most: int = 3
) -> Any:
    """A JSON document with up to `most` values replaced, nudged, deleted, doubled or put in."""
    tree = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, most))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.integers(0, 6)):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw(st.sampled_from(keys))] = copy.deepcopy(draw(st.sampled_from(values)))
            case 1:
                holder.insert(key, copy.deepcopy(draw(st.sampled_from(values))))
            case 2 | 3 | 4:
                holder[key] = _near(holder[key], draw)
            case _:
                holder[key] = copy.deepcopy(draw(st.sampled_from(values)))
    return tree


@st.composite
def damaged_text(draw: Draw, seeds: Sequence[str], pieces: Sequence[str], most: int = 4) -> str:
    """A text with up to `most` words swapped, lines moved, pieces put in or parts cut out."""
    text = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(text)))
        match draw(st.integers(0, 5)):
            case 0 | 1:
                text = text[:at] + draw(st.sampled_from(pieces)) + text[at:]
            case 2:
                words = text.split(" ")
                words[at % len(words)] = draw(st.sampled_from(pieces))
                text = " ".join(words)
            case 3:
                text = text[:at] + text[at + draw(st.integers(1, 12)) :]
            case 4:
                lines = text.split("\n")
                line = lines.pop(at % len(lines))
                lines.insert(draw(st.integers(0, len(lines))), line)
                text = "\n".join(lines)
            case _:
                text = text[:at] + draw(st.text(max_size=4)) + text[at:]
    return text


def _near(value: Any, draw: Draw) -> Any:
    """The same kind of value, another one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        steps = (value + 1, value - 1, value * 2, value // 2 if value == value else value, -value)
        return draw(st.sampled_from(steps if abs(value) > 1 << 60 else (*steps, value + 0.5, float(value))))
    if isinstance(value, str):
        return draw(st.sampled_from((value.upper(), value + "x", value[:-1], value * 2, [value], "")))
    if isinstance(value, list):
        return draw(st.sampled_from((value + value, value[:1], value[::-1], [value], {})))
    return draw(st.sampled_from(([value], {**value, "x": 1}, dict(list(value.items())[:1]))))


def _places(value: Any) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries):
        yield value, key
        yield from _places(inner)
