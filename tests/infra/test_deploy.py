"""What runs the nightly job elsewhere: each file for itself, and against the others."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from jobs.spec import load_job

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "infra/docker/Dockerfile").read_text()
RAYJOB = ROOT / "infra/kuberay/rayjob-nightly.yaml"
CRONJOB = ROOT / "infra/scheduling/cronjob-nightly.yaml"
NIGHTLY = "jobs/examples/nightly-summaries.yaml"


def rayjob() -> dict[str, Any]:
    return yaml.safe_load(RAYJOB.read_text())


def cronjob() -> dict[str, Any]:
    return yaml.safe_load(CRONJOB.read_text())


def containers(node: Any) -> Iterator[dict[str, Any]]:
    """Every container in a manifest, wherever it stands."""
    if isinstance(node, dict):
        yield from node.get("containers", [])
        for value in node.values():
            yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def locked(package: str) -> str:
    lock = (ROOT / "requirements.lock").read_text()
    return re.search(rf"^{package}==(.+)$", lock, re.MULTILINE)[1]


def test_one_image_everywhere() -> None:
    images = {c["image"] for manifest in (rayjob(), cronjob()) for c in containers(manifest)}
    assert len(images) == 1
    [image] = images
    assert f"-t {image} " in DOCKERFILE
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert image == f"corpusmill:{version}"


def test_both_run_the_nightly_job_that_the_image_holds() -> None:
    workdir = dict(instructions())["WORKDIR"]
    command = shlex.split(rayjob()["spec"]["entrypoint"])
    assert command == ["corpusmill", "run", f"{workdir}/{NIGHTLY}"]
    [submit] = containers(cronjob())
    [script] = submit["args"]
    assert shlex.join(command) in " ".join(script.split())
    assert (ROOT / NIGHTLY).is_file()
    copied = [source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]]
    assert "jobs" in copied
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in kept, f".dockerignore keeps {source} out"


def test_the_image_is_locked_small_and_unprivileged() -> None:
    steps = instructions()
    assert re.search(r"^FROM python:3\.\d+-slim$", DOCKERFILE, re.MULTILINE)
    users = [rest for name, rest in steps if name == "USER"]
    assert users == ["10001"]
    assert steps.index(("USER", "10001")) > max(i for i, (name, _) in enumerate(steps) if name == "RUN")
    assert ("ARG", "TORCH_INDEX=") in steps, "no index is built in: pip's own, or the one that is named"
    assert "--constraint requirements.lock" in DOCKERFILE
    assert locked("setuptools")
    assert locked("torch")
    assert "+" not in locked("torch")


def test_the_rayjob_ends_and_cleans_up_after_itself() -> None:
    manifest = rayjob()
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] >= 1
    assert 0 < spec["activeDeadlineSeconds"] < 24 * 3600
    assert spec["rayClusterSpec"]["rayVersion"] == locked("ray")


def test_the_rayjobs_workers_fit_the_job(monkeypatch) -> None:
    for name in ("CORPUS_BUCKET", "TABLE_BUCKET", "MODEL_PATH"):
        monkeypatch.setenv(name, "x")
    job = load_job(ROOT / NIGHTLY).job
    cluster = rayjob()["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-gpus"] == head["rayStartParams"]["num-cpus"] == "0"
    [head_container] = containers(head)
    assert "nvidia.com/gpu" not in head_container["resources"].get("limits", {})
    [group] = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == job.workers.min
    assert group["maxReplicas"] == job.workers.max
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    [worker] = containers(group)
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_cronjob_never_overlaps() -> None:
    manifest = cronjob()
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "CronJob")
    spec = manifest["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert len(spec["schedule"].split()) == 5
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600
    [submit] = containers(manifest)
    assert any(entry["name"] == "RAY_ADDRESS" for entry in submit["env"])


# Ray's jobs API as its command line shows it: a file for each submission, holding what the job comes to.
FAKE_RAY = r"""#!/bin/bash
case "$2" in
  submit)
    file="$JOBS/$5"
    [ -e "$file" ] && { echo "Job with submission_id $5 already exists." >&2; exit 1; }
    echo "$5" >> "$JOBS/submitted"
    cp "$JOBS/next" "$file" ;;
  logs)
    [ -e "$JOBS/lost" ] && exit 1
    sed -i "s/^Status for job .*/$(cat "$JOBS/end")/" "$JOBS/$4" ;;
  status)
    [ -e "$JOBS/$3" ] || { echo "RuntimeError: Job $3 does not exist" >&2; exit 1; }
    sed "s/ID/$3/; a Status message: 'other' succeeded, 'other' failed" "$JOBS/$3" ;;
