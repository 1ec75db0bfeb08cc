"""Model folders that somebody else made: nothing in them is executed, and nothing takes memory without end."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from model_runtime import ModelError
from model_runtime.folder import model_revision, weight_files
from model_runtime.model import check_checkpoint
from model_runtime.processing import Processor
from model_runtime.settings import read_json
from tests.checkpoints import SHAPES, cached_checkpoint

ROOT = Path(__file__).resolve().parents[2]
INDEX = "model.safetensors.index.json"
# Every look is a process of its own, whose memory counts; forked, for importing torch anew takes seconds each time.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["model_runtime.model", "model_runtime.processing", __name__])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(cached_checkpoint(SHAPES[0]), tmp_path / "model"))


def _look(folder: Path, said: Path) -> None:
    """In a process of its own: what it says of the folder, and then, on a line of stderr, the MiB that this took."""
    for descriptor, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{said}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        check_checkpoint(folder)
        Processor.load(folder)
        model_revision(folder)
        print("accepted", flush=True)
    except ModelError as error:
        print(error, flush=True)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, file=sys.stderr, flush=True)


def check(folder: Path, seconds: float = 60) -> tuple[str, int]:
    """What a process says of the folder, and the MiB it took for that."""
    said = folder.parent / "said"
    process = _FORKS.Process(target=_look, args=(folder, said))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
    out, err = (Path(f"{said}.{end}").read_text() for end in ("out", "err"))
    assert process.exitcode == 0, err[-2000:]
    assert len(out.splitlines()) == 1 and len(out) < 1000, out
    return out, int(err.splitlines()[-1])


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt", "adapter_model.bin"]
)
def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Touch(tmp_path / "executed")))
    assert check(folder)[0] == "accepted\n", "beside safetensors it is of no account"
    os.unlink(folder / "model.safetensors")
    assert f"{name} may be a pickle, which is never opened" in check(folder)[0]
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert "only .safetensors files" in check(folder)[0]
    os.rename(folder / name, folder / "model.safetensors")
    os.unlink(folder / INDEX)
    assert "cannot be read as safetensors" in check(folder)[0]
    assert not (tmp_path / "executed").exists()
    pickle.loads((folder / "model.safetensors").read_bytes())
    assert (tmp_path / "executed").exists(), "the pickle works"


@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_code_in_a_model_folder_is_never_run(folder: Path, tmp_path: Path, backend: str) -> None:
    code = f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "setup.py", "__init__.py"):
        (folder / name).write_text(code)
    kinds = {
        "AutoConfig": "configuration_evil.C",
        "AutoModel": "modeling_evil.M",
        "AutoTokenizer": "tokenization_evil.T",
    }
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        document = (read_json(folder / name) or {}) | {"auto_map": kinds, "trust_remote_code": True}
        (folder / name).write_text(json.dumps(document))
    load = (
        "import sys; from model_runtime import EngineConfig, ModelError, load_backend\n"
        "try: load_backend(EngineConfig(model=sys.argv[1], backend=sys.argv[2], device='cpu')).close()\n"
        "except ModelError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", load, str(folder), backend], cwd=ROOT, capture_output=True, text=True, timeout=300,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "../model.safetensors", "..", ".", "", "a/b.safetensors", "a\\b.safetensors",
     "model.safetensors\n", "\0.safetensors", ".hidden.safetensors", "..safetensors", "http://x/y.safetensors", 7, None,
     ["model.safetensors"], {"a": "b"}],
)  # fmt: skip
def test_an_index_names_files_of_its_own_folder(folder: Path, name: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"encoder.norm.weight": name}}))
    with pytest.raises(ModelError, match=r"index\.json"):
        weight_files(folder)
    for wrong in ([name], name, None, "x"):
        (folder / INDEX).write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ModelError, match=r"index\.json"):
            weight_files(folder)


def test_files_that_are_too_large_are_refused_unread(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tasks.json", "generation_config.json", INDEX):
        copy = folder.parent / f"copy-{name}"
        shutil.copytree(folder, copy)
        with (copy / name).open("ab") as file:
            file.truncate(2 << 30)
        said, mebibytes = check(copy)
        assert name in said and "has more than" in said
        assert mebibytes < 400, name


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tasks.json", INDEX])
@pytest.mark.parametrize("odd", ["/dev/zero", "pipe", "folder", "itself"])
def test_files_that_are_no_files_hold_nobody_up(folder: Path, name: str, odd: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    match odd:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "itself":
            path.symlink_to(path)
        case _:
            path.symlink_to(odd)
    said, mebibytes = check(folder, seconds=30)
    assert mebibytes < 400
    # A link that leads round in a circle is no file: without the two that a model may lack it is still one.
    assert name in said or (odd == "itself" and name in ("tasks.json", INDEX))


def header(size: int, document: bytes) -> bytes:
    return struct.pack("<Q", size) + document


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", header(1 << 62, b"{}"), header((1 << 64) - 1, b"{}"), header(90_000_000, b"{" * 100),
        header(2, b"{}"), header(4, b"null"), header(20, b"[" * 20), header(100_000, b"[" * 100_000),
        header(90, b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}      ' + b"0000"),
        header(90, b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'.ljust(90) + b"0000"),
        header(90, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1099511627776]}}'.ljust(90) + b"0000"),
        header(90, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}'.ljust(90) + b"0000"),
    ],
)  # fmt: skip
def test_a_safetensors_header_that_lies_is_one_line(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    said, mebibytes = check(folder)
    assert "model.safetensors" in said or "lacks the tensor" in said
    assert mebibytes < 500


def test_a_header_of_a_hundred_megabytes_is_bounded(folder: Path) -> None:
    entries = {f"t{n:07d}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(600_000)}
    document = json.dumps(entries, separators=(",", ":")).encode()
    (folder / "model.safetensors").write_bytes(header(len(document), document))
    said, mebibytes = check(folder)
    assert "holds the tensor t0" in said
    assert mebibytes < 2_000, mebibytes


def test_sizes_that_no_weights_back_up_take_no_memory(folder: Path) -> None:
    config = read_json(folder / "config.json")
    assert config is not None
    for half in (config["encoder"]["text_config"], config["decoder"]):
        half |= {"vocab_size": 1 << 24, "hidden_size": 1 << 16, "intermediate_size": 1 << 24}
    (folder / "config.json").write_text(json.dumps(config))
    said, mebibytes = check(folder)
    assert said != "accepted\n" and mebibytes < 500


def test_the_revision_and_the_processor_need_no_more_than_the_files(folder: Path) -> None:
    check_checkpoint(folder)
    Processor.load(folder)
    assert len(model_revision(folder)) == 64
