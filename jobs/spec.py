"""Reads a job file: YAML in, a checked JobSpec out, or every problem at once with its line and its path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipelines.errors import RunError
from pipelines.job import JobSpec

from .environment import ExpansionError, expand
from .problems import YamlPath, dotted, join, known_keys, sentence, settle

# One entry per thing in the file; far above any real job, far below what a file of nested aliases unfolds to.
_MAX_ENTRIES = 20_000
_MAX_BYTES = 1 << 20
_MAX_DIGITS = 400
# Of what is said of one problem: keys and values stand in it, and they may be a megabyte.
_LONGEST = 1000
_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

Spec = TypeVar("Spec", bound=BaseModel)


class JobFileError(RunError):
    """The job file cannot be used; `problems` has one line for each thing to mend."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedJob:
    """The checked job, ${ENV} filled in, and the file's text as it stands: that is what gets recorded."""

    job: JobSpec
    text: str


def load_job(path: str | Path) -> LoadedJob:
    """Read and check the job file at `path`; JobFileError lists every problem in it.

    ${NAME} in any string is replaced by that environment variable, $$ by a plain dollar sign. Relative paths
    inside the job are relative to the current directory.
    """
    job, text = load_spec(path, JobSpec)
    return LoadedJob(job=job, text=text)


def load_spec(path: str | Path, model: type[Spec]) -> tuple[Spec, str]:
    """As `load_job`, for a file of another kind: what it says as `model`, and its text."""
    text = _read(Path(path))
    reader = _Reader(name=str(path), model=model)
    return reader.check(reader.parse(text), model), text


def parse_job(text: str, name: str) -> JobSpec:
    """The job that `text` describes, as `load_job`; `name` stands in messages where a file's name would."""
    reader = _Reader(name=name, model=JobSpec)
    return reader.check(reader.parse(text), JobSpec)


def _read(path: Path) -> str:
    if path.is_dir():
        raise JobFileError([f"{path}: this is a folder; name the job file in it"])
    try:
        with path.open("rb") as file:  # not all of it: /dev/zero has no end
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise JobFileError([f"{path}: no such file{_similar_file(path)}"]) from None
    except OSError as error:
        raise JobFileError([f"{path}: cannot be read: {error.strerror}"]) from None
    if len(raw) > _MAX_BYTES:
        raise JobFileError([f"{path}: more than {_MAX_BYTES >> 20} MB is too large for a job file"])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise JobFileError([f"{path}:{line}: not UTF-8 text; a job file is YAML"]) from None


