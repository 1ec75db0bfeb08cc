"""What vLLM is told of a T5Gemma 2: a decoder-only model with the decoder's sizes."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from ..config import ModelConfig

MODEL_TYPE = "t5gemma2"
# The keys of a config.json that the runtime reads; dtype is vLLM's to choose.
_KEYS = ("encoder", "decoder", "image_token_index", "tie_word_embeddings")


class T5Gemma2VllmConfig(PretrainedConfig):
    """A checkpoint's config.json as vLLM sees it; `model` is the same as the runtime sees it."""

    model_type = MODEL_TYPE

    def __init__(self, **settings: Any) -> None:
        # As an encoder-decoder model vLLM would turn chunked prefill and prefix caching off.
        settings["is_encoder_decoder"] = False
        super().__init__(**settings)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A process that vLLM starts gets its config before it looks the model up; from a checkout that is not installed
        # no entry point has told it of this plugin.
        from . import register

        register()
        self.__dict__.update(state)

    def get_text_config(self, *_: Any, **__: Any) -> PretrainedConfig:
        """The decoder's sizes, the only ones that vLLM plans by; ValueError names a key that cannot be used."""
        # PretrainedConfig looks at bare instances of its classes too.
        return DecoderView.of(self.model) if hasattr(self, "decoder") else self

    @property
    def model(self) -> ModelConfig:
        """The parsed config, without what other files of the folder say."""
        document = {key: getattr(self, key) for key in _KEYS if hasattr(self, key)}
        return ModelConfig.parse({**document, "model_type": MODEL_TYPE})


class DecoderView(PretrainedConfig):
    """The sizes of a decoder whose sequence is the document's tokens and then its own."""

    model_type = "t5gemma2_decoder"

    @classmethod
    def of(cls, model: ModelConfig) -> DecoderView:
        """The view of a model."""
        decoder = model.decoder
        sizes: dict[str, Any] = {
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_kv_heads,
            "head_dim": decoder.head_dim,
            "max_position_embeddings": model.max_input_tokens + decoder.max_positions,
            # None, or every layer would be windowed over the document too: windows are the attention backend's here.
            "sliding_window": None,
            # Three rows of positions for each token: the decoder's, the mark of a document's rows, and one not used.
            "mrope_section": [1, 1, 1],
            "bos_token_id": model.bos_id,
            "pad_token_id": model.pad_id,
            "eos_token_id": list(model.eos_ids),
            "tie_word_embeddings": True,
        }
        return cls(**sizes)
