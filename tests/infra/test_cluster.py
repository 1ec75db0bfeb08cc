"""Starting an embedded Ray on a machine that is too busy for Ray's patience."""

from __future__ import annotations

from typing import Any

import pytest

from infra import cluster as module
from infra.cluster import ClusterError, cluster

LATE = Exception("The current node timed out during startup. This could happen because ...")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each start does in turn: an exception is raised, None is a cluster."""
    import ray

    outcomes: list[Any] = []

    def start(**_: Any) -> None:
        if (error := outcomes.pop(0)) is not None:
            raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(module, "_describe", lambda local: local)
    return outcomes


def test_a_node_that_is_late_is_started_again(starts: list[Any]) -> None:
    starts += [LATE, LATE, None]
    with cluster() as found:
        assert found
    assert not starts


def test_one_that_is_always_late_is_one_line(starts: list[Any]) -> None:
    starts += [LATE] * 3
    with (
        pytest.raises(ClusterError, match="a local Ray cannot be used: its node did not start in time, 3 times"),
        cluster(),
    ):
        pass
    assert not starts


def test_what_else_goes_wrong_is_not_tried_again(starts: list[Any]) -> None:
    starts += [RuntimeError("no port is free"), None]
    with pytest.raises(ClusterError, match="no port is free"), cluster():
        pass
    assert starts == [None]
