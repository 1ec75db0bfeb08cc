"""A Ray cluster of three nodes on this machine, each a raylet with its own processes that can die at once."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infra.cluster import QUIET

from .processes import ROOT, descendants, kill, named

_NODES = 2  # besides the head
_HEAD_CPUS, _NODE_CPUS = 1, 2
_STORE_BYTES = 200 << 20
# A killed raylet's connections break at once; a busy one only answers late and must not count as dead.
_SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 20_000,
    "health_check_failure_threshold": 3,
}
# What the run's own local Ray has, too: no phoning home; the workers as important as everything else.
_ENVIRONMENT = {**QUIET, "RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}


class ThreeNodes:
    """The cluster; made by `three_nodes`. The head is never killed: where drivers connect, and the cluster's memory."""

    def __init__(self, scratch: Path) -> None:
        from ray.cluster_utils import Cluster

        self.scratch = scratch
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": _HEAD_CPUS, "object_store_memory": _STORE_BYTES, "include_dashboard": False,
                "_system_config": _SYSTEM,
            },
        )  # fmt: skip
        for _ in range(_NODES):
            self.add_node(wait=True)

    @property
    def address(self) -> str:
        """What RAY_ADDRESS names."""
        return str(self._cluster.address)

    def add_node(self, wait: bool = False) -> None:
        """Starts one more node."""
        self._cluster.add_node(wait=wait, num_cpus=_NODE_CPUS, object_store_memory=_STORE_BYTES)

    def kill_node(self, choice: int) -> None:
        """SIGKILL for the raylet of one node and for all that it started; a new node takes its place."""
        nodes = sorted(self._cluster.worker_nodes, key=_raylet)
        node = nodes[choice % len(nodes)]
        kill([_raylet(node), *descendants([_raylet(node)])])
        self._cluster.remove_node(node, allow_graceful=False)
        self.add_node()

    def workers(self, title: str) -> list[int]:
        """Ray's worker processes in this cluster whose title holds `title`."""
        raylets = [_raylet(node) for node in self._cluster.list_all_nodes()]
        return named(descendants(raylets), title)

    def stop(self) -> None:
        """Kills every process of every node."""
        nodes = self._cluster.list_all_nodes()
        family = descendants([_raylet(node) for node in nodes])
        with suppress(Exception):
            self._cluster.shutdown()
        kill(family)


@contextmanager
def three_nodes() -> Iterator[ThreeNodes]:
    """Starts the cluster with a temporary folder of its own; whatever happens, nothing of it is left."""
    # Short: Ray puts Unix sockets below it, whose paths may have 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="cm-chaos-", dir="/tmp"))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    # Before Ray is imported: it reads them as it is.
    os.environ.update(_ENVIRONMENT, RAY_TMPDIR=str(scratch), PYTHONPATH=str(ROOT))
    nodes: ThreeNodes | None = None
    try:
        nodes = ThreeNodes(scratch)
        yield nodes
    finally:
        if nodes is not None:
            nodes.stop()
        # Also of a cluster that did not come up.
        left = named(descendants([os.getpid()]), str(scratch))
        kill([*left, *descendants(left)])
        time.sleep(0.5)
        shutil.rmtree(scratch, ignore_errors=True)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
