"""The least work that a figure can take, from the model's sizes: FLOPs of encoding, bytes of a decoding step."""

from __future__ import annotations

from model_runtime.config import ModelConfig, TextConfig

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def layer_parameters(half: TextConfig) -> int:
    """Weights of all matrices of one half, embedding not included."""
    attention = half.hidden_size * half.head_dim * (2 * half.num_heads + 2 * half.num_kv_heads)
    return half.num_layers * (attention + 3 * half.hidden_size * half.intermediate_size)


def encoder_flops(config: ModelConfig, tokens: int) -> float:
    """To encode one document: 2 × parameters, and attention over what each layer sees: all of it or its window."""
    half = config.encoder
    seen = sum(min(tokens, half.window) if sliding else tokens for sliding in half.sliding)
    return float(tokens * (2 * layer_parameters(half) + 4 * half.num_heads * half.head_dim * seen))


def step_bytes(config: ModelConfig, dtype: str, document_tokens: int, documents: int, rows: int, own: int) -> float:
    """To decode one step of `rows` rows: the weights and the head once, each document's encoder keys and values once
    however many rows read them, and each row's `own` positions. Keys and values of int8 models are bfloat16."""
    half, weight = config.decoder, _BYTES.get(dtype, 2)
    position = 2 * half.num_kv_heads * half.head_dim * max(2, weight)
    weights = weight * (layer_parameters(half) + half.vocab_size * half.hidden_size)
    seen = sum(min(own, half.window) if sliding else own for sliding in half.sliding)
    return float(weights + position * (documents * half.num_layers * document_tokens + rows * seen))
