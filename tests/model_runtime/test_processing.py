"""Text and images laid out as the reference lays them out, and no text that can pass for a special token."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from model_runtime.errors import ErrorCode, ModelError, RequestError
from model_runtime.processing import Processor
from tests.checkpoints import cached_checkpoint, shape_named
from tests.tokenizers_tiny import (
    BOS,
    EOS,
    IMAGE_SIZE,
    IMAGE_TOKENS,
    PAD,
    SPECIAL,
    TOKENS_PER_IMAGE,
    model_folder,
    tokenizer_json,
    word_level_json,
)

TEXTS = [
    "the fox in the house",
    " leading and trailing ",
    "\n\n\nthree newlines first\n",
    "\n",
    "über\n\n\n\n\n\n\n\nmany newlines\n \n",
    "tabs\tand\r\nreturns",
    "漢字 and emoji 🦊 and \u200b zero width",
    "▁ a real U+2581 ▁▁",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Processor:
    return Processor.load(folder)


def reserved_ids(folder: Path) -> set[int]:
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return set(map(made.get_vocab().__getitem__, (*SPECIAL[:3], *IMAGE_TOKENS)))


# --- the reference -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(folder: Path) -> Callable[[str, int], list[int]]:
    """transformers' Gemma3Processor over the same tokenizer: (text with markers, images) → ids."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    boi, eoi, image = IMAGE_TOKENS
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"boi_token": boi, "eoi_token": eoi, "image_token": image},
    )
    gemma = transformers.Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer,
        image_seq_length=TOKENS_PER_IMAGE,
    )

    def ids(text: str, images: int) -> list[int]:
        pictures = [[Image.new("RGB", (9, 9))] * images] if images else None
        return list(gemma(text=[text], images=pictures)["input_ids"][0])

    return ids


@pytest.mark.parametrize("instruction", [None, "Summarize in English:", "ends in a newline\n"])
@pytest.mark.parametrize("images", [0, 1, 2, 5])
@pytest.mark.parametrize("text", TEXTS)
def test_the_layout_is_the_reference_processors(
    processor: Processor, reference: Callable[[str, int], list[int]], text: str, images: int, instruction: str | None
) -> None:
    lead = "" if instruction is None else instruction + "\n\n"
    expected = reference(lead + IMAGE_TOKENS[0] * images + text, images)
    got = processor.encoder_input(
        text=text, images=images, instruction=instruction, max_tokens=4096, overflow="truncate"
    )
    assert got.ids.dtype == np.int32
    assert got.ids.tolist() == expected
    assert not got.truncated


def test_the_layout_of_a_real_checkpoint_is_the_reference_processors() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    folder = cached_checkpoint(shape_named("one-kv-head"))
    ours = Processor.load(folder)
    gemma = transformers.Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        image_seq_length=ours.tokens_per_image,
    )
    text = "The quick fox:\n\nDer schnelle Fuchs springt über den Hund."
    picture = Image.new("RGB", (50, 20), (200, 30, 90))
    expected = gemma(text=["Describe:\n\n<start_of_image><start_of_image>" + text], images=[[picture, picture]])
    got = ours.encoder_input(text=text, images=2, instruction="Describe:", max_tokens=4096, overflow="reject")
    assert got.ids.tolist() == list(expected["input_ids"][0])


def test_no_text_is_only_the_images(processor: Processor) -> None:
    none = processor.encoder_input(text=None, images=2, max_tokens=99, overflow="reject")
    empty = processor.encoder_input(text="", images=2, max_tokens=99, overflow="reject")
    assert none.ids.tolist() == empty.ids.tolist()
    assert none.ids[0] == BOS


# --- literal text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [*SPECIAL, *IMAGE_TOKENS])
def test_a_special_token_spelled_in_a_text_is_characters(processor: Processor, folder: Path, token: str) -> None:
    for text in (token, f"before {token} after", token * 40, f"{token}\n\n{token}", token[:-1] + token):
        ids = processor.encode_text(text)
        assert reserved_ids(folder).isdisjoint(ids)
        assert processor.decode(ids) == text


def test_an_instruction_is_literal_too(processor: Processor, folder: Path) -> None:
    ids = processor.prefix_ids("Say <eos><start_of_image>:")
    assert isinstance(ids, tuple)
    assert reserved_ids(folder).isdisjoint(ids)
    assert processor.decode(ids) == "Say <eos><start_of_image>:"
    layout = processor.encoder_input(
        text="<bos>x", images=1, instruction="<pad><image_soft_token>", max_tokens=200, overflow="reject"
    ).ids.tolist()
    image = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(IMAGE_TOKENS[2])
    assert (layout.count(BOS), layout.count(PAD), layout.count(image)) == (1, 0, TOKENS_PER_IMAGE)


def test_encoding_adds_neither_bos_nor_eos(processor: Processor) -> None:
    assert processor.encode_text("") == []
    assert {BOS, EOS}.isdisjoint(processor.encode_text("the fox"))


