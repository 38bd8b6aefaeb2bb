"""Renderers of large reconstruction models on our operators: features of three planes side by side, 40 or 80 channels.

    python examples/triposr_renderer.py

TripoSR concatenates 3 x 40 channels, decodes every sample by a deep SiLU network and lets each sample stand for 1 / S
of its ray, whatever the ray's length (`triposr`). OpenLRM concatenates 3 x 80, with EG3D's marching on the repaired
planes (`openlrm`). Both keep their formula and swap sampling and summing for ours. Who trains anew should measure rays
in world units instead: `fused` is TripoSR's renderer in one call, which keeps no sample in memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import EG3D_FIXED, RODINHD, TinyDecoder, composite, render_triplane, sample_triplane, volume_weights


def triposr_decoder(channels: int = 40, depth: int = 9) -> TinyDecoder:
    """3C -> `depth` hidden layers of 64 with SiLU -> exp(raw - 1) with a bounded gradient, and a sigmoid colour."""
    return TinyDecoder(3 * channels, (64,) * depth, activation="silu", density="trunc_exp", density_bias=-1.0)


def triposr(planes: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, decoder: TinyDecoder, *,
            radius: float = 0.87, samples: int = 128) -> Tensor:
    """TripoSR: planes [B, 3, C, H, W], rays [B, R, 3], where they enter and leave the box [B, R] -> [B, R, 3] on white.

    All scenes of a batch at once, where the original loops over them.
    """
    share = (torch.arange(samples, device=planes.device, dtype=planes.dtype) + 0.5) / samples
    t = near.unsqueeze(-1) * (1 - share) + far.unsqueeze(-1) * share
    points = (origins.unsqueeze(2) + t.unsqueeze(-1) * directions.unsqueeze(2)) / radius
    features = sample_triplane(planes, points.flatten(1, 2), layout=RODINHD, reduce="concat")
    sigma, color = decoder(features.unflatten(1, t.shape[1:]))
    weights, _ = volume_weights(sigma, torch.full_like(sigma, 1 / samples))
    return composite(weights, color, background=1.0)[0]


def fused(planes: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, decoder: TinyDecoder, *,
          radius: float = 0.87, samples: int = 128) -> Tensor:
    """The same with rays measured in units of the box: one operator, forward and backward, memory for rays alone."""
    found = render_triplane(planes, origins / radius, directions / radius, decoder, near=near, far=far,
                            num_samples=samples, layout=RODINHD, reduce="concat", background=1.0, outputs=("rgb",))
    assert found.rgb is not None
    return found.rgb


def openlrm(planes: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor,
            network: Callable[[Tensor], Tensor], *, samples: int = 96, background: float = 1.0) -> Tensor:
    """OpenLRM's first pass: samples from near to far, raw densities averaged, nothing outside the box -> [B, R, F]."""
    share = torch.linspace(0, 1, samples, device=planes.device, dtype=planes.dtype)
    t = near.unsqueeze(-1) + (far - near).unsqueeze(-1) * share
    points = origins.unsqueeze(2) + t.unsqueeze(-1) * directions.unsqueeze(2)
    features = sample_triplane(planes, points.flatten(1, 2), layout=EG3D_FIXED, reduce="concat")
    raw = network(features.unflatten(1, t.shape[1:]))
    inside = (points.abs() <= 1).all(-1)
    sigma = torch.where(inside, raw[..., 0], -torch.inf)
    color = torch.where(inside.unsqueeze(-1), raw[..., 1:].sigmoid() * 1.002 - 0.001, background)
    sigma, color = (sigma[..., 1:] + sigma[..., :-1]) / 2, (color[..., 1:, :] + color[..., :-1, :]) / 2
    weights, _ = volume_weights(F.softplus(sigma - 1), t.diff(dim=-1))
    return composite(weights, color, background=background)[0]


def main() -> None:
    """A batch of two scenes by both renderers, and a training step through the fused one."""
    torch.manual_seed(0)
    decoder = triposr_decoder()
    planes = torch.randn(2, 3, 40, 32, 32, requires_grad=True)
    directions = F.normalize(torch.randn(2, 256, 3) * 0.1 - torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    origins = torch.tensor([0.0, 0.0, 1.9]).expand_as(directions)
    near, far = torch.full((2, 256), 1.1), torch.full((2, 256), 2.7)
    with torch.no_grad():
        print("TripoSR", triposr(planes, origins, directions, near, far, decoder).mean((1, 2)).tolist())
    fused(planes, origins, directions, near, far, decoder).square().mean().backward()
    print("fused, gradient of the planes", planes.grad.norm().item())


if __name__ == "__main__":
    main()
