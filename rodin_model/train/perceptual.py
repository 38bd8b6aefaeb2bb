"""A perceptual distance on features that the project trains itself: those of the picture tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureDistance(nn.Module):
    """How differently the first stages of the frozen picture tower see two pictures [B, 3, H, W] in [0, 1].

    Mean absolute difference of each stage's maps over the mean absolute value of the second picture's, averaged.
    """

    def __init__(self, tower: nn.Sequential, stages: int = 2) -> None:
        super().__init__()
        layers = list(tower)[:3 + stages]  # stem, norm and activation before the blocks
        self.stages = nn.ModuleList([nn.Sequential(*layers[:3]), *layers[3:]]).eval().requires_grad_(False)

    def forward(self, pictures: Tensor, truth: Tensor) -> Tensor:
        """A number; differentiable in `pictures`."""
        found = []
        x = (torch.cat([pictures, truth]) * 4 - 2).contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
            ours, true = x.chunk(2)
            true = true.detach()
            found.append((ours - true).abs().mean() / true.abs().mean().clamp_min(1e-3))
        return torch.stack(found).mean()
