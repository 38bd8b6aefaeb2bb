"""What a few hundred numbers say about the planes: their principal components, and the denoiser of these.

Planes of aligned heads are nearly a low-rank set: 256 components hold about four fifths of the variance of avatars
never seen. A convolutional network needs very many steps to find that; here it is measured, and given.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoints import load_component, read_config, save_component
from .config import LATENT_SIZE, NoiseConfig, PrincipalConfig, from_dict, to_dict
from .layers import enlarge, fold, timestep_embedding, zeroed
from .noise import alpha_bars, beside


def principal_components(planes: Tensor, config: PrincipalConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The leading components of normalised planes [N, 3, C, R, R], N > `components`, found at low resolution.

    Returns (basis [K, 3, C, r, r], variance [K] falling, rest []): the enlarged components are orthonormal, component k
    of the data has the variance variance[k], and each number outside their span has `rest` on average. All float32.
    """
    count, size = len(planes), planes.shape[-1]
    if count <= config.components:
        raise ValueError(f"planes holds {count} avatars; {config.components} components need more than that")
    small = F.interpolate(fold(planes.float()), (config.resolution,) * 2, mode="area").view(count, -1)
    found = torch.pca_lowrank(small, config.components, center=False, niter=4)[2].T
    found = found.unflatten(1, (3, -1, config.resolution, config.resolution))
    span, triangle = torch.linalg.qr(enlarge(found, size).flatten(1).T)
    numbers = planes.float().flatten(1) @ span
    variance, turn = torch.linalg.eigh(numbers.T @ numbers / count)
    variance, turn = variance.flip(0).clamp_min(1e-8), turn.flip(1)
    mix = torch.linalg.solve_triangular(triangle, turn, upper=True)
    total = float(planes.float().square().sum()) / count
    rest = max(total - float(variance.sum()), 1e-6) / (planes[0].numel() - config.components)
    return (mix.T @ found.flatten(1)).view_as(found), variance, torch.tensor(rest)


