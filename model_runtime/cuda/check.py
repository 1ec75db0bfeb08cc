"""The whole CUDA path against the plain modules, on a few short documents of the model that was loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..types import Decode, Request

if TYPE_CHECKING:
    from ..model import T5Gemma2
    from . import CudaPath

# Root mean square of the difference over that of what is expected. Two ways of rounding to bfloat16 come 0.01 to 0.03
# apart after all layers; what sees a wrong key is off by 0.3 and more.
TOLERANCE = 0.1
# Enough for every step to have run with a graph.
_STEPS = 5


def whole_path_differs(model: T5Gemma2, path: CudaPath) -> str | None:
    """What is wrong with `path`, in one line, or None when encoding and decoding give what the plain modules give."""
    before = model.use_path(None)
    try:
        expected = _trial(model)
        model.use_path(path)
        made = _trial(model)
    except Exception as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    finally:
        model.use_path(before)
    for (name, ours), (_, theirs) in zip(made, expected, strict=True):
        difference = float((ours.float() - theirs.float()).square().mean().sqrt())
        relative = difference / max(1e-6, float(theirs.float().square().mean().sqrt()))
        if not relative <= TOLERANCE:
            return f"{name} differ from the plain modules' by {relative:.2f}"
    return None


@torch.inference_mode()
def _trial(model: T5Gemma2) -> list[tuple[str, Tensor]]:
    """Encoder states, and hidden states of decodes that enter at different times, run some steps and leave."""
    from ..rows import Rows

    config = model.config
    random = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return random.integers(0, config.encoder.vocab_size, count)

    lengths = [length for length in (3, 700, 150) if length <= config.max_input_tokens]
    requests = [Request(id=str(n), input_ids=ids(n), decodes=(Decode(key=str(n)),)) for n in lengths]
    states = model.encode(requests)
    made = [("encoder states", torch.cat(states))]
    documents = [model.document_keys(states_NE) for states_NE in states]
    rows = Rows(model)
    made.append(("states after BOS", rows.enter([(documents[0], ())], 24)))
    made.append(
        ("states after a prefix", rows.enter([(d, ids(n).tolist()) for n, d in enumerate(documents * 2, 2)], 24))
    )
    tokens = ids(_STEPS * len(rows)).reshape(_STEPS, -1)
    made += [("states of a step", rows.advance(step.tolist())) for step in tokens]
    rows.leave(1)
    made += [("states after a row left", rows.advance(step[:-1].tolist())) for step in tokens[: _STEPS - 2]]
    rows.clear()
    return made
