"""A model's folder: where it is, which files belong to it, and the name of its content. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from .errors import ModelError
from .settings import read_json, shown

# Everything that decides what a model computes; nothing else in a folder changes its revision.
_SIDE_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "preprocessor_config.json", "processor_config.json", "generation_config.json", "tasks.json",
)  # fmt: skip
_INDEX = "model.safetensors.index.json"
_WEIGHTS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.pickle")
_HASH_CACHE_FROM = 64 << 20


def resolve_checkpoint(model: str, revision: str | None = None) -> Path:
    """The local folder of a model: a folder as it is, a hub id from the Hugging Face cache or the hub.

    Uses the standard HF_HOME, HF_TOKEN and HF_HUB_OFFLINE; a cached model works offline. ModelError names what
    is missing.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(f"model {model!r} is neither a folder nor a hub id of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", _INDEX, *_SIDE_FILES]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model {model!r} is not in the Hugging Face cache and the hub cannot be reached; "
            "name a local folder, or download it while online"
        ) from error
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise ModelError(
            f"model {model!r} cannot be fetched from the hub ({type(error).__name__}); "
            "check the name and revision, and for a gated model set HF_TOKEN and accept its terms"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, sharded or not, in name order; ModelError when there are none."""
    index = read_json(folder / _INDEX)
    if index is not None:
        placed = index.get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
            raise ModelError(f"{folder / _INDEX}: weight_map must name the file of each tensor")
        names = sorted(set(placed.values()))
        for name in names:
            if not _WEIGHTS.fullmatch(name):
                raise ModelError(
                    f"{folder / _INDEX} names {shown(name)}; only .safetensors files in its own folder are read"
                )
    else:
        names = ["model.safetensors"] if (folder / "model.safetensors").exists() else []
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ModelError(f"{folder} lacks {missing[0]}, which its index names")
    if not names:
        pickled = sorted(path.name for kind in _PICKLED for path in folder.glob(kind))
        hint = f"; {pickled[0]} may be a pickle, which is never opened: convert it to safetensors" if pickled else ""
        raise ModelError(f"{folder} has no model.safetensors{hint}")
    return [folder / name for name in names]


def model_revision(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of config, weights, tokenizer, processor and tasks files.

    The same for a hub id, a folder and a bucket that hold the same files. Hashes of large files are remembered
    under the user's cache folder by path, size and modification time.
    """
    digest = hashlib.sha256()
    side = [folder / name for name in _SIDE_FILES if (folder / name).exists()]
    for path in sorted([*weight_files(folder), *side], key=lambda p: p.name):
        digest.update(f"{path.name}\0{_file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    if stat.st_size < _HASH_CACHE_FROM:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    base = os.environ.get("CORPUSMILL_CACHE") or Path.home() / ".cache" / "corpusmill"
    identity = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    remembered = Path(base) / "sha256" / hashlib.sha256(identity.encode()).hexdigest()
    try:
        text = remembered.read_text()
        if len(text) == 64:
            return text
    except OSError:
        pass
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        temporary = remembered.with_suffix(f".{os.getpid()}")
        temporary.write_text(value)
        temporary.replace(remembered)
    except OSError:
        pass  # A read-only home only costs the time to hash again.
    return value
