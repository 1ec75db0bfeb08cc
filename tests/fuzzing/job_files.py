"""Job files of all three kinds, as YAML text, as JSON and as bytes: a checked job, or one line for each problem."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from pydantic import BaseModel

from jobs.failures import explain
from jobs.spec import JobFileError, load_spec
from pipelines.evaluation.job import EvaluationSpec
from pipelines.finetune_job import FinetuneSpec
from pipelines.job import JobSpec

from .mutate import VALUES, damaged, damaged_text, damaged_tree
from .surface import Escaped, Surface, line

_EXAMPLES = Path(__file__).parents[2] / "jobs" / "examples"
_RUN = """\
name: nightly
model: {path: google/t5gemma-2-270m-270m, dtype: auto}
source:
  path: s3://corpus/documents/
  id: doc_id
  text: body
  images: photo
  carry: [published_at]
  filter: [["lang", "=", "de"], [year, in, [1999, 2000]], [day, ">", 2024-01-31]]
tasks:
  - &first {name: summary, kind: summarize, language: en, max_tokens: 160}
  - {<<: *first, name: again, temperature: 0.5, top_k: 40, seed: 7, stop: ["\\n\\n"]}
  - {name: animals, kind: answer, question: "Which animals appear?", where: [[lang, "!=", "en"]]}
  - name: custom
    kind: prompt
    prompt: |
      List the parties
      to this contract:
output: {path: "table/"}
limits: {max_input_tokens: 4096, overflow: reject, max_failure_rate: 0.01}
workers: {min: 1, max: 8, gpus: 0.5}
"""
_FINETUNE = """\
name: learn
model: {path: base}
source: {path: data, id: doc_id, text: body}
tasks:
  - {name: short, kind: summarize, target: summary}
  - {name: ask, kind: answer, target: answer, question_column: question}
training: {steps: 10, lora: {rank: 8}, learning_rate: 1.0e-4}
held_out: {path: held, every: 5}
output: {path: out}
"""
_EVALUATE = """\
name: scores
table: {path: out, filter: [[task, "=", a]]}
references: {path: refs.parquet, id: id}
tasks:
  - {name: to_fr, reference: [a, b], metrics: [chrf, bleu], slices: [{column: words, edges: [100, 300]}]}
by: [lang]
checks: {rows: 100}
output: {path: scores}
"""
_MODELS: dict[str, type[BaseModel]] = {"run": JobSpec, "finetune": FinetuneSpec, "evaluate": EvaluationSpec}
_SEEDS = [("run", _RUN), ("finetune", _FINETUNE), ("evaluate", _EVALUATE)] + [
    (
        "evaluate" if path.stem.startswith("evaluate") else "finetune" if path.stem == "finetune" else "run",
        path.read_text(),
    )
    for path in sorted(_EXAMPLES.glob("*.yaml"))
]
_PIECES = (
    "&a ",
    "*a",
    "*first",
    "<<: *first",
    "<<: [*first, *first]",
    "!!python/object/apply:os.system ['x']",
    "!!binary aGk=",
    "!!set {a}",
    "!!omap [a: 1]",
    "!!timestamp 2001-12-14",
    "!!int x",
    "!!float .",
    "!!null",
    "!!str 5",
    "!x",
    "!",
    "\t",
    "|\n",
    ">-\n",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "- ",
    "#",
    "'",
    '"',
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "? ",
    "\n",
    "0x1F",
    "0b1",
    "1_000",
    ".nan",
    "-.inf",
    "~",
    "yes",
    "No",
    "0o17",
    "017",
    "190:20:30",
    "1:1:1:1.5",
    "1e400",
    "2001-12-14t21:59:43.10-05:00",
    "2024-13-45",
    "0" * 5000,
    "9" * 5000,
    "0x" + "f" * 5000,
    "1" + ":1" * 40,
    "\x00",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ud800",
    '"\\ud800"',
    '"\\U00110000"',
    '"\\x1b"',
    "${HOME}",
    "$$",
    "${",
    "${1}",
    "${NOT_SET_ANYWHERE}",
    "{a: {b: {c: d}}}",
    "[[[[[[]]]]]]",
    "name: x\n",
    "tasks: []\n",
    "? {a: b}\n",
    "1: 2\n",
)
_KEYS = (
    "name",
    "nmae",
    "model",
    "path",
    "tasks",
    "where",
    "filter",
    "kind",
    "1",
    "",
    "x\ny",
    "\x85",
    "language",
    "gpus",
)
_NAMED = dict.fromkeys(_MODELS)
for _kind in _NAMED:
    _NAMED[_kind] = [text for kind, text in _SEEDS if kind == _kind]


@st.composite
def _cases(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(("run", "run", "finetune", "evaluate")))
    texts = _NAMED[kind]
    match draw(st.integers(0, 4)):
        case 0 | 1:
            tree = draw(damaged_tree(_trees(kind), VALUES, _KEYS, 2))
            data = json.dumps(tree, indent=draw(st.sampled_from((None, 1)))).encode()
        case 2 | 3:
            data = draw(damaged_text(texts, _PIECES, 2)).encode("utf-8", "surrogatepass")
        case _:
            data = draw(damaged([text.encode() for text in texts], 2))
    return {"kind": kind, "data": data}


@cache
def _trees(kind: str) -> list[Any]:
    # Dates as JSON has them, and without what a merge leaves shared.
    return [json.loads(json.dumps(yaml.safe_load(text), default=str)) for text in _NAMED[kind]]


def _check(case: dict[str, Any]) -> bool:
    path = Path("job.yaml")
    path.write_bytes(case["data"])
    try:
        load_spec(path, _MODELS[case["kind"]])
    except JobFileError as error:
        for problem in error.problems:
            line(problem)
            if not problem.startswith("job.yaml:"):
                raise Escaped(f"names no file: {problem!r}") from None
        said = explain(error)
        if said.exit_code != 2 or len(said.lines) != len(error.problems):
            raise Escaped(f"shown as {said}") from None
        return False
    return True


SURFACE = Surface(name="job_files", cases=_cases(), check=_check, share=80)
