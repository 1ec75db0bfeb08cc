"""A process of our own that may die: started, spoken to and watched, so that native code takes only itself down."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from model_runtime import ErrorCode

# A step that reports nothing for so long hangs; far above any honest one.
_HANG_SECONDS = 600.0
_PR_SET_PDEATHSIG = 1
_CLOSING_SECONDS = 10.0
_OOM_COUNTERS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events")


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended. `code` is what a row that is to blame for it gets; `what` follows "the process"."""

    code: ErrorCode
    what: str
    # By a signal that no input can raise: somebody killed it, and what was in flight is likely innocent.
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """A child's last words: an exception that leaves its state unknown. `out_of_memory`: one of the allocators'."""

    line: str
    out_of_memory: bool


def hang_seconds() -> float:
    """Seconds without progress after which a child is ended, for the smallest piece of work.

    CORPUSMILL_HANG_SECONDS changes them; what is no number above 0 there changes nothing.
    """
    with suppress(ValueError):
        if (seconds := float(os.environ.get("CORPUSMILL_HANG_SECONDS", ""))) > 0:
            return seconds
    return _HANG_SECONDS


class ChildProcess:
    """`python -m module` at the other end of a socket pair; what it says goes into `events` as (child, message).

    The last event is (child, Death), after everything it said. It ends when this process does, however that ends.
    """

    def __init__(self, module: str, events: queue.SimpleQueue[Any]) -> None:
        self._module = module
        self._events = events
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._broken: Broken | None = None
        self._ended_for: Death | None = None
        self._kill_wanted = threading.Event()
        self.heard = time.monotonic()
        # The process is started by the thread that waits for it: the kernel ends it when that thread ends.
        self._thread = threading.Thread(target=self._live, name=f"{module}-waiter", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Its process id, None before it has started."""
        return self._process.pid if self._process else None

    def send(self, message: Any) -> None:
        """Queue a message; never blocks, not on a child that hangs either."""
        self._outbox.put(message)

    def end(self, death: Death) -> None:
        """SIGKILL, and `death` is what it died of."""
        self._ended_for = self._ended_for or death
        self._kill_wanted.set()
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Let it end, and see to it that it does."""
        self._outbox.put(None)
        self._thread.join(_CLOSING_SECONDS)
        if self._thread.is_alive():
            self.end(Death(ErrorCode.INTERNAL, "did not end when it was told to"))
            self._thread.join(_CLOSING_SECONDS)

    def _live(self) -> None:
        ours, theirs = socket.socketpair()
        before = _oom_kills()
        try:
            with theirs:
                self._process = _start(self._module, theirs.fileno())
        except OSError as error:
            ours.close()
            self._events.put((self, Death(ErrorCode.ENGINE_CRASH, f"could not be started: {error}", outside=True)))
            return
        if self._kill_wanted.is_set():
            self._process.kill()
        link = Connection(ours.detach())
        reader = threading.Thread(target=self._read, args=(link,), name=f"{self._module}-reader", daemon=True)
        writer = threading.Thread(target=self._write, args=(link,), name=f"{self._module}-writer", daemon=True)
        reader.start()
        writer.start()
        status = self._process.wait()
        self._outbox.put(None)
        # All that it said comes before its death. A process that it left behind may hold the other end open.
        reader.join(_CLOSING_SECONDS)
        writer.join(_CLOSING_SECONDS)
        with suppress(OSError):
            link.close()
        self._events.put((self, self._ended_for or _death(status, self._broken, _oom_kills() > before)))

    def _read(self, link: Connection) -> None:
        with suppress(EOFError, OSError):
            while True:
                message = pickle.loads(link.recv_bytes())
                self.heard = time.monotonic()
                if isinstance(message, Broken):
                    self._broken = message
                else:
                    self._events.put((self, message))

    def _write(self, link: Connection) -> None:
        with suppress(OSError):
            while (message := self._outbox.get()) is not None:
                link.send_bytes(pickle.dumps(message, protocol=5))
            # It reads the end of the stream and leaves; what it still says is read meanwhile.
            with socket.socket(fileno=os.dup(link.fileno())) as half:
                half.shutdown(socket.SHUT_WR)


class Parent:
    """The child's end: messages from the process that started this one, None once it wants no more."""

    def __init__(self, arguments: list[str]) -> None:
        handle, parent = int(arguments[1]), int(arguments[2])
        _end_with(parent)
        # Ctrl-C goes to every process of the terminal: it is the parent's to act on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        faulthandler.enable()
        # A core file of a model's size would take minutes at each crash; the stack is in the log.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        os.set_inheritable(handle, False)
        self._link = Connection(handle)
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="parent-reader", daemon=True).start()

    def receive(self, block: bool = True) -> Any:
        """The next message; queue.Empty when there is none and `block` is off."""
        return pickle.loads(self._inbox.get(block=block))

    def send(self, message: Any) -> None:
        """Say something; ends this process when nobody is there to hear it."""
        try:
            self._link.send_bytes(pickle.dumps(message, protocol=5))
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        while True:
            try:
                self._inbox.put(self._link.recv_bytes())
            except (EOFError, OSError):
                # At once, whatever the main thread is in: what it would make, nobody waits for.
                os._exit(0)


def one_line(error: BaseException) -> str:
    """An exception as one line of a message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _start(module: str, handle: int) -> subprocess.Popen[bytes]:
    # The same modules as here, wherever they come from; -P: and none from the folder this happens to run in.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(handle), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        pass_fds=(handle,),
        env={**os.environ, "PYTHONPATH": paths},
    )


def _end_with(parent: int) -> None:
    """Ask the kernel to end this process with its parent, also where it hangs in native code."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it ended before we asked


def _death(status: int, broken: Broken | None, oom_killed: bool) -> Death:
    if broken is not None:
        # vLLM may have its model in a process below this one, and tells of that one's death alone.
        memory = broken.out_of_memory or (oom_killed and broken.line.startswith("EngineDeadError"))
        code = ErrorCode.OUT_OF_MEMORY if memory else ErrorCode.ENGINE_CRASH
        return Death(code, f"failed with {broken.line}")
    if status >= 0:
        return Death(ErrorCode.ENGINE_CRASH, f"ended by itself with exit code {status}")
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if -status == signal.SIGKILL and oom_killed:
        return Death(ErrorCode.OUT_OF_MEMORY, "was killed because memory ran out")
    outside = -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
    return Death(ErrorCode.ENGINE_CRASH, f"was ended by {name}", outside)


def _oom_kills() -> int:
    """Processes that the kernel has ended for want of memory, as far as it tells us."""
    total = 0
    for path in (*_OOM_COUNTERS, *_own_counters()):
        with suppress(OSError, ValueError, IndexError):
            for line in Path(path).read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                total += int(count) if name == "oom_kill" else 0
    return total


def _own_counters() -> list[str]:
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                return [f"/sys/fs/cgroup{path.rstrip('/')}/memory.events"]
            if "memory" in controllers.split(","):
                return [f"/sys/fs/cgroup/memory{path.rstrip('/')}/memory.oom_control"]
    return []
