"""A task of the job file → its prompt, where it applies, its fingerprint, and the key of each of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import langcodes
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model_runtime import Sampling
from model_runtime.settings import Settings, named, shown

from .conditions import Condition

Kind = Literal["summarize", "translate", "caption", "answer", "prompt"]
Placement = Literal["decoder", "encoder"]

DEFAULT_PROMPTS: dict[str, str] = {
    "summarize": "Summarize in {language}:",
    "translate": "Translate to {language}:",
    "caption": "Describe the image in {language}:",
    "answer": "Answer in {language}: {question}",
    "prompt": "{prompt}",
}


class TaskSpec(BaseModel):
    """One task as the job file writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9_]{1,64}$")
    kind: Kind
    language: str | None = None
    question: str | None = Field(default=None, min_length=1)
    prompt: str | None = Field(default=None, min_length=1)
    prompt_in: Placement | None = None
    max_tokens: int = Field(default=256, ge=1, le=32768)
    temperature: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    # What the table's column holds.
    seed: int = Field(default=0, ge=-(1 << 63), le=(1 << 63) - 1)
    repetition_penalty: float = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    stop: tuple[str, ...] = ()
    # Rows that do not pass get no row of this task: it does not apply to them.
    where: tuple[Condition, ...] | None = None

    @field_validator("language")
    @classmethod
    def _language_is_bcp47(cls, tag: str | None) -> str | None:
        if tag is None:
            return None
        if not langcodes.tag_is_valid(tag):
            raise ValueError(f"{tag!r} is not a language tag; write a BCP-47 tag such as en, de or pt-BR")
        return langcodes.standardize_tag(tag)

    @field_validator("stop")
    @classmethod
    def _stop_is_not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text for text in stop):
            raise ValueError("a stop string must not be empty")
        return stop

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> TaskSpec:
        needs = {"translate": "language", "answer": "question", "prompt": "prompt"}.get(self.kind)
        if needs and getattr(self, needs) is None:
            raise ValueError(f"a task of kind {self.kind} needs {needs}")
        if self.question is not None and self.kind != "answer":
            raise ValueError(f"question belongs to kind answer, not to {self.kind}")
        return self


class LimitsSpec(BaseModel):
    """Bounds on inputs and on failure, as the job file writes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_input_tokens: int = Field(default=131072, ge=1)
    overflow: Literal["truncate", "reject"] = "truncate"
    max_failure_rate: float = Field(default=0.01, ge=0.0, le=1.0)
    max_image_pixels: int = Field(default=64_000_000, ge=1)
    max_images: int = Field(default=32, ge=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task, resolved against a model: what the workers need, and nothing else."""

    name: str
    kind: Kind
    language: str | None
    prompt: str
    prompt_in: Placement
    sampling: Sampling
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTable:
    """A model folder's tasks.json: its own prompts, and the languages it was trained for.

    A prompt may name {language}, {question} and {prompt}; any other braces in it stand for themselves.
    """

    prompt_in: Placement = "decoder"
    prompts: Mapping[str, str]
    languages: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, document: Mapping[str, Any] | None) -> TaskTable:
        """From the parsed tasks.json, or the built-in defaults for None; ValueError names the key in one line."""
        if document is None:
            return cls(prompts=DEFAULT_PROMPTS, languages={})
        try:
            return cls._read(Settings(document))
        except ValueError as error:
            raise ValueError(f"tasks.json: {error}") from error

    @classmethod
    def _read(cls, keys: Settings) -> TaskTable:
        if keys.values.get("version") != 1:
            raise keys.wrong("version", "1, the version that this release reads")
        inside = keys.choice("prompt_in", "decoder", ("decoder", "encoder")) == "encoder"
        tasks = keys.block("tasks")
        for kind in tasks.values:
            if kind not in DEFAULT_PROMPTS:
                raise ValueError(f"tasks names the unknown kind {shown(kind)}; it may be {', '.join(DEFAULT_PROMPTS)}")
        entries = {kind: tasks.block(kind) for kind in DEFAULT_PROMPTS}
        return cls(
            prompt_in="encoder" if inside else "decoder",
            prompts={kind: entry.text("prompt", DEFAULT_PROMPTS[kind]) for kind, entry in entries.items()},
            languages={
                kind: entry.texts("languages") for kind, entry in entries.items() if "languages" in entry.values
            },
        )


