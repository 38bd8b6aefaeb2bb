"""Detail: what z says about a part of the head, drawn texel by texel.

Heads are aligned, so an eye is nearly always in the same place. A convolutional network must find that place in planes
that do not show it yet; here every texel has a learned description of where it is, and a small network, the same for
all texels and steered by z, draws what belongs there (as conditionally independent pixel synthesis draws pictures,
Anokhin et al. 2021). In a window in front of the face it costs so much less than the upsampler's U-Net that an H100
took thirty times as many avatars a second through its training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rodin_kernels.layouts import plane_axes

from .config import LATENT_SIZE, DetailConfig
from .layers import fold, unfold, zeroed


def fourier_maps(channels: int, size: int) -> Tensor:
    """Where the maps of places start: the same sines of random directions and phases, [3, channels, size, size]."""
    random = torch.Generator().manual_seed(0)
    frequency = 12.0 * torch.randn(3, channels, 2, generator=random)
    phase = 2 * torch.pi * torch.rand(3, channels, 1, 1, generator=random)
    along = (torch.arange(size) + 0.5) / size - 0.5
    return torch.sin(frequency[..., :1, None] * along + frequency[..., 1:, None] * along[:, None] + phase)


class Detail(nn.Module):
    """Adds to planes, in a window of each, what z and the planes themselves ask for.

        h_0 = A_0 [where, planes, cond],   h_k = h_{k-1} + silu((1 + s_k(z)) A_k h_{k-1} + b_k(z)),   planes + m C h_n

    at every patch of `patch`^2 texels of the window, with m = 1 falling to 0 at the window's border. `where` are
    learned maps.
    """

    fade: Tensor

    def __init__(self, config: DetailConfig, channels: int, resolution: int, layout: tuple[str, ...]) -> None:
        super().__init__()
        size, width, patch = config.window, config.width, config.patch
        if len(config.corner) != 3 or size < 1 or max(config.corner) + size > resolution or patch < 1 or size % patch:
            raise ValueError(f"windows of {size} texels from {config.corner} on, in patches of {patch}, do not fit "
                             f"into planes of {resolution}")
        self.config, self.channels = config, channels
        self.corners = [(config.corner[row], config.corner[column]) for column, row in plane_axes(layout)]
        self.where = nn.Parameter(fourier_maps(config.maps, size // patch))
        self.latent = nn.Sequential(nn.Linear(LATENT_SIZE, config.embedding), nn.SiLU(),
                                    nn.Linear(config.embedding, config.embedding))
        self.plane = nn.Parameter(0.5 * torch.randn(3, config.embedding))
        self.stem = nn.Linear(config.maps + 2 * channels * patch**2, width)
        self.steer = nn.ModuleList(zeroed(nn.Linear(config.embedding, 2 * width)) for _ in range(config.layers))
        self.draw = nn.ModuleList(nn.Linear(width, width) for _ in range(config.layers))
        self.head = zeroed(nn.Linear(width, channels * patch**2))
        edge = torch.minimum(torch.arange(size), torch.arange(size).flip(0)) + 0.5
        line = (edge / max(config.border, 1)).clamp(max=1) if config.border else torch.ones(size)
        self.register_buffer("fade", line * line[:, None], persistent=False)

    def cut(self, planes: Tensor) -> Tensor:
        """The windows [B, 3, C, w, w] of planes [B, 3, C, R, R]."""
        size = self.config.window
        return torch.stack([planes[:, i, :, top:top + size, left:left + size]
                            for i, (top, left) in enumerate(self.corners)], 1)

    def within(self, planes: Tensor, cond: Tensor, z: Tensor) -> Tensor:
        """What is added in the windows [B, 3, C, w, w], of windows of planes and condition, and z [B, 512]."""
        known = F.silu(self.latent(z * LATENT_SIZE**0.5)[:, None] + self.plane)
        seen = unfold(F.pixel_unshuffle(fold(torch.cat([planes, cond], 2)), self.config.patch)).permute(0, 1, 3, 4, 2)
        where = self.where.permute(0, 2, 3, 1).expand(len(seen), -1, -1, -1, -1)
        h = self.stem(torch.cat([where.to(seen.dtype), seen], -1))
        for steer, draw in zip(self.steer, self.draw, strict=True):
            scale, shift = steer(known)[:, :, None, None].to(h.dtype).chunk(2, -1)
            h = h + F.silu(torch.addcmul(shift, draw(h), 1 + scale))
        drawn = F.pixel_shuffle(fold(self.head(h).permute(0, 1, 4, 2, 3)), self.config.patch)
        return unfold(drawn * self.fade)

    def forward(self, planes: Tensor, cond: Tensor, z: Tensor) -> Tensor:
        """planes and cond [B, 3, C, R, R] normalised, z [B, 512] -> planes [B, 3, C, R, R]; those given stay."""
        added, size = self.within(self.cut(planes), self.cut(cond), z).to(planes.dtype), self.config.window
        out = planes.clone()
        for i, (top, left) in enumerate(self.corners):
            out[:, i, :, top:top + size, left:left + size] += added[:, i]
        return out
