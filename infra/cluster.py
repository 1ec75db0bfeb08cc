"""Ray: the cluster that RAY_ADDRESS names, or an embedded local one that goes away with the run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to run on. `local`: started by this process, for this run."""

    cpus: float
    gpus: float
    nodes: int
    local: bool


class ClusterError(Exception):
    """The Ray cluster cannot be reached; the message says what to check."""


def usable_cores() -> int:
    """CPU cores this process may use (containers and affinities limit them)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Connect, and disconnect at the end; an embedded cluster is stopped. Joins a connection that is already there."""
    # Read before Ray is imported and by the processes it starts: no phoning home, no chatter on a user's terminal.
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield _describe(local=False)
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        with _silent_start():
            if address:
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            else:
                start_local(ray)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        raise ClusterError(f"{where} cannot be used: {str(error).splitlines()[0]}") from error
    try:
        with _terminated_as_interrupted():
            yield _describe(local=not address)
    finally:
        ray.shutdown()


_STARTS, _TIMED_OUT = 3, "timed out during startup"
# What keeps Ray from phoning home and from chattering on a terminal.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def start_local(ray: Any) -> None:
    """Start an embedded cluster; RuntimeError when it does not come up in three tries.

    Ray gives a node half a minute to start, which a busy machine may need for other things.
    """
    # Ray starts workers at niceness 15, below its own processes and the driver; here the model is one.
    os.environ.setdefault("RAY_worker_niceness", "0")
    for left in reversed(range(_STARTS)):
        try:
            # Light stages take fractions of a CPU; with four logical ones all of them run on any machine.
            ray.init(
                address="local",
                num_cpus=max(4, usable_cores()),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
            return
        except Exception as error:
            # A plain Exception, which only its text tells from others.
            if _TIMED_OUT not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise RuntimeError(f"its node did not start in time, {_STARTS} times: this machine is busy") from error


@contextmanager
def _silent_start() -> Iterator[None]:
    # Ray's C++ side announces its own log level on file descriptor 2, below Python's sys.stderr.
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM (a stopped job, an evicted pod) ends the block as Ctrl-C does, so that what is done is kept and said.

    Ray installs a handler of its own, which exits from under the running block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe(local: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return Cluster(resources.get("CPU", 0.0), resources.get("GPU", 0.0), max(1, len(alive)), local)
