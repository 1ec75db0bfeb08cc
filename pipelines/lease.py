"""A table's lease: one run publishes at a time, a dead one's place is taken over, a lost lease is noticed."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from infra.storage import Location, Problem, StorageError, impatient

from .errors import TableHeldError

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
# Two that found no lease at the same moment, on a store without conditional writes: the last to write has it, and
# both look again after this long.
_SETTLE_SECONDS = 0.5
_TRIES = 20
# A lease that was given back, where it cannot be deleted on a condition: it names no holder.
_FREE = b"{}"


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

    What is promised depends on the store. Local file systems with locks and S3 stores with conditional writes: exactly
    one of several starters gets it, also over a dead run's lease, and a late heartbeat of one that lost it changes
    nothing. Elsewhere the last to write within half a second gets it, and a heartbeat that was held up between
    looking and writing may put a lost lease back until the new holder's next one. Everywhere: a holder on this machine
    keeps it while its process lives; one on another host loses it to the next starter after a minute without a
    heartbeat, and `check()` tells it so. What it had already sent then is the publisher's matter (publish.py).
    """

    def __init__(self, location: Location, holder: Holder, version: str | None) -> None:
        self._location = location
        self._holder = holder
        # The version of the lease that this one wrote last; None where the store knows no conditions.
        self._version = version
        self._lost: Holder | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="corpusmill-lease", daemon=True)

    @classmethod
    def acquire(cls, table: Location, run_id: str, job_name: str) -> Lease:
        """Takes the table's lease, or raises TableHeldError that names the run, host, pid and since when it has it."""
        location = table.child("_runs", "lease.json")
        mine = _holder(run_id, job_name)
        version = None
        if table.conditional:
            version = _take(table, location, mine)
        else:
            _take_by_settling(table, location, mine)
        lease = cls(location, mine, version)
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
            to = "" if there is None or there is self._holder else f" to run {there.run_id} on {there.host}"
            raise TableHeldError(
                f"{self._location.parent.parent}: this run lost the table's lease{to}; it was stopped for too long. "
                "What it finished is kept"
            )

    def release(self) -> None:
        """Gives it back if it is still ours; also ends the heartbeat."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STALE_SECONDS)
        # A store that cannot be reached now keeps a lease that goes stale by itself.
        with suppress(StorageError):
            there, version = _look(self._location)
            if version is not None and there is not None and there.token == self._holder.token:
                self._location.remove_seen(version, instead=_FREE)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                # Given up before the lease is stale: what others have then must not wait for this.
                with impatient(STALE_SECONDS / 3):
                    self._renew()
            except StorageError:
                continue  # the next beat may get through; check() sees what came of it
            if self._lost:
                return

    def _renew(self) -> None:
        made = None
        if self._version is not None:
            made = self._location.replace_seen(_dump(self._holder), self._version)
        if made is None:
            # Taken over; or a beat of our own got through whose answer did not; or a store without conditions.
            there, version = _look(self._location)
            if version is None or there is None or there.token != self._holder.token:
                self._lost = there or self._holder
                return
            if self._version is None:
                self._location.write_bytes(_dump(self._holder))
                return
            made = self._location.replace_seen(_dump(self._holder), version) or version
        self._version = made


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


def _take(table: Location, location: Location, mine: Holder) -> str:
    """Replaces what was seen there by `mine`, so that one of several wins; the version it then has."""
    for _ in range(_TRIES):
        there, seen = _look(location)
        if there is not None and _is_held(location, there):
            raise _held(table, there)
        made = location.replace_seen(_dump(mine), seen)
        if made is not None:
            return made
    raise _held(table, there or mine)


def _take_by_settling(table: Location, location: Location, mine: Holder) -> None:
    """The last to write has it, once nobody wrote for a while."""
    if not location.create_exclusive(_dump(mine)):
        there = _read(location)
        if there is not None and _is_held(location, there):
            raise _held(table, there)
        location.write_bytes(_dump(mine))
    time.sleep(_SETTLE_SECONDS)
    there = _read(location)
    if there is None or there.token != mine.token:
        raise _held(table, there or mine)


def _held(table: Location, there: Holder) -> TableHeldError:
    return TableHeldError(
        f"{table}: held by run {there.run_id} of job {there.job} (host {there.host}, pid {there.pid}, "
        f"since {there.started}); wait for it to end, or end it"
    )


def _look(location: Location) -> tuple[Holder | None, str | None]:
    """Who holds it and the version that says so; the version first, so that a newer content never goes with it."""
    version = location.version()
    return (None if version is None else _read(location)), version


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
