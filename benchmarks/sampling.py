"""Tri-plane sampling against three `grid_sample` calls and their sum, as NeRF projects write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import RODINHD, plane_axes, sample_triplane, sample_triplane_reference

from .case import (
    OURS,
    Case,
    Contender,
    Target,
    Tensors,
    Work,
    channels_last,
    contiguous,
    forward_backward,
    random,
    short,
)

PUBLISHED, BATCHED = "3 x grid_sample + sum", "one grid_sample, channels-last"
#: Points whose results and gradients are compared with float64.
CHECKED = 4096


def cases(level: str, device: torch.device) -> list[Case]:
    """The cases of a level on a device."""
    if level == "smoke":
        return [case(50, 5, 7, "random", torch.float32, level, device),
                case(70, 4, 8, "ray-ordered", torch.bfloat16, level, device)]
    if device.type == "cpu":
        counts = (1 << 20, 1 << 17) if level == "quick" else (1 << 20, 1 << 18, 1 << 16, 1 << 14)
        found = [case(n, 32, 256, "random", torch.float32, level, device) for n in counts]
        return [*found, case(1 << 18, 32, 256, "ray-ordered", torch.float32, level, device)]
    counts = (1 << 24, 1 << 20) if level == "quick" else (1 << 24, 1 << 22, 1 << 20, 1 << 26)
    found = [case(n, 32, 256, order, torch.float32, level, device)
             for n in counts[:3] for order in ("ray-ordered", "random")]
    if level == "quick":
        found[2:2] = [case(1 << 24, 32, 256, "ray-ordered", torch.bfloat16, level, device)]
    if level == "full":
        found += [case(1 << 24, 32, 256, "random", torch.bfloat16, level, device),
                  case(1 << 26, 32, 256, "ray-ordered", torch.bfloat16, level, device),
                  case(1 << 22, 80, 64, "ray-ordered", torch.float32, level, device)]
    return found


def case(count: int, channels: int, size: int, order: str, dtype: torch.dtype, level: str,
         device: torch.device) -> Case:
    """`count` points in planes [1, 3, C, R, R], reduced by a sum, zero padding, align_corners=False."""

    def make(device: torch.device) -> Tensors:
        planes = random(1, 3, channels, size, size, seed=4, dtype=dtype, device=device)
        return {"planes": planes, "points": random_points(count, device) if order == "random"
                else ordered_points(count, device)}

    work = works(count, channels, size, order, dtype)
    ours = Contender(OURS, lambda x: sample_triplane(x["planes"], x["points"], layout=RODINHD),
                     channels_last("planes"))
    contenders = [ours, Contender(PUBLISHED, published, contiguous("planes")),
                  Contender(BATCHED, batched, channels_last("planes"))]
    if level == "full" or (level == "quick" and device.type == "cuda" and (count, order) == (1 << 24, "ray-ordered")):
        contenders += [Contender(f"{OURS}, planes not channels-last", ours.call, contiguous("planes")),
                       Contender(f"torch.compile: {PUBLISHED}", published, contiguous("planes"), compiled=True)]
    return Case(
        "sample_triplane", f"{count} {order} points C{channels} R{size} {short(dtype)}", float(count), "points", dtype,
        make, reference, tuple(contenders), work, leaves=("planes",), rows=("points",), checked=CHECKED,
        targets=targets(count, order, dtype),
        bound=Contender("embedding_bag of 12 rows a point", gather, with_indices),
    )  # fmt: skip


def works(count: int, channels: int, size: int, order: str, dtype: torch.dtype) -> dict[str, Work]:
    """12 texels of C channels a point; the backward adds as many numbers to the planes' gradient in float32.

    Neighbouring samples of rays share their texels, so that order counts as no random traffic.
    """
    element, scattered = dtype.itemsize, order == "random"
    planes, out, coordinates = 3 * channels * size**2 * element, count * channels * element, 12 * count
    flops = 24 * channels * count
    forward = Work(flops, planes + out + coordinates, gathered=12 * channels * element * count * scattered)
    backward = Work(flops, planes + out + coordinates, reduced=48 * channels * count * scattered)
    return forward_backward(forward, backward)


def targets(count: int, order: str, dtype: torch.dtype) -> tuple[Target, ...]:
    """What is expected at one million points on a CPU, and at sixteen million on a GPU."""
    if count == 1 << 20 and order == "random" and dtype == torch.float32:
        return Target("forward", 2.5, PUBLISHED), Target("both", 1.5, PUBLISHED)
    if count == 1 << 24 and dtype == torch.float32:
        backward = 2.0 if order == "random" else 4.0
        return (Target("forward", 5.0, PUBLISHED, "cuda"), Target("forward", 3.0, BATCHED, "cuda"),
                Target("backward", backward, PUBLISHED, "cuda"))
    return ()


def random_points(count: int, device: torch.device) -> Tensor:
    """Points [1, N, 3] spread evenly over the box."""
    generator = torch.Generator().manual_seed(5)
    return (torch.rand(1, count, 3, generator=generator) * 2 - 1).to(device)


def ordered_points(count: int, device: torch.device, steps: int = 64) -> Tensor:
    """Points [1, N, 3] in the order of a picture's rays: `steps` along each ray, rays row by row."""
    rays = -(-count // steps)
    side = max(1, int(rays**0.5))
    number = torch.arange(rays, device=device)
    u, v = number % side / side * 1.6 - 0.8, number // side / max(1, -(-rays // side)) * 1.6 - 0.8
    depth = torch.linspace(-0.95, 0.95, steps, device=device)
    x, y = u[:, None] * (1 - 0.15 * depth) + 0.1 * depth, v[:, None] * (1 - 0.15 * depth) - 0.05 * depth
    return torch.stack([x, y, depth.expand_as(x)], -1).reshape(1, -1, 3)[:, :count].clamp(-1, 1).contiguous()


def reference(x: Tensors) -> Tensor:
    """The specification."""
    return sample_triplane_reference(x["planes"], x["points"], layout=RODINHD)


def published(x: Tensors) -> Tensor:
    """One grid_sample a plane, the features added: nerfstudio's TriplaneEncoding, torch-ngp's, and many more.

    Coordinates need float32, so planes in half precision are widened first, as torch.autocast does.
    """
    total: Tensor | None = None
    points, planes = x["points"], x["planes"].float() if x["planes"].itemsize < 4 else x["planes"]
    for plane, axes in zip(planes.unbind(1), plane_axes(RODINHD), strict=True):
        grid = points[..., list(axes)].unsqueeze(1)
        found = F.grid_sample(plane, grid, align_corners=False).squeeze(2).transpose(1, 2)
        total = found if total is None else total + found
    assert total is not None
    return total.to(x["planes"].dtype)


def batched(x: Tensors) -> Tensor:
    """The planes on the batch axis of one grid_sample, as EG3D, OpenLRM and TripoSR write it."""
    points, planes = x["points"], x["planes"].float() if x["planes"].itemsize < 4 else x["planes"]
    grid = torch.stack([points[..., list(axes)] for axes in plane_axes(RODINHD)], 1).flatten(0, 1).unsqueeze(1)
    found = F.grid_sample(planes.flatten(0, 1), grid, align_corners=False)
    return found.squeeze(2).unflatten(0, (-1, 3)).sum(1).transpose(1, 2).to(x["planes"].dtype)


def gather(x: Tensors) -> Tensor:
    """Twelve rows of a table a point, weighted and added, the indices known beforehand: the reads alone."""
    table = x["planes"].movedim(2, -1).flatten(0, 3)
    return F.embedding_bag(x["index"], table, mode="sum", per_sample_weights=x["share"]).unsqueeze(0)


def with_indices(x: Tensors) -> Tensors:
    """The tensors of `gather`."""
    planes, count = x["planes"], x["points"].shape[1]
    generator = torch.Generator().manual_seed(6)
    index = torch.randint(planes.numel() // planes.shape[2], (count, 12), generator=generator).to(planes.device)
    share = torch.full(index.shape, 0.25, dtype=planes.dtype, device=planes.device)
    return {**channels_last("planes")(x), "index": index, "share": share}
