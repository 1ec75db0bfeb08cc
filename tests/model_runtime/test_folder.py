"""Where a model is found, and the name of its content: the same for a folder, a copy and a cached hub id."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model_runtime import ModelError
from model_runtime.folder import model_revision, resolve_checkpoint
from tests.checkpoints import SHAPES, make_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("folder") / "tiny", SHAPES[0])


def cached_as_hub_id(folder: Path, cache: Path) -> None:
    """Lay `folder` out as huggingface_hub caches the repository acme/tiny."""
    repository = cache / "hub" / "models--acme--tiny"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def resolve_in(cache: Path, model: str, revision: str | None = None) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment once, when it is imported."""
    code = (
        "import sys; from model_runtime import ModelError; from model_runtime.folder import *\n"
        "try: print(model_revision(resolve_checkpoint(sys.argv[1], sys.argv[2] or None)))\n"
        "except ModelError as error: print(error); sys.exit(3)"
    )
    environment = os.environ | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_marker_of_a_test"}
    return subprocess.run(
        [sys.executable, "-c", code, model, revision or ""],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], timeout=120,
    )  # fmt: skip


def test_a_cached_hub_id_works_offline_and_is_the_same_model_as_the_folder(folder, tmp_path):
    cached_as_hub_id(folder, tmp_path)
    for revision in (None, "main", COMMIT):
        found = resolve_in(tmp_path, "acme/tiny", revision)
        assert found.stdout.strip() == model_revision(folder), found.stderr


def test_a_hub_id_that_is_not_cached_is_one_line_without_the_token(tmp_path):
    found = resolve_in(tmp_path, "acme/elsewhere")
    assert found.returncode == 3 and found.stdout.count("\n") == 1
    assert "acme/elsewhere" in found.stdout
    assert "hf_marker" not in found.stdout + found.stderr


@pytest.mark.parametrize("name", ["/no/such/folder", "./nor/this", "one-word", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_named(name):
    with pytest.raises(ModelError, match="neither a folder nor a hub id") as caught:
        resolve_checkpoint(name)
    assert name in str(caught.value)


def test_the_revision_follows_content_alone(folder, tmp_path):
    before = model_revision(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("not part of the model")
    assert model_revision(copy) == before
    (copy / "tasks.json").write_text(json.dumps({"version": 1, "tasks": {}}))
    with_tasks = model_revision(copy)
    assert with_tasks != before
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_revision(copy) not in (before, with_tasks)


def test_an_index_cannot_lead_out_of_the_folder(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"only \.safetensors files in its own folder"):
        model_revision(copy)


def test_pickled_weights_are_refused_with_what_to_do(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never opened: convert it to safetensors"):
        model_revision(copy)
