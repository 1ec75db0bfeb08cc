"""Checkpoints with random weights, in Hugging Face layout: for the demo until a model is trained, and for measuring."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from .config import ModelConfig
from .model import T5Gemma2

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_HEAD = ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", *_BYTES]
_IMAGE = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]

# "small" is what the project trains for its demo. A full layer ends each `encoder_full` (`decoder_full`) layers.
_TEXT: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_size": 2560, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48,
        "layers": 4, "encoder_full": 4, "decoder_full": 2, "rope_factor": 1.0, "max_position_embeddings": 8_192,
    },
    "demo": {
        "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64,
        "layers": 6, "max_position_embeddings": 32_768,
    },
    "270m": {
        "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512,
        "layers": 18, "max_position_embeddings": 131_072,
    },
    "1b": {
        "vocab_size": 262_144, "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512,
        "layers": 26, "max_position_embeddings": 131_072,
    },
    "4b": {
        "vocab_size": 262_144, "hidden_size": 2560, "intermediate_size": 10_240, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 1024,
        "layers": 34, "max_position_embeddings": 131_072,
    },
}  # fmt: skip
_SIGLIP = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 896, "patch_size": 14, "tokens": 256,
}  # fmt: skip
_VISION: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3,
        "image_size": 56, "patch_size": 7, "tokens": 16,
    },
    "demo": {
        "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3,
        "image_size": 112, "patch_size": 14, "tokens": 16,
    },
    "270m": _SIGLIP,
    "1b": _SIGLIP,
    "4b": _SIGLIP,
}  # fmt: skip


def make_random_checkpoint(
    folder: Path,
    *,
    texts: Iterable[str],
    seed: int = 0,
    size: str = "demo",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    to_train: bool = False,
) -> Path:
    """Write a complete model folder with random weights and a tokenizer learned from `texts`; returns `folder`.

    `size`: "demo" (2 M parameters), or "270m", "1b", "4b": the sizes of the released 270M-270M, 1B-1B and 4B-4B, vision
    tower included; "small" (2 M) is the demo model's. `device` draws the weights: a GPU is faster, and draws others.
    `to_train`: weights to start training from, instead of ones whose outputs look like a trained model's.
    """
    if size not in _TEXT:
        raise ValueError(f"size {size!r} is not known; choose one of {', '.join(_TEXT)}")
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(size, dtype)
    _write(folder / "config.json", config)
    _write(folder / "preprocessor_config.json", _preprocessor(size))
    _write(folder / "tokenizer_config.json", {"add_bos_token": True, "tokenizer_class": "GemmaTokenizerFast"})
    tokenizer = train_tokenizer(texts, config["encoder"]["text_config"]["vocab_size"])
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = {
        name: tensor.to(device="cpu", dtype=dtype)
        for name, tensor in _random_tensors(ModelConfig.parse(config), seed, device, to_train)
    }
    if not to_train:
        # Bytes and unused names stay near zero, so that even noise is made of letters.
        embedding = tensors["model.encoder.embed_tokens.weight"]
        embedding[[i for token, i in tokenizer.get_vocab().items() if token.startswith(("<0x", "<unused"))]] *= 0.1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-fallback BPE in Gemma's manner: spaces become ▁, BOS is added, EOS is not; image tokens come last."""
    room = vocab_size - len(_HEAD) - len(_IMAGE)
    trainee = Tokenizer(BPE())
    trainee.normalizer = normalizers.Replace(" ", "▁")
    # Digits stay apart, as in Gemma: a number is copied digit by digit.
    words = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    trainee.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Digits(individual_digits=True)])
    trainer = BpeTrainer(vocab_size=room, limit_alphabet=room // 2, show_progress=False)
    trainee.train_from_iterator(texts, trainer)
    learned = json.loads(trainee.to_str())["model"]
    names = list(_HEAD)
    names += [token for token in sorted(learned["vocab"], key=learned["vocab"].__getitem__) if token not in _HEAD]
    names += [f"<unused{i}>" for i in range(vocab_size - len(_IMAGE) - len(names))]
    ids = {token: i for i, token in enumerate([*names, *_IMAGE])}
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *_IMAGE]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False, special=False)])
    return tokenizer