def _similar_file(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


class _TooManyError(Exception):
    """The file has more entries than a job may have."""


class _Loader(yaml.SafeLoader):
    """Stops early: PyYAML reads a megabyte of entries in ten seconds and more."""

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As its parent's; of a mapping's entry, key and value are a node each."""
        self.nodes += 1
        if self.nodes > 2 * _MAX_ENTRIES:
            raise _TooManyError
        return super().compose_node(parent, index)


@dataclass(slots=True, kw_only=True)
class _Reader:
    """Keeps the lines and the problems of one file while it is read."""

    name: str
    model: type[BaseModel] = JobSpec
    lines: dict[YamlPath, int] = field(default_factory=dict)
    written: dict[YamlPath, str] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    # paths already reported, so that one mistake is not told twice
    reported: set[YamlPath] = field(default_factory=set)
    expanded: dict[str, str] = field(default_factory=dict)

    def parse(self, text: str) -> dict[Any, Any]:
        """The file as YAML reads it; duplicate and non-text keys are noted, everything worse raises."""
        try:
            self._look(_Loader(text).get_single_node())
            data = yaml.safe_load(text)
        except _TooManyError:
            raise JobFileError([self._too_many()]) from None
        except JobFileError:
            raise
        except Exception as error:
            # PyYAML's constructors raise whatever a failed match or look-up raises: `!!timestamp x` an AttributeError.
            raise self._not_yaml(error, text) from None
        assert isinstance(data, dict)
        return data

    def check(self, data: dict[Any, Any], model: type[Spec]) -> Spec:
        """The job, or JobFileError with all that was noted, in the file's order."""
        job: Spec | None = None
        filled = self._expand(data, ())
        try:
            job = model.model_validate(filled)
        except ValidationError as error:
            self._note_invalid(error, filled)
        if self.problems or job is None:
            ordered = sorted(self.problems, key=lambda problem: problem[0])
            raise JobFileError([f"{self.name}:{line}: {problem}" for line, problem in ordered])
        return job

    def _look(self, root: yaml.Node | None) -> None:
        if root is None:
            raise JobFileError([f"{self.name}: the file is empty; a job has the keys {known_keys(self.model)}"])
        if not isinstance(root, yaml.MappingNode):
            found = "a list" if isinstance(root, yaml.SequenceNode) else "plain text"
            said = f"found {found} where a job has lines of `key: value`, such as `name: my-job`"
            raise JobFileError([f"{self.name}:{root.start_mark.line + 1}: {said}"])
        self.lines[()] = 1
        if _merged_size(root) > _MAX_ENTRIES:
            raise JobFileError([self._too_many()])
        for count, (path, key, value) in enumerate(_walk((), root, ())):
            if count > _MAX_ENTRIES:
                raise JobFileError([self._too_many()])
            if isinstance(value, yaml.ScalarNode) and value.tag in _NUMBERS and len(value.value) > _MAX_DIGITS:
                # Not left to YAML: it takes hours over a number such as 1:1:1:… of a megabyte.
                place = f"{self.name}:{value.start_mark.line + 1}: {dotted(path)}"
                raise JobFileError([f"{place}: a number of {len(value.value):,} characters; write it in quotes"])
            if any(path[:n] in self.reported for n in range(1, len(path))):
                continue
            line = (key or value).start_mark.line + 1
            if key is not None and key.tag != "tag:yaml.org,2002:str":
                self._note(line, path, "a key must be plain text; write it in quotes")
            elif path in self.lines:
                self._note(line, path, f"stands here a second time (first in line {self.lines[path]})")
            else:
                self.lines[path] = line
                if isinstance(value, yaml.ScalarNode):
                    self.written[path] = value.value

    def _too_many(self) -> str:
        return f"{self.name}: too large for a job file (over {_MAX_ENTRIES:,} entries)"

    def _not_yaml(self, error: Exception, text: str) -> JobFileError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is None:
            said = "a value is not what its tag (!!…) says"
            if isinstance(error, RecursionError | ValueError):
                said = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
            return JobFileError([f"{self.name}: not valid YAML: {said}"])
        lines = text.splitlines()
        until = lines[mark.line][: mark.column + 1] if mark.line < len(lines) else ""
        where = f"{self.name}:{mark.line + 1}"
        if "\t" in until:
            return JobFileError([f"{where}: a tab stands here; YAML is indented with spaces"])
        said = getattr(error, "problem", None) or getattr(error, "context", None) or "cannot be read"
        return JobFileError([f"{where}: not valid YAML: {said} (column {mark.column + 1})"])

    def _expand(self, value: Any, path: YamlPath) -> Any:
        """`value` with its variables filled in; what cannot be is noted, and stands there as text that is UTF-8."""
        if isinstance(value, dict):
            return {k: self._expand(item, (*path, k)) for k, item in value.items() if isinstance(k, str)}
        if isinstance(value, list):
            return [self._expand(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        try:
            result = expand(value)
            result.encode()
        except ExpansionError as error:
            self._note(self._line(path), path, str(error))
            return value
        except UnicodeEncodeError:
            # An escape in the file, or bytes in the environment that are not UTF-8.
            self._note(self._line(path), path, "holds half a character (a lone surrogate): write it in UTF-8")
            return value.encode(errors="replace").decode()
        if result != value:
            self.expanded[result] = value
        return result

    def _note_invalid(self, error: ValidationError, data: Any) -> None:
        merged: dict[YamlPath, list[str]] = {}
        for item in error.errors(include_url=False):
            path, value = settle(data, item["loc"])
            if item["type"] == "missing" and isinstance(item["loc"][-1], str):
                path = (*path, item["loc"][-1])
            # pydantic counts only the entries that passed: a list of nothing but wrong ones looks empty to it.
            hollow = item["type"] == "too_short" and bool(value)
            if path not in self.reported and not hollow:
                said = sentence(item, value, self.written.get(path), self.expanded, self.model)
                merged.setdefault(path, []).append(said)
        for path, sentences in merged.items():
            self._note(self._line(path), path, join(sentences))

    def _note(self, line: int, path: YamlPath, problem: str) -> None:
        said = f"{dotted(path)}: {problem}" if path else problem
        self.problems.append((line, said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"))
        self.reported.add(path)

    def _line(self, path: YamlPath) -> int:
        return next(self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines)


def _walk(
    path: YamlPath, node: yaml.Node, above: tuple[int, ...]
) -> Iterator[tuple[YamlPath, yaml.Node | None, yaml.Node]]:
    """Every entry below `node`: its path, key and value; ValueError when an alias holds itself."""
    if id(node) in above:
        raise ValueError(f"the alias in line {node.start_mark.line + 1} holds itself")
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            here = (*path, key.value if isinstance(key, yaml.ScalarNode) else "?")
            yield here, key, value
            yield from _walk(here, value, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), None, value
            yield from _walk((*path, index), value, above)


def _merged_size(root: yaml.Node) -> int:
    """Entries of all mappings once their merges (`<<`) are copied in: a few nested ones can mean billions.

    ValueError for one that merges itself.
    """
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if not isinstance(node, yaml.MappingNode):
            return 0
        if id(node) in sizes:
            if (known := sizes[id(node)]) is None:
                raise ValueError(f"the alias in line {node.start_mark.line + 1} holds itself")
            return known
        total, sizes[id(node)] = 0, None
        for key, value in node.value:
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            total += sum(map(size, parts)) if key.tag == _MERGE else 1
        sizes[id(node)] = total
        return total

    total, seen, left = 0, set(), [root]
    while left:
        node = left.pop()
        if id(node) not in seen and isinstance(node, yaml.CollectionNode):
            seen.add(id(node))
            total += size(node)
            left += [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
    return total
