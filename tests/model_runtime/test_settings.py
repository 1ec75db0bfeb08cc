"""The JSON files of a model folder: wrong shapes are one line naming file and key, whatever they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model_runtime import ModelError
from model_runtime.config import ACTIVATIONS, ModelConfig
from model_runtime.layers import ACTIVATIONS as IMPLEMENTED
from model_runtime.model import T5Gemma2
from model_runtime.processing import Processor
from tests.checkpoints import cached_checkpoint, shape_named
from tests.fuzz import mutated, refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose JSON files a test may change: `change` writes all of them anew."""
    return Path(shutil.copytree(cached_checkpoint(shape_named("old-config")), tmp_path_factory.mktemp("model") / "m"))


@pytest.fixture(scope="module")
def good(folder: Path) -> dict[str, dict[str, Any]]:
    new = cached_checkpoint(shape_named("window-2"))
    return {
        "config.json": json.loads((new / "config.json").read_text()),
        "old": json.loads((folder / "config.json").read_text()),
        "preprocessor_config.json": json.loads((new / "preprocessor_config.json").read_text()),
        "generation_config.json": {"eos_token_id": [1, 7]},
        "tasks.json": {"version": 1, "tasks": {}},
    }


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, document in files.items():
        if name != "old":
            (folder / name).write_text(json.dumps(document))


def refusal(folder: Path, load: Callable[[Path], object] = Processor.load) -> str:
    """The one line with which a folder is refused, without the folder."""
    with pytest.raises(ModelError) as refused:
        load(folder)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 500
    return message.replace(f"{folder}/", "")


TEXT, VISION = "encoder.text_config", "encoder.vision_config"
WRONG: list[tuple[str, Any, str]] = [
    ("encoder", "x", "encoder is 'x'; it must be an object"),
    ("encoder", [], "encoder is []"),
    (f"{TEXT}.num_key_value_heads", 0, f"{TEXT}.num_key_value_heads is 0; it must be a whole number from 1"),
    ("decoder.num_key_value_heads", 3, "decoder.num_key_value_heads is 3; it must be a divisor of the 4 attention"),
    ("decoder.hidden_size", -64, "decoder.hidden_size is -64"),
    ("decoder.vocab_size", 512.5, "decoder.vocab_size is 512.5"),
    ("decoder.num_hidden_layers", True, "decoder.num_hidden_layers is True"),
    ("decoder.num_hidden_layers", 10**9, "decoder.num_hidden_layers is 1000000000"),
    ("decoder.intermediate_size", None, "decoder.intermediate_size is null"),
    ("decoder.head_dim", 15, "decoder.head_dim is 15; it must be even"),
    ("decoder.layer_types", 5, "decoder.layer_types is 5; it must be a list of"),
    ("decoder.layer_types", [{}, 1, None], "decoder.layer_types is [{}, 1, None]"),
    ("decoder.layer_types", ["full_attention"], "decoder.layer_types names 1 layers, num_hidden_layers says 3"),
    ("decoder.sliding_window", None, "decoder.sliding_window is null"),
    ("decoder.query_pre_attn_scalar", 0, "decoder.query_pre_attn_scalar is 0; it must be a number above 0"),
    ("decoder.rms_norm_eps", "1e-6", "decoder.rms_norm_eps is '1e-6'"),
    ("decoder.final_logit_softcapping", 0, "decoder.final_logit_softcapping is 0"),
    ("decoder.eos_token_id", "x", "decoder.eos_token_id is 'x'; it must be a token id or a list of them"),
    ("decoder.bos_token_id", 512, "decoder.bos_token_id is 512; it must be a token id below the vocabulary's 512"),
    ("encoder.boi_token_index", -1, "encoder.boi_token_index is -1"),
    ("image_token_index", 999, "image_token_index is 999"),
    ("tie_word_embeddings", "yes", "tie_word_embeddings is 'yes'; it must be true or false"),
    ("dtype", 16, "dtype is 16; it must be text"),
    ("decoder.rope_parameters", "x", "decoder.rope_parameters is 'x'; it must be an object"),
    ("decoder.rope_parameters.full_attention", [1], "decoder.rope_parameters.full_attention is [1]"),
    ("decoder.rope_parameters.full_attention", {"rope_type": "linear"}, "full_attention.factor is missing"),
    ("decoder.rope_parameters.full_attention", {"rope_type": "yarn"}, "rope_type is 'yarn'; it must be one of default"),
    ("decoder.rope_parameters.full_attention", {"rope_theta": 0}, "full_attention.rope_theta is 0"),
    (f"{VISION}.hidden_act", "quick_gelu", f"{VISION}.hidden_act is 'quick_gelu'; it must be one of gelu"),
    (f"{VISION}.image_size", 30, f"{VISION}.image_size is 30; it must be a multiple of the patch size 7"),
    (f"{VISION}.image_size", [28, 35], "it must be one number, or the same twice"),
    (f"{VISION}.num_attention_heads", 3, "it must be a divisor of the hidden size 32"),
    (f"{VISION}.num_channels", 4, "it must be 3: images are RGB"),
    ("encoder.mm_tokens_per_image", 5, "encoder.mm_tokens_per_image is 5; it must be the square of a divisor of 4"),
    ("encoder.mm_tokens_per_image", 9, "encoder.mm_tokens_per_image is 9; it must be the square of a divisor of 4"),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG)
