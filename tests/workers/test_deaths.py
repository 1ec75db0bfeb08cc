"""What a child's end is told as: by its exit status, its last words, and what the kernel counted meanwhile."""

from __future__ import annotations

import signal

import pytest

from model_runtime import ErrorCode
from workers.child_process import Broken, _death


@pytest.mark.parametrize(
    ("status", "broken", "oom_killed", "code", "outside"),
    [
        (-signal.SIGKILL, None, True, ErrorCode.OUT_OF_MEMORY, False),
        (-signal.SIGKILL, None, False, ErrorCode.ENGINE_CRASH, True),
        (-signal.SIGSEGV, None, True, ErrorCode.ENGINE_CRASH, False),
        (1, Broken("MemoryError", True), False, ErrorCode.OUT_OF_MEMORY, False),
        (1, Broken("ValueError: no", False), True, ErrorCode.ENGINE_CRASH, False),
        # vLLM's own process was killed, and ours went on to tell of it.
        (1, Broken("EngineDeadError: EngineCore encountered an issue.", False), True, ErrorCode.OUT_OF_MEMORY, False),
        (1, Broken("EngineDeadError: EngineCore encountered an issue.", False), False, ErrorCode.ENGINE_CRASH, False),
        (7, None, True, ErrorCode.ENGINE_CRASH, False),
    ],
)
def test_a_death_by_its_signs(status, broken, oom_killed, code, outside) -> None:
    death = _death(status, broken, oom_killed)
    assert (death.code, death.outside) == (code, outside)