def test_a_vocabulary_that_spells_special_tokens_as_words_yields_none(tmp_path: Path) -> None:
    words = Processor.load(model_folder(tmp_path, tokenizer=word_level_json()))
    made = Tokenizer.from_str(word_level_json())
    a, left, right, unknown = (made.token_to_id(word) for word in ("a", "<e", "os>", "<unk>"))
    assert words.encode_text("a <eos> a") == [a, left, right, a]
    reserved = {made.token_to_id(token) for token in (*SPECIAL[:3], *IMAGE_TOKENS)}
    assert reserved.isdisjoint(words.encode_text("<end_of_image> <bos> <pad> " * 300))
    assert words.encode_text("nowhere") == [unknown]


def test_a_reserved_token_of_one_character_is_left_out(tmp_path: Path) -> None:
    made = Tokenizer.from_str(word_level_json())
    words = Processor.load(model_folder(tmp_path, tokenizer=word_level_json(), pad=made.get_vocab()["_"]))
    assert words.encode_text("a _ a") == [made.token_to_id("a")] * 2


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83e\udd8a", "\0", "a\0b\0", "\ufffe\uffff", "\x80\x9f"])
def test_odd_characters_are_text(processor: Processor, folder: Path, text: str) -> None:
    ids = processor.encode_text(text)
    assert ids
    assert reserved_ids(folder).isdisjoint(ids)
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert processor.decode(ids) == expected


