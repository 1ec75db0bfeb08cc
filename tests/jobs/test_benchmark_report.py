"""Figures as data, as Markdown and as a plot; floors from the model's sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.bench.crew import PeerLost
from jobs.bench.floors import encoder_flops, layer_parameters, step_bytes
from jobs.bench.inputs import Inputs
from jobs.bench.quality import compare
from jobs.bench.report import append_section, section
from jobs.bench.types import Ceiling, Figure, Value, ratios
from model_runtime.config import ModelConfig
from model_runtime.synthetic import _config


def made(name: str = "encode", tokens: int = 512, ours: float = 300.0, theirs: float = 600.0, **more) -> Figure:
    values = (
        Value(peer="native bfloat16", samples=(ours, ours * 1.1, ours * 0.9), extra={"peak_mib": 12.0}),
        Value(peer="ctranslate2 int8", samples=(theirs, theirs, theirs)),
    )
    given = {
        "missing": {"vllm bfloat16": "vllm is not installed"},
        "checks": {"produced_tokens": 12_345},
        "ceiling": Ceiling(kind="MFU", measured=400.0, unit="GFLOP/s", reached={"native bfloat16": 0.25}),
    }
    return Figure(
        name=name,
        work={"tokens": tokens},
        unit="tokens/s",
        values=values,
        ratios=ratios(values),
        device="a CPU",
        date="2026-11-24",
        versions={"corpusmill": "0.1.0"},
        **{**given, **more},
    )


def test_ratios_pair_the_samples_that_were_taken_together() -> None:
    ours = Value(peer="native int8", samples=(2.0, 40.0, 6.0))
    theirs = Value(peer="ctranslate2 int8", samples=(1.0, 10.0, 3.0))
    shorter = Value(peer="transformers-plain bfloat16", samples=(4.0,))
    assert ratios((ours, theirs, shorter)) == {
        "native int8 / ctranslate2 int8": 2.0,
        "native int8 / transformers-plain bfloat16": 0.5,
    }
    assert ratios((ours, theirs), "lower") == {"native int8 / ctranslate2 int8": 0.5}


def test_the_distance_of_logits() -> None:
    expected = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    shifted = compare(expected + 3, expected)
    assert shifted.value < 1e-6 and shifted.seen["other_token"] == 0
    noisy = expected.copy()
    noisy[0, int(expected[0].argmin())] = 10
    far = compare(noisy, expected)
    probabilities, others = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (expected, noisy))
    assert far.seen["other_token"] == 0.25
    assert far.seen["divergence"] == pytest.approx((probabilities * np.log(probabilities / others)).sum() / 4, rel=1e-4)
    with pytest.raises(PeerLost, match="not finite"):
        compare(noisy * np.nan, expected)


def test_a_figure_is_one_line_of_json() -> None:
    line = made(checks={"strange": float("nan")}).line()
    assert "\n" not in line
    figure = json.loads(line)
    assert figure["values"][0]["median"] == 300.0
    assert figure["checks"] == {"strange": None}


def test_the_section_shows_losses_and_who_is_missing() -> None:
    lost = made(tokens=2048, missing={"vllm bfloat16": "vllm is not installed", "ctranslate2 int8": "out of memory"})
    text = section([made(), lost], model="270m", command="corpusmill benchmark", picture="p.png")
    assert "## 2026-11-24: benchmark, 270M-270M shape, a CPU" in text
    assert "| tokens 512 | 300 (MFU 25%, +12 MiB) | 600 | MFU: 400 GFLOP/s |" in text
    assert "| tokens 512 | 0.50 |" in text
    assert "- vllm bfloat16: vllm is not installed\n" in text
    assert "- ctranslate2 int8: out of memory (tokens 2048)" in text
    assert "- produced_tokens: 12,345" in text


def test_sections_are_appended_and_plots_kept(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Measurements\n\nEarlier.\n")
    nothing = made(name="corpus", missing={"native bfloat16": "no"})
    pictures = [append_section(page, [made(), nothing], model="my-model", command="c") for _ in range(2)]
    text = page.read_text()
    assert text.startswith("# Measurements\n\nEarlier.\n\n## ")
    assert text.count("## 2026-11-24: benchmark, my-model") == 2
    assert len(set(pictures)) == 2
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.relative_to(tmp_path).as_posix() in text


@pytest.mark.parametrize(("size", "millions"), [("270m", 100), ("1b", 698), ("4b", 3209)])
def test_sizes_are_the_released_ones(size: str, millions: int) -> None:
    config = _parsed(size)
    for half in (config.encoder, config.decoder):
        assert layer_parameters(half) / 1e6 == pytest.approx(millions, rel=0.01)


def test_floors_count_what_the_checkpoint_holds() -> None:
    from model_runtime.model import T5Gemma2

    config = _parsed("demo")
    shapes = T5Gemma2.expected_tensors(config)
    matrices = sum(s.numel() for name, s in shapes.items() if name.startswith("encoder.layers.") and len(s) == 2)
    assert layer_parameters(config.encoder) == matrices
    tokens, window, wide = 100, 64, 4 * 4 * 32
    assert encoder_flops(config, tokens) == tokens * (2 * matrices + wide * (5 * window + 1 * tokens))
    head = 2048 * 128
    key = 2 * 1 * 32 * 2
    assert step_bytes(config, "bfloat16", 100, 2, 8, 10) == 2 * (matrices + head) + key * 6 * (2 * 100 + 8 * 10)


def test_inputs_are_new_each_time_and_the_same_for_all() -> None:
    config = _parsed("demo")
    first = Inputs(config, 0, "encode", 64, 0).document(64)
    assert (first == Inputs(config, 0, "encode", 64, 0).document(64)).all()
    assert (first != Inputs(config, 0, "encode", 64, 1).document(64)).any()
    assert first[0] == config.bos_id
    assert first[1:].min() >= 500
    assert first.max() < config.boi_id
    lengths = Inputs(config, 0, "corpus").lengths(2000, 600, 6000)
    assert sorted(lengths)[1000] == pytest.approx(600, rel=0.1)


def _parsed(size: str) -> ModelConfig:
    import torch

    return ModelConfig.parse(_config(size, torch.float32))
