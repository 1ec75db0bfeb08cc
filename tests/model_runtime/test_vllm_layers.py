"""The plugin's own pieces of vLLM's attention: the layout of stored keys, and the split of a step's rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make setup-vllm")

from vllm import _custom_ops as ops
from vllm.config import CUDAGraphMode
from vllm.forward_context import ForwardContext, override_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, _get_attn_isa

from model_runtime.vllm_plugin.attention import Built, sliding_backend
from model_runtime.vllm_plugin.model import T5Gemma2ForConditionalGeneration
from model_runtime.vllm_plugin.rows import mark_prefixes, split_rows
from model_runtime.vllm_plugin.windows import _key_layout, _rows_beyond, _tokens

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [32, 64, 256])
def test_stored_keys_are_read_back_as_they_were(head_dim: int, dtype: torch.dtype) -> None:
    block, heads, blocks = 32, 3, 4
    isa = _get_attn_isa(dtype, block, head_dim)
    keys, values = (torch.randn(blocks * block, heads, head_dim, dtype=dtype) for _ in range(2))
    cache = torch.zeros(blocks, heads, block, 2 * head_dim, dtype=dtype)
    halves = cache.view(blocks, heads, 2 * block, head_dim).chunk(2, dim=2)
    slots = torch.randperm(blocks * block)
    ops.cpu_attn_reshape_and_cache(keys, values, *halves, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto")
    layout = _key_layout(head_dim, block, dtype, isa)
    pages = cache.view(blocks, heads, -1)
    half = block * head_dim
    assert torch.equal(_tokens(pages[..., :half], layout.keys)[:, slots].transpose(0, 1), keys)
    assert torch.equal(_tokens(pages[..., half:], layout.values)[:, slots].transpose(0, 1), values)


class Remembering:
    """A builder that returns what it is given."""

    def build(self, common_prefix_len: int, common: CommonAttentionMetadata) -> Any:
        """Metadata that knows its source."""
        return SimpleNamespace(
            t5gemma2_built=Built(self, common),
            query_start_loc=common.query_start_loc,
            seq_lens=common.seq_lens,
            rswa_window=7,
        )


def step(rows: list[int], lengths: list[int], **more: Any) -> ForwardContext:
    """The context of a step: query rows and sequence lengths of its requests, one layer, blocks of 4."""
    starts = torch.tensor([0, *rows]).cumsum(0).int()
    common = CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        num_reqs=len(rows),
        num_actual_tokens=sum(rows),
        max_query_len=max(rows),
        max_seq_len=max(lengths),
        block_table_tensor=torch.arange(len(rows) * 8, dtype=torch.int32).view(len(rows), 8),
        slot_mapping=torch.arange(100, 100 + sum(rows)),
        is_prefilling=torch.tensor([count > 1 for count in rows]),
    )
    return ForwardContext(
        no_compile_layers={},
        attn_metadata={"layer": Remembering().build(0, common)},
        slot_mapping={"layer": common.slot_mapping},
        **more,
    )


def test_a_step_is_split_by_the_marks() -> None:
    # A document's last two rows with BOS and a prefix; a chunk inside a document; a decode in flight.
    context = step(rows=[4, 3, 1], lengths=[12, 3, 9])
    marks = torch.tensor([-1, -1, 0, 0, -1, -1, -1, 0])
    split = split_rows(context, marks)
    assert split is not None and split.context is not None
    assert split.document_rows.tolist() == [0, 1, 4, 5, 6]
    assert split.decoder_rows.tolist() == [2, 3, 7]
    common = Built.of(split.context.attn_metadata["layer"]).common
    assert common.query_start_loc.tolist() == [0, 2, 3] == common.query_start_loc_cpu.tolist()
    assert common.seq_lens.tolist() == [12, 9], "the request without a decoder row is left out"
    assert common.block_table_tensor[:, 0].tolist() == [0, 16]
    assert common.slot_mapping.tolist() == [102, 103, 107]
    assert (common.num_reqs, common.num_actual_tokens, common.max_query_len) == (2, 3, 2)
    assert split.context.slot_mapping["layer"].tolist() == [102, 103, 107]


def test_a_chunk_inside_documents_runs_no_layer() -> None:
    split = split_rows(step(rows=[3], lengths=[3]), torch.full((3,), -1))
    assert split is not None and split.context is None


@pytest.mark.parametrize(
    ("context", "marks"),
    [
        (step(rows=[2, 1], lengths=[9, 4]), [0, 0, 0]),
        (step(rows=[1, 1], lengths=[9, 4]), [-1, 0]),
        (step(rows=[2, 1], lengths=[9, 4], cudagraph_runtime_mode=CUDAGraphMode.FULL), [-1, 0, 0]),
    ],
    ids=["no document", "looks like decodes only", "captured"],
)
def test_what_is_not_split(context: ForwardContext, marks: list[int]) -> None:
    assert split_rows(context, torch.tensor(marks)) is None


def test_nobody_looks_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    unreadable: Any = SimpleNamespace(is_cuda=True)
    assert split_rows(step(rows=[4], lengths=[12]), unreadable) is None


def test_padding_with_old_marks_is_nobodys() -> None:
    split = split_rows(step(rows=[3], lengths=[9]), torch.tensor([-1, 0, 0, -1, -1]))
    assert split is not None
    assert split.document_rows.tolist() == [0] and split.decoder_rows.tolist() == [1, 2]


@pytest.mark.parametrize("profiling", [True, False], ids=["profiling", "a step of decodes"])
def test_what_the_compiled_stack_takes_lies_in_the_runners_buffers(profiling: bool) -> None:
    """Captured pieces of it are replayed over the same memory, and nothing is copied there for them."""
    context = step(rows=[1, 1], lengths=[9, 4])
    if profiling:
        context.attn_metadata = None
    positions, embedded = torch.zeros(3, 64, dtype=torch.int64)[:, :2], torch.zeros(64, 8)[:2]
    taken: list[torch.Tensor] = []

    def decoder(*tensors: torch.Tensor) -> torch.Tensor:
        taken.extend(tensors)
        return tensors[0]

    with override_forward_context(context):
        T5Gemma2ForConditionalGeneration.forward(
            SimpleNamespace(decoder=decoder),  # type: ignore[arg-type]
            None,
            positions,
            inputs_embeds=embedded,
        )
    assert [tensor.data_ptr() for tensor in taken] == [
        part.data_ptr() for part in (embedded, positions[0], positions[1])
    ]


def test_prefixes_follow_from_positions() -> None:
    context = step(rows=[4, 1], lengths=[12, 30])
    # The first request's last row is the decoder's third, so 9 tokens are its document; the second's its 21st.
    mark_prefixes(context, torch.tensor([0, 0, 1, 2, 20]))
    assert context.attn_metadata["layer"].rswa_prefix_lens.tolist() == [9, 9]


def test_rows_beyond_the_window_see_the_document_and_the_window() -> None:
    metadata = SimpleNamespace(
        rswa_window=3,
        rswa_prefix_lens=torch.tensor([5, 6]),
        query_start_loc=torch.tensor([0, 4, 5]),
        seq_lens=torch.tensor([11, 9]),
        block_table=torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23]]),
    )
    [part] = _rows_beyond(metadata, 4, torch.float32)
    # Rows stand at 7, 8, 9 and 10; own tokens begin at 5, so those at 8 and later have left the first one behind.
    assert (part.rows.start, part.rows.stop) == (1, 4)
    assert part.blocks.tolist() == [10, 11, 12]
    seen = [torch.nonzero(row == 0).flatten().tolist() for row in part.mask]
    assert seen == [[0, 1, 2, 3, 4, 6, 7, 8], [0, 1, 2, 3, 4, 7, 8, 9], [0, 1, 2, 3, 4, 8, 9, 10]]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_window_is_not_left_out_without_a_word(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.platforms.current_platform.is_cpu", lambda: device == "cpu")
    backend = sliding_backend(32, torch.float32, 7)
    impl: Any = backend.get_impl_cls()
    assert impl is backend.get_impl_cls()
    theirs = impl.__mro__[1]
    monkeypatch.setattr(theirs, "forward", lambda self, *_: "attended")
    given = [None] * 5
    for metadata in (None, SimpleNamespace(rswa_window=7, rswa_prefix_lens=torch.tensor([3]))):
        assert impl.forward(impl.__new__(impl), *given, metadata, output=None) == "attended"
    for metadata in (SimpleNamespace(rswa_window=7), SimpleNamespace(rswa_window=7, rswa_prefix_lens=None)):
        with pytest.raises(RuntimeError, match="without its documents' lengths"):
            impl.forward(impl.__new__(impl), *given, metadata, output=None)


def test_a_backend_that_stores_keys_while_it_attends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from model_runtime.vllm_plugin import attention

    class Both(CPUAttentionBackend):
        """What FlashAttention once was."""

        forward_includes_kv_cache_update = True

    monkeypatch.setattr(attention, "get_attn_backend", lambda *_: Both)
    with pytest.raises(ValueError, match=r"does not run on vLLM's CPU_ATTN attention.*--attention-backend") as raised:
        attention.full_backend(32, torch.float32)
    assert "\n" not in str(raised.value)
