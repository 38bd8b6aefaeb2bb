"""The blocks of the U-Nets: adaptive group norm, residual blocks with the 3D-aware convolution, attention over planes.

Feature maps are [B, 3, C, H, W] (three planes, rolled out only where the paper's picture needs it); inside, planes ride
on the batch in channels-last memory, so nothing is copied and no seam bleeds between planes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rodin_kernels import RolloutConv

from .config import UNetConfig


def timestep_embedding(t: Tensor, size: int) -> Tensor:
    """Sines and cosines of `t` [B] (steps, 0 to about 1000) at `size` / 2 frequencies from 1 to 1e-4: [B, size]."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(size // 2, device=t.device) / (size // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters set to 0, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class PlaneNorm(nn.GroupNorm):
    """Group norm of each plane on its own, in at most `groups` groups, computed in float32.

    float32 is not only safer: on CPUs the bfloat16 channels-last group norm of torch takes up to ten times as long.
    """

    def __init__(self, channels: int, groups: int, affine: bool = True) -> None:
        super().__init__(max(g for g in range(1, groups + 1) if channels % g == 0), channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, C, H, W] -> the same shape and dtype."""
        weight, bias = (None, None) if self.weight is None else (self.weight.float(), self.bias.float())
        return unfold(F.group_norm(fold(x).float(), self.num_groups, weight, bias, self.eps)).to(x.dtype)


def fold(x: Tensor) -> Tensor:
    """[B, 3, C, H, W] -> [3B, C, H, W], a view."""
    return x.flatten(0, 1)


def unfold(x: Tensor) -> Tensor:
    """[3B, C, H, W] -> [B, 3, C, H, W], a view."""
    return x.unflatten(0, (-1, 3))


def enlarge(planes: Tensor, size: int) -> Tensor:
    """Planes [B, 3, C, r, r] -> [B, 3, C, size, size] by bicubic interpolation, each plane on its own."""
    return unfold(F.interpolate(fold(planes), (size, size), mode="bicubic", align_corners=False))


class PlaneConv(nn.Module):
    """An ordinary convolution of each plane on its own, weights shared by the three."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, C, H, W] -> [B, 3, O, H', W']."""
        return unfold(self.conv(fold(x)))


class AdaNorm(nn.Module):
    """Adaptive group norm (AdaGN): GroupNorm(x) (1 + scale) + shift, one scale and shift for each plane and sample.

    (scale, shift) = Linear(SiLU(e_latent,time + e_plane)); e_plane is a learned identity of the plane: without it,
    weights shared by cyclic planes make the network blind to which axis is up.
    """

    def __init__(self, channels: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm = PlaneNorm(channels, groups, affine=False)
        self.project = nn.Linear(embedding, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, 3, C, H, W], embedding [B, 3, E] -> [B, 3, C, H, W]."""
        scale, shift = self.project(F.silu(embedding)).flatten(0, 1)[..., None, None].to(x.dtype).chunk(2, 1)
        return unfold(torch.addcmul(shift, fold(self.norm(x)), 1 + scale))


class ResBlock(nn.Module):
    """norm, SiLU, conv, AdaGN, SiLU, conv (3D-aware where asked for), added to the (projected) input."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, *, cross_plane: bool) -> None:
        super().__init__()
        self.norm1 = PlaneNorm(in_channels, config.groups)
        self.conv1 = PlaneConv(in_channels, out_channels)
        self.norm2 = AdaNorm(out_channels, config.embedding, config.groups)
        self.dropout = nn.Dropout(config.dropout)
        second: nn.Module = PlaneConv(out_channels, out_channels)
        if cross_plane:
            second = RolloutConv(out_channels, out_channels, 3, padding=1, separate=config.separate_planes,
                                 layout=config.layout)
        self.conv2 = zeroed(second)
        self.skip = nn.Identity() if in_channels == out_channels else PlaneConv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, 3, C, H, W], embedding [B, 3, E] -> [B, 3, O, H, W]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden, embedding))))
        return self.skip(x) + hidden


class PlaneAttention(nn.Module):
    """Self-attention over the tokens of all three planes together (Rodin: at the lower resolutions)."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.heads = max(1, channels // config.head_channels)
        self.norm = PlaneNorm(channels, config.groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, C, H, W] -> the same shape."""
        batch, planes, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 1, 3, 4, 2).reshape(batch, -1, channels)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        mixed = self.out(mixed).view(batch, planes, height, width, channels).permute(0, 1, 4, 2, 3)
        return x + mixed


class Downsample(PlaneConv):
    """Half the resolution by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, 2)


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = PlaneConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, C, H, W] -> [B, 3, C, 2H, 2W]."""
        return self.conv(unfold(F.interpolate(fold(x), scale_factor=2.0, mode="nearest")))
