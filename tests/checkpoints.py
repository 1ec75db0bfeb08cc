"""Tiny T5Gemma 2 checkpoints in Hugging Face layout: random weights that behave, and a real tokenizer.

Weights come from transformers' own class, so what the tests load is what `save_pretrained` writes. They are drawn so
that greedy output varies: norms are not the identity, images and the end-of-image embedding are not zero, and queries
and keys are sharp enough that a wrong mask changes tokens.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

Layout = Literal["saved", "memory", "vision_model", "tied"]

PAD, EOS, BOS, UNK = 0, 1, 2, 3
# The last ids of the vocabulary.
_IMAGE_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>", "<unused0>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of one tiny checkpoint; `encoder` and `decoder` name their layers, s sliding and f full."""

    name: str
    vocab: int = 512
    hidden: int = 64
    ffn: int = 96
    encoder: str = "ssf"
    decoder: str = "ssf"
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    window: int = 7
    query_pre_attn_scalar: int = 16
    rope_factor: float | None = None
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    attention_bias: bool = False
    max_positions: int = 4096
    eos: int | tuple[int, ...] = EOS
    eos_scale: float = 1.3  # of the EOS rows of the embedding: 0 never ends, above 1 ends more often
    old_config: bool = False  # config.json with the keys of older releases; needs a regular s…sf pattern
    image_size: int = 28
    patch: int = 7
    image_tokens: int = 4
    vision_hidden: int = 32
    vision_ffn: int = 48
    vision_layers: int = 2
    vision_heads: int = 2

    @property
    def boi(self) -> int:
        """Id of `<start_of_image>`."""
        return self.vocab - 4

    @property
    def eoi(self) -> int:
        """Id of `<end_of_image>`, whose embedding is a parameter of its own."""
        return self.vocab - 3

    @property
    def image_token(self) -> int:
        """Id of the placeholder that image features replace."""
        return self.vocab - 2

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a decode."""
        return (self.eos,) if isinstance(self.eos, int) else self.eos


SHAPES = (
    Shape(name="one-kv-head", kv_heads=1),
    Shape(name="window-2", window=2, rope_factor=8.0, image_tokens=16),
    Shape(name="all-kv-heads-biased", kv_heads=4, window=16, attention_bias=True, eos=(EOS, 106), eos_scale=1.1),
    Shape(name="window-33", window=33, encoder="sfssf", decoder="sf", rope_factor=8.0, image_size=56, patch=14),
    Shape(
        name="window-512",
        window=512,
        encoder="sf",
        decoder="sf",
        heads=2,
        kv_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        rope_factor=8.0,
        eos_scale=0.0,
    ),
    Shape(name="final-softcap", final_logit_softcapping=6.0, window=16, image_size=56, patch=7, image_tokens=16),
    Shape(name="both-softcaps", final_logit_softcapping=30.0, attn_logit_softcapping=2.0, kv_heads=1),
    Shape(name="old-config", old_config=True, encoder="sfsf", decoder="sfsf", window=16, rope_factor=8.0),
    Shape(
        name="deep-decoder",
        hidden=48,
        ffn=160,
        encoder="fs",
        decoder="sfssf",
        heads=6,
        kv_heads=3,
        head_dim=24,
        window=33,
        query_pre_attn_scalar=40,
        eos=(EOS, 7),
        eos_scale=1.1,
    ),
    Shape(name="sliding-only", encoder="ss", decoder="ss", window=5, kv_heads=1),
    Shape(
        name="heads-of-64",
        head_dim=64,
        query_pre_attn_scalar=64,
        window=33,
        attention_bias=True,
        encoder="sfs",
        rope_factor=8.0,
    ),
    Shape(
        name="heads-of-256",
        heads=4,
        kv_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        window=16,
        encoder="sf",
        decoder="sfs",
        final_logit_softcapping=30.0,
    ),
)


def shape_named(name: str) -> Shape:
    """The shape of `SHAPES` called `name`."""
    return next(shape for shape in SHAPES if shape.name == name)


def make_checkpoint(
    folder: Path,
    shape: Shape,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layout: Layout = "saved",
    sharded: bool = False,
) -> Path:
    """Write a complete model folder (weights, config, tokenizer, processor) and return it.

    `layout` names the tensors' keys: "saved" as `save_pretrained` writes them, "memory" as the class holds them
    (`encoder.text_model.`), "vision_model" with that level inside `vision_tower.`, "tied" with the tied copies of the
    embedding written out. The same seed gives the same weights in every layout and, rounded, in every dtype.
    """
    folder = Path(folder)
    model = _random_model(shape, seed).to(dtype)
    model.save_pretrained(folder, max_shard_size="100KB" if sharded else "50GB")
    if layout != "saved":
        rekey(folder, layout)
    _write_config(folder, shape, dtype)
    _write_json(folder / "preprocessor_config.json", _processor_config(shape))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    make_tokenizer(shape.vocab).save(str(folder / "tokenizer.json"))
    return folder


@cache
def cached_checkpoint(
    shape: Shape,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layout: Layout = "saved",
    sharded: bool = False,
) -> Path:
    """`make_checkpoint` in a temporary folder, once per process; callers must not change the files."""
    folder = Path(_session_folder().name) / f"{shape.name}-{len(list(Path(_session_folder().name).iterdir()))}"
    return make_checkpoint(folder, shape, seed=seed, dtype=dtype, layout=layout, sharded=sharded)


@cache
def _session_folder() -> tempfile.TemporaryDirectory[str]:
    # Held by the cache until the interpreter ends, when its finalizer deletes the folder.
    return tempfile.TemporaryDirectory(prefix="tiny-t5gemma2-")


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted."""
    return sorted(Path(folder).glob("*.safetensors"))


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a model folder by its key."""
    tensors: dict[str, torch.Tensor] = {}
    for path in tensor_files(folder):
        with safe_open(path, framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    return tensors


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace a model folder's weights by `tensors`, in one file."""
    for path in [*tensor_files(folder), Path(folder) / "model.safetensors.index.json"]:
        path.unlink(missing_ok=True)
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def rekey(folder: Path, layout: Layout) -> None:
    """Rename the tensors that `save_pretrained` wrote into another layout (see `make_checkpoint`)."""
    tensors = read_tensors(folder)
    if layout == "tied":
        for part in ("weight", "eoi_embedding"):
            tensors[f"model.decoder.embed_tokens.{part}"] = tensors[f"model.encoder.embed_tokens.{part}"].clone()
        tensors["lm_head.out_proj.weight"] = tensors["model.encoder.embed_tokens.weight"].clone()
    renamed = {_rename(key, layout): tensor for key, tensor in tensors.items()}
    write_tensors(folder, renamed)


