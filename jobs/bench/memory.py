"""Memory of this process: at rest, its peak since a mark, and a limit that turns too much into an error."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys

_STATUS = "/proc/self/status"
# Of what is available: the rest is for everybody else.
_SHARE = 0.9


def rest() -> int:
    """Bytes resident now, after giving back what is free."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS") or _maxrss()


def mark() -> None:
    """Forget the peak so far, where the system can."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak() -> int:
    """The most bytes resident since `mark`; since the process began where the system cannot forget."""
    return _status("VmHWM") or _maxrss()


def limit() -> None:
    """Let this process allocate what is available now and no more: it gets an error where a machine would be lost."""
    available, used = _field("/proc/meminfo", "MemAvailable"), _status("VmData")
    if available and used:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (used + int(available * _SHARE), hard))


def die_first() -> None:
    """When memory runs out all the same, this process is the one to go, not the one that reports it."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def _status(name: str) -> int:
    return _field(_STATUS, name)


def _field(path: str, name: str) -> int:
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _maxrss() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
