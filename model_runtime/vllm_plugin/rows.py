"""A step's rows, split: a document's rows only write keys and values, the decoder's rows alone run through the layers.

vLLM schedules both kinds as tokens of one sequence. Row 1 of the positions marks a document's rows with -1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode
from vllm.forward_context import ForwardContext

from .attention import Built


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of both kinds of rows, and the context in which the decoder's rows run; None without any."""

    document_rows: Tensor
    decoder_rows: Tensor
    context: ForwardContext | None


def mark_prefixes(context: ForwardContext, positions_T: Tensor) -> None:
    """Tell each metadata that wants it how long each request's document is: int32 [requests].

    A request's last row stands at seq_len - 1 in the sequence and at `positions_T` in the decoder; the difference is
    the document. Only device arithmetic, so that a captured graph computes it anew at each replay.
    """
    for metadata in _distinct(context):
        last_R = metadata.query_start_loc[1:] - 1
        prefixes_R = metadata.seq_lens - 1 - positions_T[last_R.clamp(min=0)]
        metadata.rswa_prefix_lens = prefixes_R.to(torch.int32)


def split_rows(context: ForwardContext, marks_T: Tensor) -> Split | None:
    """The split of a step that has a document's rows, by their marks; None where there is none, or nobody may look.

    None too while a graph is captured, whatever vLLM says of the step, and where it is to be replayed: what was seen
    then would hold for ever. There the layers themselves leave a document's rows alone.
    """
    if context.cudagraph_runtime_mode == CUDAGraphMode.FULL or not isinstance(context.attn_metadata, dict):
        return None
    if marks_T.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    built = Built.of(next(iter(context.attn_metadata.values())))
    if built is None or not _may_hold_documents(built.common):
        return None
    starts = built.common.query_start_loc_cpu.long()
    # Behind the last request's rows may be padding, with the positions of some earlier step.
    is_document = (marks_T[: int(starts[-1])] < 0).cpu()
    if not bool(is_document.any()):
        return None
    device = marks_T.device
    decoder_rows = torch.nonzero(~is_document).squeeze(-1)
    # Decoder rows before each request's first row: differences are its own.
    counts_R = torch.cat([torch.zeros(1, dtype=torch.long), (~is_document).long().cumsum(0)])[starts].diff()
    decoder_rows_d = decoder_rows.to(device)
    narrowed = _narrow(context, counts_R, decoder_rows_d) if len(decoder_rows) else None
    return Split(torch.nonzero(is_document).squeeze(-1).to(device), decoder_rows_d, narrowed)


def _may_hold_documents(common: Any) -> bool:
    prefilling = common.is_prefilling
    return bool(prefilling.any()) if prefilling is not None else common.max_query_len > 1


def _narrow(context: ForwardContext, counts_R: Tensor, rows: Tensor) -> ForwardContext:
    """The same step with the decoder's rows alone: the same blocks, shorter queries at their sequences' ends."""
    made: dict[int, Any] = {}
    metadata = {}
    for name, wide in context.attn_metadata.items():  # type: ignore[union-attr]
        if id(wide) not in made:
            built = Built.of(wide)
            assert built is not None, name
            made[id(wide)] = built.builder.build(0, _narrow_common(built.common, counts_R, rows))
        metadata[name] = made[id(wide)]
    slots: dict[int, Tensor] = {}
    mapping = {}
    for name, slot_T in context.slot_mapping.items():  # type: ignore[union-attr]
        if id(slot_T) not in slots:
            slots[id(slot_T)] = slot_T[rows]
        mapping[name] = slots[id(slot_T)]
    return dataclasses.replace(
        context,
        attn_metadata=metadata,
        slot_mapping=mapping,
        # Graphs are captured for padded row counts; these rows are neither padded nor counted.
        cudagraph_runtime_mode=CUDAGraphMode.NONE,
        batch_descriptor=None,
        is_padding=None,
    )


def _narrow_common(common: Any, counts_R: Tensor, rows: Tensor) -> Any:
    kept = torch.nonzero(counts_R).squeeze(-1)
    counts = counts_R[kept]
    starts_cpu = torch.cat([torch.zeros(1, dtype=torch.int32), counts.cumsum(0).to(torch.int32)])
    device = common.seq_lens.device
    kept_d = kept.to(device)

    def of_requests(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[kept.to(tensor.device)]

    return dataclasses.replace(
        common,
        query_start_loc=starts_cpu.to(device),
        query_start_loc_cpu=starts_cpu,
        seq_lens=common.seq_lens[kept_d],
        num_reqs=len(kept),
        num_actual_tokens=len(rows),
        max_query_len=int(counts.max()),
        block_table_tensor=common.block_table_tensor[kept_d],
        slot_mapping=common.slot_mapping[rows],
        positions=None if common.positions is None else common.positions[rows],
        is_prefilling=of_requests(common.is_prefilling),
        seq_lens_cpu_upper_bound=of_requests(common.seq_lens_cpu_upper_bound),
        req_idx=None,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )


def _distinct(context: ForwardContext) -> list[Any]:
    if not isinstance(context.attn_metadata, dict):
        return []
    wanted = {id(one): one for one in context.attn_metadata.values() if getattr(one, "rswa_window", None)}
    return list(wanted.values())