class _Block(nn.Module):
    """A residual MLP whose normalised input is scaled and shifted, and whose output is scaled, by what is known."""

    def __init__(self, config: PrincipalConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulate = zeroed(nn.Linear(config.embedding, 3 * config.width))
        self.first, self.second = (nn.Linear(config.width, config.width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        scale, shift, gain = self.modulate(known).chunk(3, -1)
        hidden = F.silu(self.first(self.norm(x) * (1 + scale) + shift))
        return x + (1 + gain) * self.second(self.dropout(hidden))


class PrincipalDenoiser(nn.Module):
    """Noisy planes, time and latent in, clean planes out, as far as the principal components can say.

    For component k of variance l, noisy number y = sqrt(a) x + sqrt(1 - a) eps, a = alpha_bar_t:

        x_k = sqrt(a) l / (a l + 1 - a) y_k + sqrt(l (1 - a) / (a l + 1 - a)) f_k(y / sqrt(a l + 1 - a), t, z)

    which is EDM's preconditioning (Karras et al. 2022, eq. 7) with the data's own covariance in place of one variance:
    f = 0 is the best linear denoiser, and f's target has unit variance. All that lies outside the components' span is
    treated as noise of variance `rest`.
    """

    basis: Tensor
    variance: Tensor
    rest: Tensor
    bars: Tensor

    def __init__(self, config: PrincipalConfig, noise: NoiseConfig, channels: int, resolution: int) -> None:
        super().__init__()
        self.config, self.noise, self.channels, self.resolution = config, noise, channels, resolution
        self.register_buffer("basis", torch.zeros(config.components, 3, channels, *(config.resolution,) * 2))
        self.register_buffer("variance", torch.ones(config.components))
        self.register_buffer("rest", torch.ones(()))
        self.register_buffer("bars", alpha_bars(noise).float(), persistent=False)
        self.time = nn.Sequential(nn.Linear(128, config.embedding), nn.SiLU(), nn.Linear(*(config.embedding,) * 2))
        self.latent = nn.Sequential(nn.Linear(LATENT_SIZE, config.embedding), nn.SiLU(),
                                    nn.Linear(*(config.embedding,) * 2))
        self.stem = nn.Linear(config.components, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.head = zeroed(nn.Linear(config.width, config.components))
        self._span: tuple[tuple[int, torch.device], Tensor] | None = None

    def set_components(self, basis: Tensor, variance: Tensor, rest: Tensor) -> None:
        """Fix what `principal_components` found."""
        for own, new in ((self.basis, basis), (self.variance, variance), (self.rest, rest)):
            own.copy_(new)

    def span(self) -> Tensor:
        """The components at full resolution: [3 C R R, K], orthonormal columns; kept until the basis changes."""
        state = (self.basis._version, self.basis.device)
        if self._span is None or self._span[0] != state:
            self._span = (state, enlarge(self.basis, self.resolution).flatten(1).T)
        return self._span[1]

    def numbers(self, planes: Tensor) -> Tensor:
        """Normalised planes [B, 3, C, R, R] -> how much of each component they hold [B, K]."""
        return planes.flatten(1) @ self.span()

    def denoise(self, noisy: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(estimate, linear part, scale of the network's part), each [B, K]; noisy [B, K], t [B] steps, z [B, 512]."""
        bar = self.bars[t][:, None]
        spread = bar * self.variance + 1 - bar
        linear = bar.sqrt() * self.variance / spread * noisy
        scale = (self.variance * (1 - bar) / spread).sqrt()
        known = self.time(timestep_embedding(t, 128)) + self.latent(z * LATENT_SIZE**0.5)
        x = self.stem(noisy * spread.rsqrt())
        for block in self.blocks:
            x = block(x, F.silu(known))
        return linear + scale * self.head(self.norm(x)).float(), linear, scale

    def forward(self, noisy: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """noisy [B, 3, C, R, R], normalised, t [B] steps, z [B, 512] -> the clean planes' estimate, float32."""
        span, bar = self.span(), self.bars[t][:, None]
        flat = noisy.float().flatten(1)
        numbers = flat @ span
        gain = bar.sqrt() * self.rest / (bar * self.rest + 1 - bar)
        estimate = self.denoise(numbers, t, z)[0] - gain * numbers
        return (gain * flat + estimate @ span.T).view_as(noisy)

    def training_loss(self, clean: Tensor, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """How far f is from its target, [] float32: the plain mean square and that weighted as the planes' v-loss.

        clean [B, K] are numbers of clean planes, z [B, 512] latents, dropped with probability `condition_drop`.
        """
        batch = len(clean)
        t = torch.randint(self.noise.steps, (batch,), **beside(generator)).to(clean.device)
        eps = torch.randn(clean.shape, **beside(generator)).to(clean)
        keep = (torch.rand(batch, 1, **beside(generator)) >= self.noise.condition_drop).to(clean)
        bar = self.bars[t][:, None]
        estimate, _, scale = self.denoise(bar.sqrt() * clean + (1 - bar).sqrt() * eps, t, z * keep)
        error = ((estimate - clean) / scale).square()
        share = scale.square() / (1 - bar)
        return 0.5 * error.mean() + 0.5 * (error * share).sum(-1).mean() / share.sum(-1).mean()

    def save(self, folder: Path | str) -> None:
        """Write config.json and the weights, in half precision."""
        config = {"principal": to_dict(self.config), "noise": to_dict(self.noise), "channels": self.channels,
                  "resolution": self.resolution}
        save_component(folder, config, self.state_dict(), dtype=torch.float16)

    @classmethod
    def from_folder(cls, folder: Path | str) -> PrincipalDenoiser:
        """Read what `save` wrote, frozen; ValueError where the folder holds something else."""
        config = read_config(folder)
        if set(config) != {"principal", "noise", "channels", "resolution"}:
            raise ValueError(f"{folder}/config.json does not describe a principal denoiser")
        model = cls(from_dict(PrincipalConfig, config["principal"]), from_dict(NoiseConfig, config["noise"]),
                    config["channels"], config["resolution"])
        load_component(folder, model)
        return model.eval().requires_grad_(False)
