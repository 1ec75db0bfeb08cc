"""Model folders without weights: a Gemma-style tokenizer, image settings and a config.json, made in milliseconds."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PAD, EOS, BOS, UNK = 0, 1, 2, 3
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
WORDS = (
    "the ▁the he ▁he er ▁er in ▁in an ▁an re ▁re on ▁on ▁a ▁t ▁s ▁f th is ▁is ing ▁fox fox ▁dog dog ▁house ▁small "
    "Sum Summ mar ize ize: ▁in ▁English ▁French Trans late ▁to über ▁über <e os> <b <eo ▁▁ ▁▁▁▁"
)
IMAGE_SIZE, TOKENS_PER_IMAGE = 28, 4
IMAGE_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


@cache
def tokenizer_json() -> str:
    """Byte-fallback BPE with newline runs as added tokens, as Gemma 3 has them; BOS is added, EOS is not."""
    vocabulary = [*SPECIAL, *("\n" * n for n in range(1, 6)), *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary += [chr(code) for code in (*range(0x21, 0x7F), 0x2581, *range(0xC0, 0x100))]
    merges = []
    for word in WORDS.split():  # each prefix of a word merges with its next character
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    vocabulary += IMAGE_TOKENS
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in (*SPECIAL, *IMAGE_TOKENS[:2])])
    # The released tokenizers hold the placeholder as an added token that is not marked special.
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in (*("\n" * n for n in range(1, 6)), IMAGE_TOKENS[2])])
    return tokenizer.to_str()


def word_level_json() -> str:
    """A WordLevel vocabulary that holds "<eos>" and "<end_of_image>" as ordinary words."""
    words = [*SPECIAL, *IMAGE_TOKENS, "a", "<e", "os>", "_"]
    tokenizer = Tokenizer(models.WordLevel(vocab={word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str()


def model_folder(
    folder: Path,
    *,
    tokenizer: str | None = None,
    tasks: dict[str, Any] | None = None,
    max_positions: int = 4096,
    **ids: int,
) -> Path:
    """Write config.json, tokenizer.json, preprocessor_config.json and, when given, tasks.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer or tokenizer_json()
    made = Tokenizer.from_str(text)
    stack = {
        "vocab_size": made.get_vocab_size() + 1,
        "hidden_size": 64,
        "max_position_embeddings": max_positions,
        "pad_token_id": ids.get("pad", PAD),
        "eos_token_id": EOS,
        "bos_token_id": BOS,
    }
    boi, eoi, image = (made.token_to_id(token) for token in IMAGE_TOKENS)
    config = {
        "model_type": "t5gemma2",
        "encoder": {
            "text_config": stack,
            "vision_config": {"model_type": "siglip_vision_model", "image_size": IMAGE_SIZE, "patch_size": 7},
            "mm_tokens_per_image": TOKENS_PER_IMAGE,
            "boi_token_index": boi,
            "eoi_token_index": eoi,
        },
        "decoder": stack,
        "image_token_index": image,
    }
    settings = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    files = {"config.json": config, "preprocessor_config.json": settings, "tasks.json": tasks}
    for name, document in files.items():
        if document is not None:
            (folder / name).write_text(json.dumps(document))
    (folder / "tokenizer.json").write_text(text)
    return folder