esac
"""
ENDS = {"SUCCEEDED": "Job 'ID' succeeded", "FAILED": "Job 'ID' failed", "STOPPED": "Job 'ID' was stopped"}


def start_pod(folder: Path, end: str) -> tuple[bool, list[str]]:
    """The CronJob's script against a head where its run comes to `end`: whether it succeeds, all ids submitted."""
    (folder / "ray").write_text(FAKE_RAY)
    (folder / "ray").chmod(0o755)
    (folder / "next").write_text("Status for job 'ID': RUNNING\n")
    (folder / "end").write_text(end)
    [submit] = containers(cronjob())
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "JOBS": str(folder)}
    pod = subprocess.run([*submit["command"], *submit["args"]], env=environment, capture_output=True, timeout=60)
    return pod.returncode == 0, (folder / "submitted").read_text().split()


def test_a_failed_nightly_run_is_tried_again(tmp_path: Path) -> None:
    assert cronjob()["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 2
    today = f"corpusmill-nightly-{datetime.now(UTC):%Y-%m-%d}"
    assert start_pod(tmp_path, ENDS["FAILED"]) == (False, [f"{today}-1"])
    assert start_pod(tmp_path, ENDS["FAILED"]) == (False, [f"{today}-1", f"{today}-2"])
    assert start_pod(tmp_path, ENDS["SUCCEEDED"]) == (True, [f"{today}-{n}" for n in (1, 2, 3)])


def test_a_lost_pods_successor_follows_its_run(tmp_path: Path) -> None:
    (tmp_path / "lost").touch()
    good, submitted = start_pod(tmp_path, ENDS["SUCCEEDED"])
    assert not good
    (tmp_path / "lost").unlink()
    assert start_pod(tmp_path, ENDS["SUCCEEDED"]) == (True, submitted)


def test_a_run_that_somebody_stopped_stays_stopped(tmp_path: Path) -> None:
    first = start_pod(tmp_path, ENDS["STOPPED"])
    assert first == start_pod(tmp_path, ENDS["SUCCEEDED"]) and not first[0]


@pytest.mark.parametrize("status", list(ENDS))
def test_ray_says_how_a_job_ended_in_the_words_that_the_script_looks_for(status: str, capfd) -> None:
    from ray.dashboard.modules.job.cli import _log_job_status
    from ray.dashboard.modules.job.common import JobStatus

    class Client:
        def get_job_info(self, job_id: str) -> SimpleNamespace:
            return SimpleNamespace(status=JobStatus(status), message="none")

    _log_job_status(Client(), "ID")
    printed = capfd.readouterr()
    assert ENDS[status] in printed.out + printed.err


def test_everybody_runs_unprivileged_and_within_limits() -> None:
    for manifest in (rayjob(), cronjob()):
        for container in containers(manifest):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "memory" in container["resources"]["limits"]
            assert "cpu" in container["resources"]["requests"]
    text = RAYJOB.read_text() + CRONJOB.read_text()
    assert text.count("runAsNonRoot: true, runAsUser: 10001") == 3


def test_no_secret_stands_in_a_manifest() -> None:
    for container in [*containers(rayjob()), *containers(cronjob())]:
        for entry in container.get("env", []):
            assert "value" not in entry, f"{entry['name']} is written out"
    for container in containers(rayjob()):
        assert {"secretRef": {"name": "corpusmill-credentials"}} in container["envFrom"]


def test_the_settings_that_the_comments_create_are_those_the_job_needs() -> None:
    needed = set(re.findall(r"\$\{(\w+)\}", (ROOT / NIGHTLY).read_text()))
    created = set(re.findall(r"--from-literal=(\w+)=", RAYJOB.read_text()))
    assert needed <= created


def test_a_submitted_working_dir_leaves_the_heavy_folders_behind() -> None:
    ignored = (ROOT / ".rayignore").read_text().split()
    assert {".git", ".venv", "tests", "corpusmill-demo", "*.parquet", "*.safetensors"} <= set(ignored)
    assert not {"jobs", "infra", "pipelines", "workers", "model_runtime"} & set(ignored)
