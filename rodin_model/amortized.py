"""The planes of all avatars as one function of what they are: an amortised fit.

Planes fitted one by one carry what their own optimisation left in them: three summed planes can say the same field in
many ways, and a diffusion must then learn that accident as if it were variety. One network that makes the planes of
every avatar from its description has no room for it. Its planes vary as smoothly as the descriptions do, a denoiser
needs few components for them, and avatars that nobody has drawn cost milliseconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from .checkpoints import load_component, read_config, save_component
from .config import AmortizedConfig, from_dict, to_dict
from .diffusion import BaseDiffusion
from .layers import zeroed


class _Block(nn.Module):
    """A residual MLP on the normalised input, twice as wide inside; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), zeroed(nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(nn.functional.silu(self.widen(self.norm(x))))


class AmortizedPlanes(nn.Module):
    """Descriptions [B, D] to planes [B, 3, C, R, R] in feature units:

        planes = mean + basis h(description),   h a residual MLP that gives `components` numbers

    so all planes lie in one affine space of as many dimensions. Channels-last in memory. Differentiable in everything;
    float32. `mean` [3, C, R, R] is the average avatar, where training starts.
    """

    mean: Tensor

    def __init__(self, config: AmortizedConfig) -> None:
        super().__init__()
        self.config = config
        texels = 3 * config.resolution**2
        self.stem = nn.Linear(config.description, config.width)
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.blocks))
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.components))
        self.basis = nn.Linear(config.components, texels * config.channels, bias=False)
        nn.init.normal_(self.basis.weight, std=1e-3)
        self.register_buffer("mean", torch.zeros(3, config.channels, config.resolution, config.resolution))

    def set_components(self, base: BaseDiffusion) -> None:
        """Fix the affine space to the one that `base` knows, each component scaled to the deviation of its numbers.

        Nothing but h is learned then. ValueError for a base without components, or with another number or size of them.
        """
        if base.principal is None:
            raise ValueError("the base diffusion has no principal components for planes to lie in")
        size, channels, components = self.config.resolution, self.config.channels, self.config.components
        shape = (*base.mean.shape[1:], len(base.principal.variance))
        if shape != (channels, size, size, components):
            raise ValueError(f"the base diffusion has {shape[3]} components of {shape[0]} channels of {shape[1]}^2; "
                             f"needed are {components} of {channels} of {size}^2")
        span = (base.principal.span() * base.principal.variance.sqrt()).T.unflatten(1, base.mean.shape) * base.std
        with torch.no_grad():
            self.basis.weight.copy_(span.permute(1, 3, 4, 2, 0).reshape(self.basis.weight.shape))
            self.mean.copy_(base.mean)
        self.basis.requires_grad_(False)
        zeroed(cast(nn.Linear, self.head[1]))

    def forward(self, description: Tensor) -> Tensor:
        """[B, D] -> [B, 3, C, R, R]."""
        x = self.stem(description)
        for block in self.blocks:
            x = block(x)
        size, channels = self.config.resolution, self.config.channels
        own = self.basis(self.head(x)).view(-1, 3, size, size, channels)
        return (own + self.mean.permute(0, 2, 3, 1).contiguous()).permute(0, 1, 4, 2, 3)

    def save(self, folder: Path | str) -> None:
        """Write config.json and the weights, in float32."""
        save_component(folder, {"amortized": to_dict(self.config)}, self.state_dict())

    @classmethod
    def from_folder(cls, folder: Path | str) -> AmortizedPlanes:
        """Read what `save` wrote, frozen; ValueError where the folder holds something else."""
        config = read_config(folder)
        if set(config) != {"amortized"}:
            raise ValueError(f"{Path(folder) / 'config.json'} does not describe amortised planes")
        model = cls(from_dict(AmortizedConfig, config["amortized"]))
        load_component(folder, model)
        return model.eval().requires_grad_(False)