def _rename(key: str, layout: Layout) -> str:
    if layout == "memory":
        for part in ("embed_tokens.", "layers.", "norm."):
            if key.startswith(f"model.encoder.{part}"):
                return key.replace("model.encoder.", "model.encoder.text_model.", 1)
    if layout == "vision_model":
        return key.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return key


# --- weights -------------------------------------------------------------------------------------------------------


def _random_model(shape: Shape, seed: int) -> Any:
    from transformers import T5Gemma2ForConditionalGeneration

    model = T5Gemma2ForConditionalGeneration(_model_config(shape)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, std = _distribution(name, parameter)
            parameter.copy_(torch.empty_like(parameter).normal_(mean, std, generator=generator))
        model.get_input_embeddings().weight[list(shape.eos_ids)] *= shape.eos_scale
    model.tie_weights()
    return model


def _distribution(name: str, parameter: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation for one parameter."""
    if name.endswith("embed_tokens.weight"):
        return 0.0, 0.2 * parameter.shape[-1] ** -0.5
    if name.endswith("eoi_embedding"):
        return 0.0, 0.2
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 0.6, 0.2  # sharp attention, so that a key wrongly seen or hidden changes the output
    if name == "model.decoder.norm.weight":
        return 11.0, 0.5  # spreads the logits, as trained weights do
    if "vision_tower" in name and "norm" in name:
        return (1.0, 0.2) if name.endswith("weight") else (0.0, 0.1)
    if "norm" in name:
        return 0.0, 0.2
    if "position_embedding" in name:
        return 0.0, 0.5
    if name.endswith("mm_input_projection_weight"):
        return 0.0, 0.4 * parameter.shape[0] ** -0.5
    if name.endswith("bias"):
        return 0.0, 0.3
    return 0.0, parameter[0].numel() ** -0.5


# --- configuration -------------------------------------------------------------------------------------------------

_LAYER_TYPES = {"s": "sliding_attention", "f": "full_attention"}


def _model_config(shape: Shape) -> Any:
    from transformers import T5Gemma2Config

    encoder = {
        "text_config": _stack_config(shape, shape.encoder),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_ffn,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": shape.vision_heads,
            "image_size": shape.image_size,
            "patch_size": shape.patch,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": shape.image_tokens,
        "boi_token_index": shape.boi,
        "eoi_token_index": shape.eoi,
        "image_token_index": shape.image_token,
    }
    return T5Gemma2Config(
        encoder=encoder,
        decoder=_stack_config(shape, shape.decoder),
        image_token_index=shape.image_token,
        eoi_token_index=shape.eoi,
    )


def _stack_config(shape: Shape, layers: str) -> dict[str, Any]:
    full: dict[str, Any] = {"rope_type": "default", "rope_theta": 1_000_000.0}
    if shape.rope_factor is not None:
        full |= {"rope_type": "linear", "factor": shape.rope_factor}
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": len(layers),
        "layer_types": [_LAYER_TYPES[layer] for layer in layers],
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "sliding_window": shape.window,
        "query_pre_attn_scalar": shape.query_pre_attn_scalar,
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        "final_logit_softcapping": shape.final_logit_softcapping,
        "attn_logit_softcapping": shape.attn_logit_softcapping,
        "attention_bias": shape.attention_bias,
        "max_position_embeddings": shape.max_positions,
        "pad_token_id": PAD,
        "eos_token_id": list(shape.eos) if isinstance(shape.eos, tuple) else shape.eos,
        "bos_token_id": BOS,
    }


def _write_config(folder: Path, shape: Shape, dtype: torch.dtype) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    if shape.old_config:
        for stack, layers in ((config["encoder"]["text_config"], shape.encoder), (config["decoder"], shape.decoder)):
            _age(stack, layers, shape)
    _write_json(path, config)


def _age(stack: dict[str, Any], layers: str, shape: Shape) -> None:
    """Say the same in the keys of older releases: a pattern, and flat rope settings."""
    pattern = layers.index("f") + 1
    assert layers == "".join("f" if i % pattern == pattern - 1 else "s" for i in range(len(layers)))
    del stack["layer_types"], stack["rope_parameters"]
    stack |= {"sliding_window_pattern": pattern, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0}
    stack["rope_scaling"] = shape.rope_factor and {"rope_type": "linear", "factor": shape.rope_factor}


def _processor_config(shape: Shape) -> dict[str, Any]:
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": shape.image_tokens,
        "image_std": [0.5, 0.5, 0.5],
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": shape.image_size, "width": shape.image_size},
    }


# --- tokenizer -----------------------------------------------------------------------------------------------------

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Summarize the document in one sentence. Translate the text to French: the house is small.",
    "Der schnelle braune Fuchs springt über den faulen Hund, und das Haus ist sehr klein.",
    "Le renard brun saute par-dessus le chien paresseux ; la maison est très petite à côté.",
    "El zorro marrón salta sobre el perro perezoso y la casa es pequeña, ¿verdad?",
    "Быстрая лиса прыгает через ленивую собаку, а дом очень маленький.",
    "Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "素早い狐は怠け者の犬を飛び越える。家は小さいです。",
    "Which animals appear in the picture? A fox and a dog.\nDescribe the image:\n- a fox\n- a dog",
)


@cache
def make_tokenizer(vocab: int) -> Tokenizer:
    """A byte-fallback BPE tokenizer in Gemma's manner: spaces become ▁, BOS is added, EOS is not.

    Ids: pad 0, eos 1, bos 2, unk 3, a blank line 4, the 256 bytes, then what was learned, then the image tokens.
    """
    head = ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {token: i for i, token in enumerate(head)}
    first_image_token = vocab - len(_IMAGE_TOKENS)
    learned = json.loads(_train(first_image_token - len(head)).to_str())["model"]
    for token in sorted(learned["vocab"], key=learned["vocab"].__getitem__):
        ids[token] = len(ids)
    for i in range(len(ids), first_image_token):
        ids[f"<unused{i}>"] = i
    ids |= {token: first_image_token + i for i, token in enumerate(_IMAGE_TOKENS)}

    merges = [(left, right) for left, right in learned["merges"]]
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    special, plain = ["<pad>", "<eos>", "<bos>", "<unk>", *_IMAGE_TOKENS[:2]], ["\n\n", *_IMAGE_TOKENS[2:]]
    # As released: the placeholder is an added token that is not marked special.
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])
    assert tokenizer.get_vocab_size() == vocab
    return tokenizer


def _train(size: int) -> Tokenizer:
    # Pieces hold one word each, so that merges are words' parts; the finished tokenizer splits as Gemma's does.
    trainee = Tokenizer(BPE())
    trainee.normalizer = normalizers.Replace(" ", "▁")
    trainee.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    trainer = BpeTrainer(vocab_size=size, limit_alphabet=min(100, size // 2), show_progress=False)
    trainee.train_from_iterator(SENTENCES * 4, trainer)
    return trainee


def _tokenizer_config() -> dict[str, Any]:
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "boi_token": "<start_of_image>",
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eoi_token": "<end_of_image>",
        "eos_token": "<eos>",
        "image_token": "<image_soft_token>",
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "processor_class": "Gemma3Processor",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