def resolve_tasks(specs: Iterable[TaskSpec], table: TaskTable, limits: LimitsSpec) -> tuple[Task, ...]:
    """Each spec with the model's prompt filled in, in the job's order."""
    return tuple(_resolve(spec, table, limits) for spec in specs)


def language_warnings(specs: Iterable[TaskSpec], table: TaskTable) -> list[str]:
    """One line for each task whose language the model's tasks.json does not list."""
    lines = []
    for spec in specs:
        known = table.languages.get(spec.kind)
        if known is not None and spec.language is not None and spec.language not in known:
            lines.append(
                f"task {spec.name}: the model was not trained to {spec.kind} in {spec.language} "
                f"(its tasks.json lists {', '.join(map(named, known))})"
            )
    return lines


def prompt_template(spec: TaskSpec, table: TaskTable) -> str:
    """The task's own prompt, else what the model's tasks.json (or the built-in default) has for its kind."""
    return spec.prompt if spec.prompt is not None else table.prompts[spec.kind]


def fill_prompt(template: str, language: str | None, question: str | None) -> str:
    """`template` with the language's English name (English when None) and the question in place."""
    return _fill(template, language=_language_name(language), question=question or "")


def applies(kind: Kind, *, has_text: bool, has_image: bool) -> bool:
    """Whether a task of `kind` makes a row for a document: summaries and translations need text, captions an image."""
    match kind:
        case "summarize" | "translate":
            return has_text
        case "caption":
            return has_image
        case _:
            return has_text or has_image


def row_key(document_id: str, document_sha256: str, task_fingerprint: str, model_revision: str) -> bytes:
    """The 128-bit key of a (document, task) pair: BLAKE2b over its length-prefixed parts."""
    return _digest(document_id, document_sha256, task_fingerprint, model_revision)


def location_key(source_path: str, source_row: int, task_fingerprint: str, model_revision: str) -> bytes:
    """The key of a pair whose document id is null or taken: it is known by where it stands."""
    return _digest("\0location", source_path, str(source_row), task_fingerprint, model_revision)


def _resolve(spec: TaskSpec, table: TaskTable, limits: LimitsSpec) -> Task:
    placement = spec.prompt_in or table.prompt_in
    prompt = fill_prompt(prompt_template(spec, table), spec.language, spec.question)
    sampling = Sampling(
        max_tokens=spec.max_tokens,
        temperature=spec.temperature,
        top_k=spec.top_k,
        top_p=spec.top_p,
        seed=spec.seed,
        repetition_penalty=spec.repetition_penalty,
        stop=spec.stop,
    )
    identity = {
        "name": spec.name,
        "kind": spec.kind,
        "prompt": prompt,
        "prompt_in": placement,
        "max_tokens": spec.max_tokens,
        "temperature": spec.temperature,
        "top_k": spec.top_k,
        "top_p": spec.top_p,
        "seed": spec.seed,
        "repetition_penalty": spec.repetition_penalty,
        "stop": list(spec.stop),
        "max_input_tokens": limits.max_input_tokens,
        "overflow": limits.overflow,
        "max_image_pixels": limits.max_image_pixels,
        "max_images": limits.max_images,
    }
    canonical = json.dumps(identity, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return Task(
        name=spec.name,
        kind=spec.kind,
        language=spec.language,
        prompt=prompt,
        prompt_in=placement,
        sampling=sampling,
        fingerprint=hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest(),
    )


def _fill(template: str, **values: str) -> str:
    # Not str.format: a prompt may hold braces of its own, and a question may spell "{language}".
    parts: list[str] = []
    rest = template
    while True:
        found = [(rest.find("{" + name + "}"), name) for name in values if "{" + name + "}" in rest]
        if not found:
            return "".join(parts) + rest
        at, name = min(found)
        parts += [rest[:at], values[name]]
        rest = rest[at + len(name) + 2 :]


@cache
def _language_name(tag: str | None) -> str:
    return langcodes.Language.get(tag or "en").display_name("en")


def _digest(*parts: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()
