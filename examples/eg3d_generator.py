"""An EG3D-style generator on our operators: a 2D network paints three planes, rays read them.

    python examples/eg3d_generator.py

What EG3D does and this keeps: 96 channels of a 2D backbone are three planes of 32, of which the third shows the same
axes as the second (layout `EG3D`); features are averaged; densities and colours are averaged between neighbouring
samples before the activation softplus(sigma - 1); colours leave as [-1, 1]. What is ours: the sampler, twice
differentiable, and the weights, which do not lose thin media to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rodin_kernels import EG3D, composite, sample_triplane, volume_weights


class Decoder(nn.Module):
    """Features to raw density and colour: one hidden layer of softplus."""

    def __init__(self, channels: int = 32, hidden: int = 64, colors: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.Softplus(), nn.Linear(hidden, 1 + colors))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[..., C] -> raw density [...] and colour [..., F]."""
        out = self.layers(features)
        return out[..., 0], out[..., 1:].sigmoid() * 1.002 - 0.001


class Generator(nn.Module):
    """Latent to planes to pixels; put your own 2D backbone in the place of this small one."""

    def __init__(self, latent: int = 64, channels: int = 32, size: int = 64) -> None:
        super().__init__()
        self.channels = channels
        self.start = nn.Linear(latent, 64 * (size // 8) ** 2)
        stages = [nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1), nn.LeakyReLU(0.2))
                  for _ in range(3)]
        self.backbone = nn.Sequential(nn.Unflatten(1, (64, size // 8, size // 8)), *stages,
                                      nn.Conv2d(64, 3 * channels, 1))
        self.decoder = Decoder(channels)

    def forward(self, z: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z [B, latent], rays [B, R, 3] -> colour [B, R, 3] in [-1, 1], depth [B, R], weight [B, R]."""
        planes = self.backbone(self.start(z)).unflatten(1, (3, self.channels))
        return render(planes, origins, directions, self.decoder)


def render(planes: Tensor, origins: Tensor, directions: Tensor, decoder: nn.Module, *, start: float = 2.25,
           end: float = 3.3, samples: int = 48, box_warp: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """The first pass of EG3D's renderer: planes [B, 3, C, H, W], rays [B, R, 3] of unit length."""
    t = torch.linspace(start, end, samples, device=planes.device, dtype=planes.dtype).expand(*origins.shape[:2], -1)
    points = origins.unsqueeze(2) + t.unsqueeze(-1) * directions.unsqueeze(2)
    features = sample_triplane(planes, points.flatten(1, 2) * (2 / box_warp), layout=EG3D, reduce="mean")
    sigma, color = decoder(features.unflatten(1, t.shape[1:]))

    delta, middle = t.diff(dim=-1), between(t)
    weights, _ = volume_weights(F.softplus(between(sigma) - 1), delta)
    rgb, depth, total = composite(weights, between(color.movedim(-1, 0)).movedim(0, -1), middle)
    depth = (depth / total).nan_to_num(float("inf")).clamp(middle.min(), middle.max())
    return rgb * 2 - 1, depth, total


def between(x: Tensor) -> Tensor:
    """Means of neighbours along the last axis."""
    return (x[..., 1:] + x[..., :-1]) / 2


def main() -> None:
    """Generate one picture of noise and train the generator for a step."""
    torch.manual_seed(0)
    generator = Generator()
    place = (torch.arange(32) + 0.5) / 32 - 0.5
    y, x = torch.meshgrid(place, place, indexing="ij")
    directions = F.normalize(torch.stack([x * 0.36, -y * 0.36, -torch.ones_like(x)], -1).reshape(1, -1, 3), dim=-1)
    origins = torch.tensor([0.0, 0.0, 2.7]).expand_as(directions)
    rgb, depth, total = generator(torch.randn(1, 64), origins, directions)
    rgb.square().mean().backward()
    norm = sum(p.grad.square().sum() for p in generator.parameters()).sqrt()
    print(f"colours {rgb.min():.2f} to {rgb.max():.2f}, depth {depth.mean():.2f}, weight {total.mean():.2f}, "
          f"gradient {norm:.2e}")


if __name__ == "__main__":
    main()
