"""Compile the CPU kernels once per machine, and load them; without a compiler or the instructions there are none."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

_log = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_SOURCES = ("norms.cpp", "attention.cpp", "decode.cpp", "linear.cpp", "int8.cpp")
_HEADERS = ("common.h", "dot.h", "dot8.h", "linear.h")
_NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni"}
_INSTRUCTIONS = tuple(f"-m{flag.replace('_', '')}" for flag in sorted(_NEEDED))
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-mfma", "-w", *_INSTRUCTIONS)
SWITCH = "CORPUSMILL_CPU_KERNELS"


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The kernels, compiled when this machine has not done so before (seconds); None where they cannot run.

    The environment variable CORPUSMILL_CPU_KERNELS=off leaves them out.
    """
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "false") or not _machine_fits():
        return None
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        _log.warning(
            "no C++ compiler here: bfloat16 on this CPU runs without the fast kernels; install g++ to get them"
        )
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        line = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [type(error).__name__]
        _log.warning("the CPU kernels cannot be built, bfloat16 runs without them: %s", line[0])
        return None


def _machine_fits() -> bool:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in text.splitlines() if line.startswith("flags")), "")
    return set(flags.split()) >= _NEEDED


def _built(compiler: str) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    content = b"\0".join((_FOLDER / name).read_bytes() for name in (*_HEADERS, *_SOURCES))
    stamp = hashlib.sha256(content + repr((version, _FLAGS)).encode()).hexdigest()[:20]
    target = _cache() / f"cpu-kernels-{stamp}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fresh = Path(scratch) / target.name
            command = [compiler, *_FLAGS, "-o", str(fresh), *(str(_FOLDER / name) for name in _SOURCES)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
            # Whole or absent, whoever else compiles at the same time.
            os.replace(fresh, target)
    return target


def _cache() -> Path:
    """A folder that only this user can write to: what lies there is loaded into the process."""
    try:
        # Its own: the folder above may have been made for others to write to.
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corpusmill" / "kernels"
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = base.stat()
        if (
            found.st_uid == os.getuid()
            and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            and os.access(base, os.W_OK)
        ):
            return base
    except (OSError, RuntimeError):
        pass  # no home, or none that can be written to
    return Path(tempfile.mkdtemp(prefix="corpusmill-"))
