"""Attention backends: vLLM's own, with two additions.

Full layers: the metadata remembers what it was built from, so that it can be built again for fewer rows. Sliding layers
see the whole document and a window of the decoder's own tokens: causal & (k < prefix | q - k < window), which is vLLM's
R-SWA mask with the document as the prefix. Triton's kernel has it; the CPU gets it from windows.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata
from vllm.v1.attention.selector import get_attn_backend


@dataclass(frozen=True, slots=True)
class Built:
    """What a metadata was built by and from."""

    builder: Any
    common: CommonAttentionMetadata

    @classmethod
    def of(cls, metadata: Any) -> Built | None:
        """Of a metadata that one of this module's backends built."""
        return getattr(metadata, "t5gemma2_built", None)


def full_backend(head_dim: int, dtype: Any) -> type[AttentionBackend]:
    """The platform's own choice for a full layer; ValueError for one that cannot store a document's keys."""
    backend = get_attn_backend(head_dim, dtype, "auto")
    if backend.forward_includes_kv_cache_update:
        raise ValueError(
            f"T5Gemma 2 does not run on vLLM's {backend.get_name()} attention, which stores keys and attends in one: "
            "choose another (--attention-backend TRITON_ATTN)"
        )
    return _subclass(backend, 0)


def sliding_backend(head_dim: int, dtype: Any, window: int) -> type[AttentionBackend]:
    """For a layer that sees its document and `window` of its own tokens."""
    if current_platform.is_cpu():
        from .windows import WindowedCpuBackend

        return _subclass(WindowedCpuBackend, window)
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

    return _subclass(TritonAttentionBackend, window)


@cache
def _subclass(backend: type[AttentionBackend], window: int) -> type[AttentionBackend]:
    builder: Any = backend.get_builder_cls()

    class Builder(builder):  # type: ignore[misc]
        """`build` and nothing else is changed."""

        def build(
            self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
        ) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
            metadata.t5gemma2_built = Built(self, common_attn_metadata)
            if window:
                metadata.rswa_window = window
            return metadata

    # vLLM tells backends apart by name: two of one name would share a builder.
    name = f"T5Gemma2Window{window}" if window else "T5Gemma2"
    own = {"get_builder_cls": staticmethod(lambda: Builder)}
    if window:
        impl = _windowed(backend.get_impl_cls())
        own["get_impl_cls"] = staticmethod(lambda: impl)
    return type(f"{name}{backend.__name__}", (backend,), own)


def _windowed(impl: Any) -> Any:
    class Windowed(impl):  # type: ignore[misc]
        """Ends a step whose documents nobody has told it of: the window would be left out without a word."""

        def forward(
            self,
            layer: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            kv_cache: Tensor,
            attn_metadata: Any,
            output: Tensor,
            output_scale: Tensor | None = None,
            output_block_scale: Tensor | None = None,
        ) -> Tensor:
            # There is none while memory is measured; where there is one, the model's forward has marked it.
            if attn_metadata is not None and getattr(attn_metadata, "rswa_prefix_lens", None) is None:
                raise RuntimeError(
                    "a step of T5Gemma 2 came to a sliding layer without its documents' lengths: vLLM ran it past "
                    "the model's own forward"
                )
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )

    return Windowed
