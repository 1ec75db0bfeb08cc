"""Cases as files: JSON, with bytes in base64, so that an input can be read, kept and replayed."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

_BYTES = "__bytes__"
_ROOT = Path(__file__).parents[2]


def dumps(case: Any) -> bytes:
    """A case as JSON; tuples come back as lists."""
    return json.dumps(case, default=_spell).encode()


def loads(data: bytes) -> Any:
    """What `dumps` wrote."""
    return json.loads(data, object_hook=_unspell)


def save(folder: Path, surface: str, case: Any, why: str) -> Path:
    """Keeps a case under a name made of its content, with the last line of `why`: the others name one machine."""
    said = why.strip().splitlines()
    data = {"surface": surface, "why": said[-1].replace(str(_ROOT), ".")[:300] if said else "", "case": case}
    name = hashlib.sha256(dumps(case)).hexdigest()[:12]
    path = folder / f"{surface}-{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, default=_spell, indent=1) + "\n")
    return path


def load(path: Path) -> tuple[str, Any]:
    """A kept case: its surface's name, and the case."""
    data = json.loads(path.read_text(), object_hook=_unspell)
    return data["surface"], data["case"]


def _spell(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return {_BYTES: base64.b64encode(value).decode()}
    raise TypeError(f"a case holds {type(value).__name__}")


def _unspell(value: dict[str, Any]) -> Any:
    return base64.b64decode(value[_BYTES]) if value.keys() == {_BYTES} else value
