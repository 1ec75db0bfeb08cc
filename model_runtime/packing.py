"""Documents → encoder states, many in one pass: what the native engine and vLLM's model have in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from .config import ModelConfig
from .encoder import Encoder
from .types import Request
from .vision import normalise_pixels

# Images whose patches go through the tower together: bounds its memory (4,096 patches each at full size).
_IMAGES_PER_CALL = 4

# Embedded tokens [T, hidden] of documents of these lengths → encoder states [T, hidden]; yields between layers.
Layers = Callable[[Tensor, Sequence[int]], Generator[None, None, Tensor]]


@torch.inference_mode()
def encode_packed(
    encoder: Encoder, layers: Layers, config: ModelConfig, requests: Sequence[Request]
) -> Generator[None, None, list[Tensor]]:
    """Encoder states [tokens, hidden] of each document, all packed into one pass through `layers`.

    Yields whenever other work may be done. `encoder` embeds tokens and images; it tells the device and dtype.
    """
    weight = encoder.norm.weight
    arrays = [np.asarray(request.input_ids, dtype=np.int64) for request in requests]
    ids_T = torch.from_numpy(np.concatenate(arrays)).to(weight.device)
    x_TE = encoder.embed_tokens(ids_T)
    features = _image_features(encoder, config, requests)
    if features is not None:
        x_TE[ids_T == config.image_id] = features
    lengths = [len(array) for array in arrays]
    states_TE = yield from layers(x_TE, lengths)
    return list(states_TE.split(lengths))


def _image_features(encoder: Encoder, config: ModelConfig, requests: Sequence[Request]) -> Tensor | None:
    weight = encoder.norm.weight
    pixels = [torch.as_tensor(r.pixel_values) for r in requests if r.pixel_values is not None]
    images = [image for batch in pixels for image in batch.split(_IMAGES_PER_CALL) if len(image)]
    if not images:
        return None
    mean, std = config.image_mean, config.image_std
    features = [
        encoder.image_features(normalise_pixels(batch.to(weight.device), mean, std, weight.dtype)) for batch in images
    ]
    return torch.cat(features)
