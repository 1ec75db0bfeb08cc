"""Images → soft tokens: the SigLIP tower, average pooling, and the projector into the text model's space."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ModelConfig, VisionConfig
from .layers import ACTIVATIONS, RMSNorm


class VisionEmbeddings(nn.Module):
    """Patches by convolution plus learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.channels, size, kernel_size=patch, stride=patch)
        # Made without values, for they are loaded: filling it at random imports torch's compiler, a second and more.
        self.position_embedding = nn.Embedding.from_pretrained(torch.empty((config.image_size // patch) ** 2, size))

    def forward(self, pixels: Tensor) -> Tensor:
        """[images, 3, S, S] → [images, patches, hidden]."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return patches + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Plain multi-head attention over all patches of an image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_heads
        self.q_proj, self.k_proj = nn.Linear(size, size), nn.Linear(size, size)
        self.v_proj, self.out_proj = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """[images, patches, hidden] → the same."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in projections)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] → [..., hidden]."""
        return self.fc2(self.activation(self.fc1(x)))


class VisionLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """[images, patches, hidden] → the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionLayers(nn.Module):
    """The stack, under the name the checkpoint gives it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))


class VisionTower(nn.Module):
    """SigLIP without its pooling head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionLayers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """[images, 3, S, S] → [images, patches, hidden]."""
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


class Projector(nn.Module):
    """Average-pool patches to `tokens_per_image`, normalise, project to the text model's hidden size."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        vision = config.vision
        self.side = vision.image_size // vision.patch_size
        self.pool = self.side // int(config.tokens_per_image**0.5)
        self.mm_input_projection_weight = nn.Parameter(torch.empty(vision.hidden_size, config.encoder.hidden_size))
        self.mm_soft_emb_norm = RMSNorm(vision.hidden_size, vision.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[images, patches, vision hidden] → [images, tokens_per_image, hidden]."""
        grid = x.transpose(1, 2).unflatten(-1, (self.side, self.side))
        pooled = F.avg_pool2d(grid, self.pool).flatten(2).transpose(1, 2)
        return torch.matmul(self.mm_soft_emb_norm(pooled), self.mm_input_projection_weight)


def normalise_pixels(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """uint8 [images, 3, S, S] → (x/255 − mean)/std in `dtype`; float pixels are taken as normalised already."""
    if pixels.dtype != torch.uint8:
        return pixels.to(dtype)
    shape = (1, -1, 1, 1)
    mean_C = torch.tensor(mean, device=pixels.device).view(shape)
    std_C = torch.tensor(std, device=pixels.device).view(shape)
    return ((pixels.float() / 255.0 - mean_C) / std_C).to(dtype)