def _config(size: str, dtype: torch.dtype) -> dict[str, Any]:
    text = dict(_TEXT[size])
    layers, vocab, factor = text.pop("layers"), text["vocab_size"], text.pop("rope_factor", 8.0)
    encoder_types, decoder_types = (
        {"layer_types": ["full_attention" if i % every == every - 1 else "sliding_attention" for i in range(layers)]}
        for every in (text.pop("encoder_full", 6), text.pop("decoder_full", 6))
    )
    text |= {
        "num_hidden_layers": layers,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": factor, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    vision = dict(_VISION[size]) | {"model_type": "siglip_vision_model", "vision_use_head": False}
    tokens = vision.pop("tokens")
    image = {"boi_token_index": vocab - 3, "eoi_token_index": vocab - 2, "image_token_index": vocab - 1}
    return {
        "architectures": ["T5Gemma2ForConditionalGeneration"],
        "model_type": "t5gemma2",
        "dtype": str(dtype).removeprefix("torch."),
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "image_token_index": image["image_token_index"],
        "eoi_token_index": image["eoi_token_index"],
        "encoder": {
            "model_type": "t5gemma2_encoder",
            "text_config": text | encoder_types | {"model_type": "t5gemma2_text"},
            "vision_config": vision,
            "mm_tokens_per_image": tokens,
            **image,
        },
        "decoder": text | decoder_types | {"model_type": "t5gemma2_decoder"},
    }


def _preprocessor(size: str) -> dict[str, Any]:
    side = _VISION[size]["image_size"]
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "do_resize": True, "do_rescale": True, "do_normalize": True,
        "size": {"height": side, "width": side}, "resample": 2, "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_seq_length": _VISION[size]["tokens"],
    }  # fmt: skip


def _random_tensors(config: ModelConfig, seed: int, device: str, to_train: bool) -> Iterable[tuple[str, Tensor]]:
    with torch.device("meta"):
        model = T5Gemma2(config)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean, deviation = (_beginning if to_train else _distribution)(name, parameter)
        yield f"model.{name}", torch.empty(parameter.shape, device=device).normal_(mean, deviation, generator=generator)


def _distribution(name: str, parameter: Tensor) -> tuple[float, float]:
    # Activations keep their size from layer to layer, and the logits spread as trained ones do.
    if name.endswith("embed_tokens.weight"):
        return 0.0, 0.2 * parameter.shape[-1] ** -0.5
    if "vision_tower" in name and "norm" in name:
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.1)
    if name == "decoder.norm.weight":
        return 10.0, 0.5
    if "norm" in name:
        return 0.0, 0.1
    if name.endswith(("bias", "eoi_embedding")):
        return 0.0, 0.1
    if name.endswith("mm_input_projection_weight"):
        return 0.0, 0.2 * parameter.shape[0] ** -0.5
    if name.endswith("position_embedding.weight"):
        return 0.0, 0.3
    return 0.0, parameter[0].numel() ** -0.5


def _beginning(name: str, parameter: Tensor) -> tuple[float, float]:
    """Where training starts: unit activations, and what a layer adds damped (its post-norms weigh 0.4)."""
    if name.endswith(("embed_tokens.weight", "eoi_embedding")):
        # The embedding of the image's end is not scaled by sqrt(hidden) as the others are.
        return 0.0, parameter.shape[-1] ** -0.5 if name.endswith("weight") else 1.0
    if name.endswith(("post_self_attn_layernorm.weight", "post_feedforward_layernorm.weight")):
        return -0.6, 0.0
    if "vision_tower" in name and "norm" in name:
        return (1.0, 0.0) if name.endswith("weight") else (0.0, 0.0)
    if "norm" in name or name.endswith("bias"):
        return 0.0, 0.0
    if name.endswith("mm_input_projection_weight"):
        return 0.0, parameter.shape[0] ** -0.5
    if name.endswith("position_embedding.weight"):
        return 0.0, 0.02
    return 0.0, parameter[0].numel() ** -0.5


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2), encoding="utf-8")
