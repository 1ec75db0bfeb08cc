"""A table's lease: one run publishes at a time, a dead one's place is taken over, a lost lease is noticed."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from infra.storage import Location, Problem, StorageError

from .errors import TableHeldError

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
# Two that found no lease at the same moment, on a store without conditional writes: the last to write has it, and
# both look again after this long.
_SETTLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a table: what lease.json says. `place` tells hosts, boots and containers apart, `born` process ids."""

    run_id: str
    job: str
    host: str
    pid: int
    started: str
    heartbeat: float
    place: str
    born: str
    token: str

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """None for a file that is no lease (an older writer's, or garbage)."""
        try:
            holder = cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return None
        texts = (holder.run_id, holder.job, holder.host, holder.started, holder.place, holder.born, holder.token)
        good = type(holder.pid) is int and type(holder.heartbeat) in (int, float) and abs(holder.heartbeat) < 1e12
        return holder if good and all(isinstance(text, str) for text in texts) else None


class Lease:
    """Holds a table while the `with` block runs; made by `acquire`.

    On local file systems exactly one of several starters gets it. On object stores the first does where conditional
    writes work; over a dead run's lease, and elsewhere, the last to write within half a second does. A holder on
    another host that was stopped for a minute loses it to the next run;
    `check()` tells it so before it changes anything, but a write already on its way cannot be called back.
    """

    def __init__(self, location: Location, holder: Holder) -> None:
        self._location = location
        self._holder = holder
        self._lost: Holder | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="corpusmill-lease", daemon=True)

    @classmethod
    def acquire(cls, table: Location, run_id: str, job_name: str) -> Lease:
        """Takes the table's lease, or raises TableHeldError that names the run, host, pid and since when it has it."""
        location = table.child("_runs", "lease.json")
        mine = _holder(run_id, job_name)
        with _alone(location):
            if not location.create_exclusive(_dump(mine)):
                there = _read(location)
                if there is not None and _is_held(location, there):
                    raise _held(table, there)
                location.write_bytes(_dump(mine))
        if not location.is_local:
            _settle(table, location, mine)
        lease = cls(location, mine)
        lease._thread.start()
        return lease

    @property
    def run_id(self) -> str:
        """The run that holds it."""
        return self._holder.run_id

    def check(self) -> None:
        """TableHeldError when another run has taken the lease over; asks the store."""
        there = self._lost or _read(self._location)
        if there is None or there.token != self._holder.token:
            self._lost = there or self._holder
            raise TableHeldError(
                f"{self._location.parent.parent}: this run lost the table's lease"
                + (f" to run {there.run_id} on {there.host}" if there else "")
                + "; it was stopped for too long. What it finished is kept"
            )

    def release(self) -> None:
        """Gives it back if it is still ours; also ends the heartbeat."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STALE_SECONDS)
        # A store that cannot be reached now keeps a lease that goes stale by itself.
        with suppress(StorageError), _alone(self._location):
            there = _read(self._location)
            if there is not None and there.token == self._holder.token:
                self._location.delete()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._renew()
            except StorageError:
                continue  # the next beat may get through; check() sees what came of it
            if self._lost:
                return

    def _renew(self) -> None:
        with _alone(self._location):
            there = _read(self._location)
            if there is None or there.token != self._holder.token:
                self._lost = there or self._holder
                return
            self._location.write_bytes(_dump(self._holder))


def current_holder(table: Location) -> Holder | None:
    """Who holds the table now, None when nobody does or its holder is dead."""
    location = table.child("_runs", "lease.json")
    there = _read(location)
    return there if there is not None and _is_held(location, there) else None


def _holder(run_id: str, job_name: str) -> Holder:
    return Holder(
        run_id=run_id,
        job=job_name,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        heartbeat=time.time(),
        place=_place(),
        born=_born(os.getpid()),
        token=secrets.token_hex(8),
    )


def _is_held(location: Location, there: Holder) -> bool:
    if there.place == _place():
        # The same process table: whether it lives is known, however old its heartbeat is.
        return _born(there.pid) == there.born and _born(there.pid) != ""
    return _age(location, there) < STALE_SECONDS


def _age(location: Location, there: Holder) -> float:
    """Seconds since the last heartbeat, by the store's own clock where it has one."""
    written = location.modified()
    if written is None:
        return time.time() - there.heartbeat
    probe = location.parent.child(f".clock-{secrets.token_hex(8)}")
    try:
        probe.write_bytes(b"")
        now = probe.modified()
    finally:
        probe.delete()
    return (time.time() if now is None else now) - written


@contextmanager
def _alone(location: Location) -> Iterator[None]:
    """Between looking at the lease and writing it no other process may come; only local file systems can promise it."""
    if not location.is_local:
        yield
        return
    with location.errors():
        os.makedirs(location.parent.url, exist_ok=True)
        handle = os.open(location.parent.child(".lease.lock").url, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a network file system without locks: as good as an object store
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _settle(table: Location, location: Location, mine: Holder) -> None:
    time.sleep(_SETTLE_SECONDS)
    there = _read(location)
    if there is None or there.token != mine.token:
        raise _held(table, there or mine)


def _held(table: Location, there: Holder) -> TableHeldError:
    return TableHeldError(
        f"{table}: held by run {there.run_id} of job {there.job} (host {there.host}, pid {there.pid}, "
        f"since {there.started}); wait for it to end, or end it"
    )


def _read(location: Location) -> Holder | None:
    try:
        return Holder.parse(location.read_bytes())
    except StorageError as error:
        if error.problem is Problem.MISSING:
            return None
        raise


def _dump(holder: Holder) -> bytes:
    beat: dict[str, Any] = {**asdict(holder), "heartbeat": time.time()}
    return json.dumps(beat, indent=1).encode()


def _place() -> str:
    """This process table's name: the host, its boot, and the container's process namespace."""
    return ":".join((socket.gethostname(), _proc("sys/kernel/random/boot_id"), _namespace()))


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When the process with this number started, in the kernel's own count; "" when there is none."""
    fields = _proc(f"{pid}/stat").rpartition(")")[2].split()
    # Fields after the command's name: the state first, the start time 20th.
    if len(fields) > 19:
        return "" if fields[0] in ("Z", "X") else fields[19]
    return "" if Path("/proc/self/stat").exists() else _alive_without_proc(pid)


def _alive_without_proc(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


def _proc(name: str) -> str:
    try:
        return Path("/proc", name).read_text().strip()
    except OSError:
        return ""
