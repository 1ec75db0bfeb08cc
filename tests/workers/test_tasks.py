"""tasks.json: a model's own prompts and languages, and one line for what cannot be read."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.fuzz import mutated, refused
from workers.tasks import DEFAULT_PROMPTS, LimitsSpec, TaskSpec, TaskTable, language_warnings, resolve_tasks

GOOD: dict[str, Any] = {
    "version": 1,
    "prompt_in": "encoder",
    "tasks": {
        "translate": {"prompt": "In {language}:", "languages": ["de", "fr"]},
        "answer": {"prompt": "Q: {question}"},
    },
}


def test_without_a_file_the_defaults_hold() -> None:
    table = TaskTable.parse(None)
    assert (table.prompts, table.languages, table.prompt_in) == (DEFAULT_PROMPTS, {}, "decoder")


def test_a_good_file() -> None:
    table = TaskTable.parse(GOOD)
    assert table.prompts == DEFAULT_PROMPTS | {"translate": "In {language}:", "answer": "Q: {question}"}
    assert table.prompt_in == "encoder"
    spec = TaskSpec(name="t", kind="translate", language="es")
    assert "its tasks.json lists de, fr" in language_warnings([spec], table)[0]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "version is missing"),
        ({"version": 2}, "version is 2; it must be 1"),
        ({"version": 1, "prompt_in": "x"}, "prompt_in is 'x'; it must be one of decoder, encoder"),
        ({"version": 1, "prompt_in": []}, "prompt_in is []"),
        ({"version": 1, "tasks": []}, "tasks is []; it must be an object"),
        ({"version": 1, "tasks": {"sing": {}}}, "tasks names the unknown kind 'sing'"),
        ({"version": 1, "tasks": {"translate": "x"}}, "tasks.translate is 'x'; it must be an object"),
        ({"version": 1, "tasks": {"translate": {"prompt": 5}}}, "tasks.translate.prompt is 5; it must be text"),
        ({"version": 1, "tasks": {"translate": {"prompt": "\ud800"}}}, r"tasks.translate.prompt is '\ud800'"),
        ({"version": 1, "tasks": {"translate": {"languages": "de"}}}, "tasks.translate.languages is 'de'"),
        ({"version": 1, "tasks": {"translate": {"languages": ["de", 1]}}}, "it must be a list of texts"),
    ],
)
def test_a_wrong_one_names_file_and_key(document: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        TaskTable.parse(document)
    assert said in str(refused.value)
    assert str(refused.value).startswith("tasks.json: ")


def test_an_unknown_placeholder_stands_for_itself() -> None:
    table = TaskTable.parse({"version": 1, "tasks": {"translate": {"prompt": "{tone} {language} {}{0} {{language}}:"}}})
    [task] = resolve_tasks([TaskSpec(name="t", kind="translate", language="fr")], table, LimitsSpec())
    assert task.prompt == "{tone} French {}{0} {French}:"


def test_any_file_is_a_table_or_one_line() -> None:
    specs = [
        TaskSpec(name="a", kind="translate", language="de"),
        TaskSpec(name="b", kind="answer", question="Why {language}?"),
    ]
    read = 0
    for document in mutated(GOOD, seed=1, count=3000):
        said = refused(partial(TaskTable.parse, document), ValueError)
        if said is not None:
            assert said.startswith("tasks.json: ") and "\n" not in said and len(said) < 300
            continue
        read += 1
        assert resolve_tasks(specs, TaskTable.parse(document), LimitsSpec())
        language_warnings(specs, TaskTable.parse(document))
    assert 300 < read < 2700, "the mutations are neither all harmless nor all fatal"
