"""One S3 server and one local Ray for all tests of this folder: both take seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import retry
from tests.checkpoints import Shape, make_checkpoint
from tests.conditional_store import Store, conditional_store
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.s3_server import S3Server, aws_settings, s3_server

# Long enough for the prompts, small enough to run in a blink.
SHAPE = Shape(name="pipeline", kv_heads=1, window=16, eos_scale=1.1)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server whose settings stand in the environment."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def conditional(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An S3 server that honours conditional writes, whose settings stand in the environment during one test."""
    with conditional_store() as store:
        for name, value in aws_settings(store.endpoint).items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.fixture(scope="session")
def local_ray(s3: S3Server) -> Iterator[None]:
    """A local Ray whose workers know the S3 server; runs join it."""
    import ray

    from infra.cluster import QUIET, start_local

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    start_local(ray)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer, random weights."""
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny", SHAPE)


@pytest.fixture(scope="session")
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of the S3 server that breaks what it is told to."""
    with fault_proxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def stormy(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Clients of this process come through the proxy, and pause less than in earnest."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setattr(retry, "_FIRST_SECONDS", 0.02)
    return monkeypatch
