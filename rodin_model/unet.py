"""The denoiser of both diffusions: a U-Net over three planes, conditioned on time and the latent z through AdaGN."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LATENT_SIZE, UNetConfig
from .layers import (
    Downsample,
    PlaneAttention,
    PlaneConv,
    PlaneNorm,
    ResBlock,
    Upsample,
    fold,
    timestep_embedding,
    unfold,
    zeroed,
)


def waves(channels: int, size: int) -> Tensor:
    """Where a map of places starts: sine, cosine along x, y, then at twice the frequency: [channels, size, size]."""
    along = torch.pi * (torch.arange(size) + 0.5) / size
    rows = [(torch.cos if k % 2 else torch.sin)(2**(k // 4) * along) for k in range(channels)]
    return torch.stack([(row[:, None] if k % 4 > 1 else row).expand(size, size) for k, row in enumerate(rows)])


class Stage(nn.Module):
    """A residual block and, where the configuration asks for it, attention over the tokens of all planes."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, config: UNetConfig) -> None:
        super().__init__()
        self.block = ResBlock(in_channels, out_channels, config, cross_plane=resolution in config.cross_plane)
        attends = resolution in config.attention
        self.attention: nn.Module = PlaneAttention(out_channels, config) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, 3, C, H, W], embedding [B, 3, E] -> [B, 3, O, H, W]."""
        return self.attention(self.block(x, embedding))


class TriplaneUNet(nn.Module):
    """Noisy planes, time and latent in, the prediction out.

        e = MLP(time) + Linear(z) + e_plane;   down: stages, halving;   middle;   up: stages with skips, doubling

    following Rodin 3.3 (AdaGN conditioning in every residual block, 3D-aware convolution, attention at low resolution).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * m for m in config.channel_mult]
        sizes = [config.resolution // (config.patch * 2**level) for level in range(len(widths))]
        self.time = nn.Sequential(nn.Linear(config.channels, config.embedding), nn.SiLU(),
                                  nn.Linear(config.embedding, config.embedding))
        self.latent = nn.Sequential(nn.Linear(LATENT_SIZE, config.embedding), nn.SiLU(),
                                    nn.Linear(config.embedding, config.embedding))
        self.plane = nn.Parameter(0.5 * torch.randn(3, config.embedding))
        self.stem = PlaneConv(config.in_channels * config.patch**2, widths[0])
        entering = list(zip([widths[0], *widths[:-1]], sizes, strict=True)) if config.positions else []
        few = config.position_channels
        self.positions = nn.ParameterList(
            nn.Parameter(waves(few, size).repeat(1, 3, 1, 1, 1) if few else torch.zeros(1, 3, width, size, size))
            for width, size in entering)
        self.placing = nn.ModuleList(zeroed(PlaneConv(few, width, 1)) for width, _ in entering if few)

        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        skips, current = [widths[0]], widths[0]
        for level, (width, size) in enumerate(zip(widths, sizes, strict=True)):
            stages = nn.ModuleList()
            for _ in range(config.blocks[level]):
                stages.append(Stage(current, width, size, config))
                current = width
                skips.append(current)
            self.down.append(stages)
            last = level == len(widths) - 1
            self.shrink.append(nn.Identity() if last else Downsample(current))
            skips += [] if last else [current]
        self.middle = nn.ModuleList([Stage(current, current, sizes[-1], config) for _ in range(2)])
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level in reversed(range(len(widths))):
            stages = nn.ModuleList()
            for _ in range(config.blocks[level] + 1):
                stages.append(Stage(current + skips.pop(), widths[level], sizes[level], config))
                current = widths[level]
            self.up.append(stages)
            self.grow.append(Upsample(current) if level else nn.Identity())
        self.norm = PlaneNorm(current, config.groups)
        self.head = zeroed(PlaneConv(current, config.out_channels * config.patch**2))

    def embed(self, t: Tensor, z: Tensor) -> Tensor:
        """Time [B] and latent [B, 512] (zeros: the null condition) as one vector for each plane: [B, 3, E]."""
        time = self.time(timestep_embedding(t, self.config.channels).to(self.plane.dtype))
        latent = self.latent(z.to(self.plane.dtype) * LATENT_SIZE**0.5)  # from the unit sphere to unit variance
        return (time + latent)[:, None] + self.plane

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """x [B, 3, C, H, W], t [B] in diffusion steps, z [B, 512] -> [B, 3, out_channels, H, W]."""
        embedding = self.embed(t, z)
        x = F.pixel_unshuffle(fold(x), self.config.patch).contiguous(memory_format=torch.channels_last)
        x = self._placed(self.stem(unfold(x)), 0)
        skips = [x]
        for level, (stages, shrink) in enumerate(zip(self.down, self.shrink, strict=True)):
            for stage in cast(nn.ModuleList, stages):
                x = stage(x, embedding)
                skips.append(x)
            if not isinstance(shrink, nn.Identity):
                x = self._placed(shrink(x), level + 1)
                skips.append(x)
        for stage in self.middle:
            x = stage(x, embedding)
        for stages, grow in zip(self.up, self.grow, strict=True):
            for stage in cast(nn.ModuleList, stages):
                x = stage(unfold(torch.cat([fold(x), fold(skips.pop())], 1)), embedding)
            x = grow(x)
        x = self.head(F.silu(self.norm(x)))
        return unfold(F.pixel_shuffle(fold(x), self.config.patch))

    def _placed(self, x: Tensor, level: int) -> Tensor:
        """`x` plus the learned map of its level, which tells every texel where in the box it lies."""
        if not len(self.positions):
            return x
        where = self.positions[level].to(x.dtype)
        return x + (self.placing[level](where) if len(self.placing) else where)
