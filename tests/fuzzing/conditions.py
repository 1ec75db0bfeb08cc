"""Conditions of a job file against columns of every type: the rows that pass, or one line."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipelines.errors import SourceError
from pipelines.shards import passing
from workers.conditions import Condition

from .surface import Surface, answered, line

_READ = TypeAdapter(tuple[Condition, ...])
_WHEN = datetime.datetime(2024, 1, 31, 12, 30, tzinfo=datetime.UTC)
TABLE = pa.table(
    {
        "text": ["a", "b", None, "ü"],
        "large": pa.array(["a", "b", None, ""], pa.large_string()),
        "view": pa.array(["a", "b", None, ""], pa.string_view()),
        "words": pa.array(["a", "b", None, "a"]).dictionary_encode(),
        "small": pa.array([1, 2, None, 127], pa.int8()),
        "whole": pa.array([1, 2, None, 1 << 62], pa.int64()),
        "positive": pa.array([1, 2, None, (1 << 64) - 1], pa.uint64()),
        "number": [0.5, float("nan"), None, float("inf")],
        "half": pa.array([0.5, 1.5, None, 2.0], pa.float16()),
        "decimal": pa.array([Decimal("1.50"), Decimal("2.00"), None, Decimal("-9.99")], pa.decimal128(5, 2)),
        "flag": [True, False, None, True],
        "day": pa.array([_WHEN.date()] * 3 + [None], pa.date32()),
        "moment": pa.array([_WHEN] * 3 + [None], pa.timestamp("us", "UTC")),
        "local": pa.array([_WHEN.replace(tzinfo=None)] * 3 + [None], pa.timestamp("ms")),
        "clock": pa.array([datetime.time(1, 2)] * 3 + [None], pa.time64("us")),
        "span": pa.array([datetime.timedelta(1)] * 3 + [None], pa.duration("s")),
        "data": [b"a", b"\xff", None, b""],
        "list": [["a"], [], None, [None]],
        "struct": [{"a": 1}, {"a": None}, None, {"a": 2}],
        "nothing": pa.nulls(4),
    }
)
_OPERATORS = ("=", "==", "!=", "<", "<=", ">", ">=", "in", "not in")
# A date cannot stand in JSON: as {"date": text} and {"moment": text} here.
_SCALARS: tuple[Any, ...] = (
    "a", "", "ü", "\x00", "2024-01-31", "2024-01-31T12:30:00Z", "1", "1.5", "true", 0, 1, -1, 127, 128, 1 << 31,
    1 << 62, (1 << 63) - 1, 1 << 63, -(1 << 63), 10**40, 0.5, 1.0, 1e308, float("nan"), float("inf"), True, False,
    {"date": "2024-01-31"}, {"date": "0001-01-01"}, {"date": "9999-12-31"}, {"moment": "2024-01-31T12:30:00+00:00"},
    {"moment": "2024-01-31T12:30:00"}, {"moment": "9999-12-31T23:59:59.999999"}, None, [], {},
)  # fmt: skip
# What fits the columns, by their names.
_FITTING: dict[str, tuple[Any, ...]] = {
    "text large view words data": ("a", "b", "", "ü"),
    "small whole positive decimal": (0, 1, 2, 127),
    "number half": (0.5, 1, 2.0, float("nan")),
    "flag": (True, False),
    "day": ({"date": "2024-01-31"}, {"date": "0001-01-01"}, {"date": "9999-12-31"}),
    "moment": ({"moment": "2024-01-31T12:30:00+00:00"},),
    "local": ({"moment": "2024-01-31T12:30:00"}, {"date": "2024-01-31"}),
}
_FIT = {name: values for names, values in _FITTING.items() for name in names.split()}
_scalar = st.sampled_from(_SCALARS)


@st.composite
def conditions(draw: Any) -> list[Any]:
    """One or more conditions, most of them on columns of `TABLE`."""
    made = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        known = draw(st.integers(0, 15))
        column = draw(st.sampled_from((*_FIT, *TABLE.column_names) if known else ("absent", "", "a.b")))
        operator = draw(st.sampled_from(_OPERATORS if draw(st.integers(0, 15)) else ("~", "", "IN", "is")))
        value = _scalar if draw(st.integers(0, 4)) == 0 else st.sampled_from(_FIT.get(column, _SCALARS))
        if operator in ("in", "not in") and draw(st.integers(0, 9)):
            # One kind in a list, a null beside it now and then, as the file's reader asks for.
            made.append(
                [column, operator, draw(st.lists(value, min_size=1, max_size=3)) + [None] * draw(st.integers(0, 1))]
            )
        else:
            made.append([column, operator, draw(value)])
    return made


def dated(value: Any) -> Any:
    """A case's value with its dates."""
    if isinstance(value, list):
        return [dated(entry) for entry in value]
    match value:
        case {"date": str(text)}:
            return datetime.date.fromisoformat(text)
        case {"moment": str(text)}:
            return datetime.datetime.fromisoformat(text)
    return value


def _check(case: list[Any]) -> bool:
    try:
        read = _READ.validate_python([(column, operator, dated(value)) for column, operator, value in case])
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            line(problem["msg"])
        return False
    return answered(lambda: passing(TABLE, read, "source.filter"), SourceError)


SURFACE = Surface(name="conditions", cases=conditions(), check=_check, share=110)
