"""JSON documents with mistakes in them, the same for the same seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any


def mutated(document: dict[str, Any], *, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` copies of `document`, each with up to three values replaced, deleted or inserted somewhere."""
    rng = random.Random(seed)
    for _ in range(count):
        made = copy.deepcopy(document)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _mutate(made, rng)
        yield made


def refused(read: Callable[[], object], error: type[Exception]) -> str | None:
    """What `read` says when it raises `error`; None when it works. A subclass of ValueError is no ValueError here."""
    try:
        read()
    except error as raised:
        if type(raised) is not error:
            raise
        return str(raised)
    return None


def _mutate(document: dict[str, Any], rng: random.Random) -> None:
    places = list(_places(document))
    if not places:
        document["version"] = _value(rng)
        return
    holder, key = rng.choice(places)
    match rng.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("", "x\ny", "tasks", "prompt", "rope_scaling", "type", "factor"))] = _value(rng)
        case 1:
            holder.insert(key, _value(rng))
        case _:
            holder[key] = _near(holder[key], rng) if rng.random() < 0.3 else _value(rng)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield value, key
        yield from _places(inner)


def _near(value: Any, rng: random.Random) -> Any:
    """The same kind of value, another one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [copy.deepcopy(value)] if rng.random() < 0.5 else str(value)
    steps = (value + 1, value - 1, value * 2, 3 * value, -value)
    return rng.choice(steps if abs(value) > 1 << 60 else (*steps, value + 0.5, float(value)))


def _value(rng: random.Random) -> Any:
    return rng.choice(
        (
            None, True, False, 0, 1, -1, 2, 3, 7, 16, 10**9, 1 << 63, -(10**30), 10**400,
            0.0, 0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"),
            "", "x", "5", "two\nlines", "\ud800", "long" * 500, "quick_gelu", "linear", "full_attention",
            [], [1], [1, 2], [0.5, 0.5], [None], ["x"], [[]], [{}], [0] * 100, ["full_attention"] * 3,
            {}, {"x": 1}, {"rope_type": "linear"}, {"full_attention": 5}, {"": {"": {}}},
        )
    )  # fmt: skip