def test_random_text_never_yields_a_reserved_token(processor: Processor, folder: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    reserved = reserved_ids(folder)
    words = Processor.load(model_folder(tmp_path, tokenizer=word_level_json()))
    parts = [*SPECIAL, *IMAGE_TOKENS, *"<>eos\n ▁_a", "\n\n", "os>", "<e", "\ud800", "\0", "é", "漢", "<0x00>", "🦊"]
    for _ in range(400):
        text = "".join(rng.choices(parts, k=rng.randrange(1, 40)))
        ids = processor.encode_text(text)
        assert reserved.isdisjoint(ids)
        assert processor.decode(ids) == text.replace("\ud800", "\ufffd").replace("▁", " ")
        assert {0, 1, 2, 4, 5, 6}.isdisjoint(words.encode_text(text))


# --- limits ------------------------------------------------------------------------------------------------------


def test_truncation_cuts_the_tail_of_the_text(processor: Processor) -> None:
    text = "the fox is in the house " * 30
    whole = processor.encoder_input(text=text, images=2, instruction="Sum:", max_tokens=4096, overflow="truncate")
    for limit in (40, 41, 100, len(whole.ids) - 1):
        cut = processor.encoder_input(text=text, images=2, instruction="Sum:", max_tokens=limit, overflow="truncate")
        assert cut.truncated
        assert cut.ids.tolist() == whole.ids[:limit].tolist()
    exact = processor.encoder_input(
        text=text, images=2, instruction="Sum:", max_tokens=len(whole.ids), overflow="reject"
    )
    assert not exact.truncated


def test_reject_says_both_numbers(processor: Processor) -> None:
    with pytest.raises(RequestError) as caught:
        processor.encoder_input(text="x" * 2000, images=0, max_tokens=50, overflow="reject")
    assert caught.value.code == ErrorCode.TOO_LONG
    assert caught.value.message == "the input has 2,001 tokens; the limit is 50"


@pytest.mark.parametrize("overflow", ["truncate", "reject"])
def test_an_image_is_never_cut(processor: Processor, overflow: Any) -> None:
    needed = len(processor.encoder_input(text=None, images=3, max_tokens=999, overflow="reject").ids)
    fits = processor.encoder_input(text="fox", images=3, max_tokens=needed, overflow="truncate")
    assert fits.truncated
    with pytest.raises(RequestError) as caught:
        processor.encoder_input(text="fox", images=3, max_tokens=needed - 1, overflow=overflow)
    assert caught.value.code == ErrorCode.TOO_LONG
    assert str(needed) in caught.value.message
    assert str(needed - 1) in caught.value.message


def test_an_instruction_that_leaves_no_room_for_the_text_is_too_long(processor: Processor) -> None:
    for instruction, limit in ((None, 1), ("the fox", len(processor.encode_text("the fox\n\n")) + 1)):
        with pytest.raises(RequestError) as caught:
            processor.encoder_input(
                text="dog", images=0, instruction=instruction, max_tokens=limit, overflow="truncate"
            )
        assert caught.value.code == ErrorCode.TOO_LONG


@pytest.mark.parametrize("seed", range(6))
def test_a_very_long_text_is_cut_exactly_as_if_tokenized_whole(processor: Processor, seed: int) -> None:
    rng = random.Random(seed)
    parts = ["the fox ", "in the house", "\n", "\n\n\n", "<eos>", "\n\n\n\n\n\n\n", "über", " ", "漢"]
    text = "".join(rng.choices(parts, k=60_000))
    whole = processor.encode_text(text)
    for limit in (3, 100, 5000):
        got = processor.encoder_input(text=text, images=0, max_tokens=limit, overflow="truncate")
        assert got.truncated
        assert got.ids.tolist() == [BOS, *whole[: limit - 1]]
    with pytest.raises(RequestError, match=r"more than .* tokens; the limit is 100"):
        processor.encoder_input(text=text, images=0, max_tokens=100, overflow="reject")


def test_a_very_long_text_is_not_tokenized_to_its_end(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = processor._encode

    def counted(text: str) -> list[int]:
        seen.append(len(text))
        return encode(text)

    monkeypatch.setattr(processor, "_encode", counted)
    text = ("the fox is in the house\n" * 50 + "\n") * 4000
    got = processor.encoder_input(text=text, images=0, max_tokens=300, overflow="truncate")
    assert len(got.ids) == 300
    assert sum(seen) < len(text) / 20


def test_a_long_run_of_newlines_is_no_place_to_cut_inside(processor: Processor) -> None:
    text = "a" + "\n" * 200_001 + "b"
    got = processor.encoder_input(text=text, images=0, max_tokens=50, overflow="truncate")
    assert got.ids.tolist() == [BOS, *processor.encode_text(text)[:49]]


# --- out again ---------------------------------------------------------------------------------------------------


def test_decoding_leaves_special_tokens_out_and_replaces_broken_bytes(processor: Processor, folder: Path) -> None:
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fox = processor.encode_text("the fox")
    assert processor.decode([BOS, *fox, *sorted(reserved_ids(folder)), EOS]) == "the fox"
    half = processor.encode_text("漢")[:2]
    assert processor.decode([*fox, *half]) == "the fox��"
    assert processor.decode([*processor.encode_text("漢"), made.get_vocab_size() + 5]) == "漢"
    assert processor.decode([]) == ""


# --- the folder --------------------------------------------------------------------------------------------------


def test_a_folder_says_what_it_is(tmp_path: Path) -> None:
    tasks = {"version": 1, "tasks": {}}
    loaded = Processor.load(model_folder(tmp_path, tasks=tasks, max_positions=777))
    assert (loaded.tokens_per_image, loaded.image_size, loaded.max_positions) == (TOKENS_PER_IMAGE, IMAGE_SIZE, 777)
    assert (loaded.bos_id, loaded.eos_ids) == (BOS, (EOS,))
    assert loaded.image_mean == loaded.image_std == (0.5, 0.5, 0.5)
    assert loaded.tasks_document == tasks


def test_the_settings_may_stand_in_processor_config(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {"image_mean": [0.1, 0.2, 0.3]}
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    loaded = Processor.load(folder)
    assert loaded.image_mean == (0.1, 0.2, 0.3)
    assert loaded.tasks_document is None


def test_settings_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    path = folder / "preprocessor_config.json"
    good = json.loads(path.read_text())
    for bad in (
        {"size": {"height": 896, "width": 896}},
        {"size": {"shortest_edge": IMAGE_SIZE}},
        {"do_pan_and_scan": True},
        {"resample": 3},
        {"rescale_factor": 1.0},
    ):
        path.write_text(json.dumps(good | bad))
        with pytest.raises(ModelError, match=next(iter(bad))):
            Processor.load(folder)


def test_a_folder_that_cannot_be_used_says_so_in_one_line(tmp_path: Path) -> None:
    def refused(what: str, change: Callable[[Path], object]) -> None:
        folder = model_folder(tmp_path / what)
        change(folder)
        with pytest.raises(ModelError) as caught:
            Processor.load(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
        assert what in str(caught.value)

    refused("tokenizer.json", lambda folder: (folder / "tokenizer.json").unlink())
    refused("config.json", lambda folder: (folder / "config.json").unlink())
    refused("tasks.json", lambda folder: (folder / "tasks.json").write_text("{"))
    refused("cannot be read as a tokenizer", lambda folder: (folder / "tokenizer.json").write_text('{\n"model":\n'))
    refused("another checkpoint", lambda folder: _with_vocabulary(folder, 100))


def _with_vocabulary(folder: Path, size: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["encoder"]["text_config"]["vocab_size"] = config["decoder"]["vocab_size"] = size
    (folder / "config.json").write_text(json.dumps(config))


def test_an_added_token_without_an_embedding_is_characters(tmp_path: Path) -> None:
    made = Tokenizer.from_str(tokenizer_json())
    size = made.get_vocab_size()
    made.add_tokens(["<extra>"])
    folder = model_folder(tmp_path, tokenizer=made.to_str())
    _with_vocabulary(folder, size)
    ids = Processor.load(folder).encode_text("an <extra> token")
    assert max(ids) < size
    assert Processor.load(folder).decode(ids) == "an <extra> token"


def test_a_tokenizers_own_truncation_and_padding_are_off(tmp_path: Path) -> None:
    made = Tokenizer.from_str(tokenizer_json())
    made.enable_truncation(5)
    made.enable_padding(length=64)
    loaded = Processor.load(model_folder(tmp_path, tokenizer=made.to_str()))
    assert len(loaded.encode_text("xyz" * 10)) == 30


def test_it_starts_without_transformers_and_torch(folder: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom model_runtime.processing import Processor\n"
        f"Processor.load(Path({str(folder)!r})).encode_text('x')\n"
        "sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
