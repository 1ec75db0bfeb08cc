"""The JSON files of a model folder, read key by key: a value that does not fit is one line naming file and key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ModelError

# Far above any model, far below what overflows when sizes are multiplied.
_LARGEST = 1 << 24
# The index of the weight files is the largest of them: 100 bytes for each tensor.
_MOST_BYTES = 64 << 20
_SHOWN = 60


def read_json(path: Path) -> dict[str, Any] | None:
    """The parsed file, or None when it is not there; ModelError when it is no JSON object."""
    try:
        if not path.exists():
            return None
        if not path.is_file():  # a pipe nobody writes to, /dev/zero
            raise ModelError(f"{path} is not a file")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ModelError(f"{path} has more than {_MOST_BYTES >> 20} MiB: it belongs to no model")
        document = json.loads(data.decode())
    except FileNotFoundError:
        return None
    except RecursionError as error:
        raise ModelError(f"{path} cannot be read as JSON: nested too deeply") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object")
    return document


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A ValueError raised in the block becomes ModelError, naming the file."""
    try:
        yield
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error


@contextmanager
def settings_of(path: Path) -> Iterator[Settings]:
    """A file's settings, none when it is not there, for a block that says ValueError to what it cannot use."""
    document = read_json(path) or {}
    with naming(path):
        yield Settings(document)


@contextmanager
def image_settings_of(folder: Path) -> Iterator[Settings]:
    """A model folder's image settings, in whichever of the two files they stand; as `settings_of` otherwise."""
    if (folder / "preprocessor_config.json").exists():
        with settings_of(folder / "preprocessor_config.json") as settings:
            yield settings
    else:
        with settings_of(folder / "processor_config.json") as settings:
            yield settings.block("image_processor")


@dataclass(frozen=True, slots=True)
class Settings:
    """One JSON object, whose place in its file is `where`.

    A key that is not there takes the default; a value of another kind is ValueError, naming the key. Null is not
    there only where a method says so.
    """

    values: Mapping[str, Any]
    where: str = ""

    def name(self, key: str) -> str:
        """The key with its place, as people write it: encoder.text_config.head_dim."""
        return f"{self.where}.{key}" if self.where else key

    def wrong(self, key: str, expected: str) -> ValueError:
        """The error that says what stands at `key` and what should."""
        if key not in self.values:
            return ValueError(f"{self.name(key)} is missing; it must be {expected}")
        return ValueError(f"{self.name(key)} is {shown(self.values[key])}; it must be {expected}")

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self.values.get(key) is not None

    def block(self, key: str) -> Settings:
        """The object at `key`; empty where it is null or not there."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Settings(value or {}, self.name(key))

    def over(self, other: Settings) -> Settings:
        """These keys, and those of `other` that are not among them."""
        return Settings({**other.values, **self.values}, self.where)

    def size(self, key: str, default: int, most: int = _LARGEST) -> int:
        """A whole number from 1 to `most`."""
        value = self.values.get(key, default)
        if not is_whole(value) or not 1 <= value <= most:
            raise self.wrong(key, f"a whole number from 1 to {most:,}")
        return value

    def token(self, key: str, default: int, vocabulary: int) -> int:
        """A token id of the vocabulary; null is not there."""
        value = self.values[key] if self.has(key) else default
        if not is_whole(value) or not 0 <= value < vocabulary:
            found = shown(value) if self.has(key) else f"left at {value}"
            raise ValueError(f"{self.name(key)} is {found}; it must be a token id below the vocabulary's {vocabulary}")
        return value

    def tokens(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A token id, or a list of them; null is not there."""
        if not self.has(key):
            return default
        value = self.values[key]
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(is_whole(i) and 0 <= i <= _LARGEST for i in ids):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(ids)

    def positive(self, key: str, default: float | None) -> float:
        """A finite number above 0; without a default the key must be there."""
        value = self.values.get(key, default)
        if not is_number(value) or value <= 0:
            raise self.wrong(key, "a number above 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self.values.get(key, default)
        if value not in choices:
            raise self.wrong(key, f"one of {', '.join(choices)}")
        return value

    def text(self, key: str, default: str) -> str:
        """Text."""
        value = self.values.get(key, default)
        if not is_text(value):
            raise self.wrong(key, "text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(map(is_text, value)):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """As many finite numbers as the default has; null is not there."""
        value = self.values[key] if self.has(key) else list(default)
        if not isinstance(value, list) or len(value) != len(default) or not all(map(is_number, value)):
            raise self.wrong(key, f"a list of {len(default)} numbers")
        return tuple(map(float, value))


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number that a double can hold."""
    if not isinstance(value, float | int) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_text(value: Any) -> bool:
    """Whether a JSON value is text that UTF-8 can say: JSON's escapes may spell half a character."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def named(text: str) -> str:
    """A foreign name for a message: as it is, or as `shown` where it would break the line or fill the screen."""
    return text if text.isprintable() and len(text) <= 4 * _SHOWN else shown(text)


def shown(value: Any) -> str:
    """A JSON value for a message: in one line, and not all of a long one."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