def test_a_wrong_value_names_file_and_key(folder: Path, good: dict, path: str, value: Any, said: str) -> None:
    config = json.loads(json.dumps(good["config.json"]))
    *parents, key = path.split(".")
    holder = config
    for name in parents:
        holder = holder[name]
    holder[key] = value
    write(folder, good | {"config.json": config})
    message = refusal(folder)
    assert message.startswith("config.json: ") and said in message, message


@pytest.mark.parametrize(
    ("name", "document", "said"),
    [
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, "image_mean is [0.5, 0.5]; it must be a list of 3"),
        ("preprocessor_config.json", {"image_std": "x"}, "image_std is 'x'"),
        (
            "preprocessor_config.json",
            {"image_std": [0.5, 0.0, 0.5]},
            "image_std is [0.5, 0.0, 0.5]; it must be above 0",
        ),
        ("preprocessor_config.json", {"rescale_factor": "x"}, "rescale_factor = 'x' is not supported"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize = False is not supported"),
        ("generation_config.json", {"eos_token_id": {}}, "eos_token_id is {}; it must be a token id or a list"),
        ("config.json", [], "is not a JSON object"),
    ],
)
def test_the_other_files_are_named_too(folder: Path, good: dict, name: str, document: Any, said: str) -> None:
    write(folder, good | {name: document})
    message = refusal(folder)
    assert name in message and said in message, message


def test_image_settings_are_found_in_either_file(folder: Path, good: dict) -> None:
    write(folder, good)
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": 5}))
    try:
        assert refusal(folder) == "processor_config.json: image_processor is 5; it must be an object"
    finally:
        (folder / "processor_config.json").unlink()


def test_a_file_nested_too_deeply(folder: Path, good: dict) -> None:
    write(folder, good)
    (folder / "config.json").write_text('{"a":' * 100_000)
    assert refusal(folder) == "config.json cannot be read as JSON: nested too deeply"


def test_every_activation_that_a_config_may_name_is_there() -> None:
    assert set(ACTIVATIONS) == set(IMPLEMENTED)


@pytest.mark.parametrize("name", ["config.json", "old", "preprocessor_config.json", "generation_config.json"])
def test_any_file_is_read_or_one_line(folder: Path, good: dict, name: str) -> None:
    read = 0
    write(folder, good)
    written = name if name != "old" else "config.json"
    for document in mutated(good[name], seed=2, count=1500):
        (folder / written).write_text(json.dumps(document))
        said = refused(partial(ModelConfig.load, folder), ModelError)
        if said is not None:
            assert written in said and "\n" not in said and len(said) < 500
            continue
        read += 1
        if read % 8 == 0:
            assert "\n" not in (refused(partial(Processor.load, folder), ModelError) or "")
            config = ModelConfig.load(folder)
            if config.tied and max(config.encoder.num_layers, config.decoder.num_layers) < 50:
                assert T5Gemma2.expected_tensors(config), "a config that is read can be built"
    assert 150 < read < 1350, "the mutations are neither all harmless nor all fatal"
