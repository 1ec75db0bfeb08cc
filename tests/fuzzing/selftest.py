"""A surface that does what none may, for the tests of the watch itself; no run includes it."""

from __future__ import annotations

import os
import time

from hypothesis import strategies as st

from .surface import Escaped, Surface


def _check(case: str) -> bool:
    match case:
        case "crash":
            os.abort()
        case "hang":
            time.sleep(60)
        case "memory":
            return bool(bytearray(64 << 30))
        case "raise":
            raise KeyError(case)
    return True


def _numbers(case: list[int]) -> bool:
    if any(number >= 100 for number in case):
        raise Escaped(f"{case}")
    return True


SURFACE = Surface(name="selftest", cases=st.just("fine"), check=_check, share=1, seconds=2.0)
NUMBERS = Surface(name="numbers", cases=st.lists(st.integers(0, 1000)), check=_numbers, share=1)
