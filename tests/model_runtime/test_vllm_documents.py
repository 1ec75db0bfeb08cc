"""Documents that are handed to vLLM as such: what is refused, and what memory is measured with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make setup-vllm")

from model_runtime.vllm_plugin import MODALITY
from model_runtime.vllm_plugin.processor import DocumentInfo, DocumentParser, DummyDocuments

pytestmark = pytest.mark.vllm

SQUARE = (1, 3, 4, 4)


@pytest.mark.parametrize(
    "document",
    [
        {"input_ids": [2, 3]},
        {"input_ids": (2, 3), "pixel_values": None},
        {"input_ids": np.array([2, 3], dtype=np.uint16), "pixel_values": np.zeros(SQUARE, dtype=np.uint8)},
        {"input_ids": torch.tensor([2, 3]), "pixel_values": torch.zeros(SQUARE, dtype=torch.bfloat16)},
        {"input_ids": [2], "pixel_values": np.zeros(SQUARE, dtype=np.float16)},
    ],
    ids=str,
)
def test_what_is_taken(document: dict[str, Any]) -> None:
    items = DocumentParser().parse_mm_data({MODALITY: document})[MODALITY]
    assert len(items) == 1


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"input_ids": [2.5, 3.0]}, "input_ids of a doc must be whole numbers, not float64"),
        ({"input_ids": torch.tensor([2.0])}, "input_ids of a doc must be whole numbers, not float32"),
        ({"input_ids": [True]}, "whole numbers, not bool"),
        ({"input_ids": "2 3"}, "whole numbers, not <U3"),
        ({"input_ids": [[2, 3], [4]]}, "input_ids of a doc must be one row of token ids"),
        ({"input_ids": [2], "pixel_values": [[[[0]]]]}, "must be an array or a tensor, not list"),
        ({"input_ids": [2], "pixel_values": np.zeros(SQUARE, dtype=np.int64)}, "uint8 or normalised floats, not int64"),
        ({"input_ids": [2], "pixel_values": torch.zeros(SQUARE, dtype=torch.int8)}, "normalised floats, not int8"),
        ({"input_ids": [2], "pixel_values": torch.zeros(SQUARE, dtype=torch.bool)}, "normalised floats, not bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_in_one_line(document: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        DocumentParser().parse_mm_data({MODALITY: document})
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("cpu", "length", "tokens"), [(False, 40_000, 39_998), (True, 40_000, 8192), (True, 90, 88)])
def test_memory_is_measured_with_the_longest_document(
    cpu: bool, length: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm.platforms.current_platform.is_cpu", lambda: cpu)
    model = SimpleNamespace(max_input_tokens=131_072, bos_id=2)
    info: Any = SimpleNamespace(model=model)
    info.get_mm_max_tokens_per_item = lambda *asked: DocumentInfo.get_mm_max_tokens_per_item(info, *asked)
    [document] = DummyDocuments(info).get_dummy_mm_data(length, {MODALITY: 1}, {})[MODALITY]
    assert len(document["input_ids"]) == tokens
