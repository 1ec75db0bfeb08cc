"""A small share of the fuzzing in every test run, the same inputs each time; and every input that once escaped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import NAMES, cases, surface_named
from .runner import FOUND, Report, replay, run
from .surface import Escaped, Surface, answered, honest, line

# `make fuzz` runs a hundred thousand.
_INPUTS = 8_000 if os.environ.get("CI") else 2_400
# Of each surface: neither nearly all inputs harmless nor nearly all refused at the door.
_LEAST_ACCEPTED = 0.05


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """What came of every surface, one after the other: other tests run beside them."""
    surfaces = [surface_named(name) for name in NAMES]
    return {report.surface: report for report in run(surfaces, _INPUTS, first_seed=0, jobs=1, keep=False)}


@pytest.mark.parametrize("name", NAMES)
def test_every_input_works_or_is_refused_in_one_line(reports: dict[str, Report], name: str) -> None:
    report = reports[name]
    assert report.why is None, report.why
    assert report.inputs >= 10
    assert report.accepted >= _LEAST_ACCEPTED * report.inputs, report


def _found() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(FOUND.glob("*.json")):
        found.setdefault(cases.load(path)[0], []).append(path)
    return found


@pytest.mark.parametrize("name", sorted(_found()))
def test_inputs_that_once_escaped_do_so_no_more(name: str) -> None:
    report = replay(surface_named(name), _found()[name])
    assert report.why is None, report.why
    assert report.inputs == len(_found()[name])


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("crash", "the process ended with -6"),
        ("hang", "no answer within 2 s"),
        ("memory", "MemoryError"),
        ("raise", "KeyError"),
    ],
)
def test_the_watch_sees_what_no_test_in_the_same_process_could(case: str, said: str, tmp_path: Path) -> None:
    from . import selftest

    path = cases.save(tmp_path, "selftest", case, "")
    report = replay(selftest.SURFACE, [path])
    assert report.why is not None and said in report.why


def test_a_hunt_finds_and_shrinks(tmp_path: Path) -> None:
    from . import selftest
    from .child import hunt

    found = hunt(selftest.NUMBERS, 2_000, 0, lambda case: None)
    assert "Escaped" in found["why"]
    assert found["case"] == [100]


def test_messages_are_held_to_one_line() -> None:
    for message in ("", "two\nlines", "x" * 5000):
        with pytest.raises(Escaped):
            line(message)
    for code in ("internal", "out_of_memory"):
        with pytest.raises(Escaped):
            honest(code, "TypeError: x")
    with pytest.raises(ValueError):
        answered(lambda: int("x"), KeyError)


def test_a_case_comes_back_as_it_was(tmp_path: Path) -> None:
    case = {"data": b"\x00\xff", "text": "\ud800", "number": 10**400, "list": [None, True, 0.5]}
    path = cases.save(tmp_path, "images", case, "why")
    assert cases.load(path) == ("images", case)
    assert cases.loads(cases.dumps(case)) == case


def test_every_surface_has_a_share() -> None:
    surfaces: list[Surface] = [surface_named(name) for name in NAMES]
    assert [surface.name for surface in surfaces] == list(NAMES)
    assert all(surface.share > 0 for surface in surfaces)
