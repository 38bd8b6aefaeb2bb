"""A tri-plane renderer in plain PyTorch, as published projects write it: what users run today."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rodin_kernels import plane_axes

from .case import Tensors

#: Rays of one chunk, as torch-ngp and RodinHD cut them.
CHUNK_RAYS = 4096
Decoder = Callable[[Tensor], tuple[Tensor, Tensor]]
PER_RAY = ("origins", "directions", "near", "far")


class Scene(NamedTuple):
    """What stays the same for every ray: samples a ray, and how planes are read."""

    samples: int
    layout: tuple[str, ...]
    reduce: str = "sum"
    align_corners: bool = False
    padding_mode: str = "zeros"


def rays_of_a_view(side: int, device: torch.device, field_of_view: float = 0.5) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [1, side^2, 3] of a pinhole camera that looks at the box from aslant, row by row."""
    forward = F.normalize(torch.tensor([-0.4, -0.25, -1.0]), dim=0)
    right = F.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0])), dim=0)
    down = torch.linalg.cross(forward, right)
    place = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(place * field_of_view, place * field_of_view, indexing="ij")
    directions = F.normalize(forward + x[..., None] * right + y[..., None] * down, dim=-1).reshape(1, -1, 3)
    origins = (-4.2 * forward).expand_as(directions)
    return origins.contiguous().to(device), directions.to(device)


def box_near_far(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays [B, R, 3] enter and leave the box: two tensors [B, R], equal for rays that miss it."""
    safe = torch.where(directions.abs() < 1e-9, 1e-9, directions)
    a, b = (-1 - origins) / safe, (1 - origins) / safe
    near = torch.minimum(a, b).amax(-1).clamp_min(0)
    return near, torch.maximum(near, torch.maximum(a, b).amin(-1))


def materialised(scene: Scene, x: Tensors, decoder: Decoder | None = None) -> Tensor:
    """Every sample's features and hidden layers in memory: [B, R, F + 2], colour, depth, opacity."""
    near, far = x["near"].unsqueeze(-1), x["far"].unsqueeze(-1)
    place = (torch.arange(scene.samples, device=near.device) + 0.5) / scene.samples
    delta = (far - near) / scene.samples
    t = near + (far - near) * place
    points = x["origins"].unsqueeze(2) + t.unsqueeze(-1) * x["directions"].unsqueeze(2)
    inside = (points.abs() <= 1).all(-1)
    features = sampled(scene, x["planes"], points.flatten(1, 2)).unflatten(1, t.shape[1:])
    sigma, color = (decoder or mlp(x))(features)
    tau = torch.where(inside, sigma, 0.0) * delta * x["directions"].norm(dim=-1, keepdim=True)
    passed = torch.exp(-torch.cumsum(F.pad(tau, (1, 0))[..., :-1], -1))
    weights = passed * (1 - torch.exp(-tau))
    color = torch.where(inside.unsqueeze(-1), color, 0.0)
    parts = [(weights.unsqueeze(-1) * color).sum(2), (weights * t).sum(2, keepdim=True), weights.sum(2, keepdim=True)]
    return torch.cat(parts, -1)


def chunked(scene: Scene, x: Tensors, decoder: Decoder | None = None) -> Tensor:
    """The same, some thousand rays at a time: bounded memory for pictures, none saved for training."""
    count = x["origins"].shape[1]
    return torch.cat([materialised(scene, _rays(x, first), decoder) for first in range(0, count, CHUNK_RAYS)], 1)


def checkpointed(scene: Scene, x: Tensors) -> Tensor:
    """In chunks whose samples the backward computes again."""
    count = x["origins"].shape[1]
    parts = [checkpoint(lambda first: materialised(scene, _rays(x, first)), first, use_reentrant=False)
             for first in range(0, count, CHUNK_RAYS)]
    return torch.cat(parts, 1)


def sampled(scene: Scene, planes: Tensor, points: Tensor) -> Tensor:
    """Features [B, N, C or 3C] by one grid_sample over the planes; half precision is widened, as by torch.autocast."""
    planes = planes.float() if planes.itemsize < 4 else planes
    grid = torch.stack([points[..., list(pair)] for pair in plane_axes(scene.layout)], 1).flatten(0, 1).unsqueeze(1)
    found = F.grid_sample(planes.flatten(0, 1), grid, padding_mode=scene.padding_mode,
                          align_corners=scene.align_corners).squeeze(2).unflatten(0, (-1, 3))
    if scene.reduce == "concat":
        return found.flatten(1, 2).transpose(1, 2)
    return (found.sum(1) if scene.reduce == "sum" else found.mean(1)).transpose(1, 2)


def mlp(x: Tensors) -> Decoder:
    """The decoder of the named weights, in their dtype: ReLU between layers, softplus density, sigmoid colour."""
    layers = [(x[f"weight{i}"], x[f"bias{i}"]) for i in range(sum(name.startswith("weight") for name in x))]

    def decode(features: Tensor) -> tuple[Tensor, Tensor]:
        features = features.to(layers[0][0].dtype)
        for i, (weight, bias) in enumerate(layers):
            features = F.linear(F.relu(features) if i else features, weight, bias)
        raw = features.to(torch.promote_types(features.dtype, torch.float32))
        return F.softplus(raw[..., 0]), raw[..., 1:].sigmoid()
    return decode


def _rays(x: Tensors, first: int) -> Tensors:
    return {**x, **{name: x[name][:, first:first + CHUNK_RAYS] for name in PER_RAY}}
