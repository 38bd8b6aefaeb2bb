"""The 3D-aware convolution against concatenation and convolution as published, and against the collapse in plain torch.

Work counts the collapsed operations, the fewest that we know: a rival that computes three times as many is far from
this floor for that reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import RODIN, cross_sources, rollout_conv, rollout_conv_reference

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

PUBLISHED, BATCHED, COLLAPSED = "concat + conv2d", "concat, channels-last, one conv2d", "collapse in plain torch"
#: (B, C, R, O) of the CPU's targets.
CPU_SHAPES = ((1, 64, 64, 64), (1, 192, 64, 192), (1, 384, 32, 384), (1, 64, 256, 64))
#: (B, C, R, O) of Rodin's base and upsampler, and RodinHD's upsampler; the first eight with a GPU's targets.
GPU_SHAPES = ((8, 192, 64, 192), (8, 384, 64, 384), (8, 64, 256, 64), (8, 128, 256, 128), (1, 192, 64, 192),
              (8, 768, 64, 768), (8, 192, 128, 192), (1, 64, 512, 64))


def cases(level: str, device: torch.device) -> list[Case]:
    """The cases of a level on a device."""
    if level == "smoke":
        return [case((1, 5, 6, 7), torch.float32, level, device), case((2, 4, 8, 4), torch.bfloat16, level, device)]
    if device.type == "cpu":
        more = ((1, 64, 32, 64), (1, 64, 128, 64), (2, 192, 64, 192)) if level == "full" else ()
        return [case(shape, torch.float32, level, device) for shape in (*CPU_SHAPES, *more)]
    shapes = GPU_SHAPES if level == "full" else [GPU_SHAPES[i] for i in (0, 2, 4, 1, 3)]
    found = [case(shape, torch.bfloat16, level, device) for shape in shapes]
    more = [case((8, 192, 64, 192), dtype, level, device) for dtype in (torch.float16, torch.float32)]
    return found + more if level == "full" else [*found[:2], *more, *found[2:]]


def case(shape: tuple[int, int, int, int], dtype: torch.dtype, level: str, device: torch.device) -> Case:
    """(B, C, R, O): planes [B, 3, C, R, R] to [B, 3, O, R, R], kernel 3, padding 1, one weight for all planes."""
    batch, channels, size, outputs = shape

    def make(device: torch.device) -> Tensors:
        planes = random(batch, 3, channels, size, size, seed=1, dtype=dtype, device=device)
        weight = random(outputs, 3 * channels, 3, 3, seed=2, dtype=dtype, device=device)
        bias = random(outputs, seed=3, dtype=dtype, device=device)
        return {"planes": planes, "weight": weight / (27 * channels) ** 0.5, "bias": bias}

    work = works(shape, dtype)
    stored = channels_last("planes")
    contenders = [
        Contender(OURS, lambda x: rollout_conv(x["planes"], x["weight"], x["bias"]), stored),
        Contender(PUBLISHED, reference, contiguous("planes")),
        Contender(BATCHED, batched, channels_last("planes", "weight")),
        Contender(COLLAPSED, collapsed, stored),
    ]
    if level == "full" or (level == "quick" and shape == GPU_SHAPES[0] and device.type == "cuda"):
        contenders += [
            Contender(f"{OURS}, planes not channels-last", contenders[0].call, contiguous("planes")),
            Contender(f"torch.compile: {PUBLISHED}", reference, stored, compiled=True),
            Contender(f"torch.compile: {BATCHED}", batched, channels_last("planes", "weight"), compiled=True),
            Contender(f"torch.compile: {COLLAPSED}", collapsed, stored, compiled=True),
        ]
    return Case(
        "rollout_conv", f"B{batch} C{channels} R{size} O{outputs} {short(dtype)}", work["forward"].flops / 1e9,
        "collapsed GFLOP", dtype, make, reference, tuple(contenders), work, leaves=("planes", "weight", "bias"),
        plain=batched, targets=targets(shape, dtype),
        bound=Contender("own plane alone", own_plane, channels_last("planes", "weight")),
        graph=batch == 1 and size <= 64,
    )  # fmt: skip


def works(shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, Work]:
    """2 k^2 C O (R^2 + 2 R) operations for each plane; the backward twice that; every tensor moved once."""
    batch, channels, size, outputs = shape
    flops = 3 * batch * 2 * 9 * channels * outputs * (size**2 + 2 * size)
    element = dtype.itemsize
    x, y = (3 * batch * c * size**2 * element for c in (channels, outputs))
    weight = 27 * channels * outputs * element
    return forward_backward(Work(flops, x + y + weight), Work(2 * flops, 2 * x + y + 2 * weight))


def targets(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Target, ...]:
    """What is expected of a shape; nothing of those that are there to draw a line."""
    if dtype == torch.float32 and shape in CPU_SHAPES:
        return (Target("forward", 2.0, PUBLISHED), Target("both", 1.8, PUBLISHED), Target("memory", 1.0, PUBLISHED))
    if dtype == torch.bfloat16 and shape in GPU_SHAPES[:4]:
        return (Target("forward", 2.5, PUBLISHED, "cuda"), Target("both", 2.3, PUBLISHED, "cuda"),
                Target("forward", 1.1, COLLAPSED, "cuda"), Target("both", 1.1, COLLAPSED, "cuda"),
                Target("saved", 0.4, PUBLISHED, "cuda"))
    if dtype == torch.bfloat16 and shape == GPU_SHAPES[4]:
        return (Target("floor", 2.0, "", "cuda"),)
    return ()


def reference(x: Tensors) -> Tensor:
    """As RodinHD, Sin3DM and SemCity write it: means, expand, concatenate, one conv2d for each plane."""
    result = rollout_conv_reference(x["planes"], x["weight"], x["bias"])
    assert isinstance(result, Tensor)
    return result


def batched(x: Tensors) -> Tensor:
    """The same concatenation, all planes in one convolution."""
    planes = x["planes"]
    own = planes.unbind(1)
    stacked = [
        torch.cat([plane, own[columns[0]].mean(columns[1]).unsqueeze(-2).expand_as(plane),
                   own[rows[0]].mean(rows[1]).unsqueeze(-1).expand_as(plane)], 1)
        for plane, (columns, rows) in zip(own, cross_sources(RODIN), strict=True)
    ]
    whole = torch.stack(stacked, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return F.conv2d(whole, x["weight"], x["bias"], padding=1).unflatten(0, (-1, 3))


def collapsed(x: Tensors) -> Tensor:
    """The exact collapse as a user would write it: conv2d of the own plane, conv1d of the lines, broadcast sums."""
    planes, (own_weight, column_weight, row_weight) = x["planes"], x["weight"].chunk(3, 1)
    own = planes.unbind(1)
    y = F.conv2d(planes.flatten(0, 1), own_weight, x["bias"], padding=1)
    columns, rows = zip(*cross_sources(RODIN), strict=True)
    u = _lines([own[s].mean(d) for s, d in columns], column_weight.movedim(2, 0))
    v = _lines([own[s].mean(d) for s, d in rows], row_weight.movedim(3, 0))
    down, across = _placed(u, y.shape[-2], -2), _placed(v, y.shape[-1], -1)
    return (y + down + across).unflatten(0, (-1, 3))


def _lines(lines: Sequence[Tensor], kernels: Tensor) -> Tensor:
    """Lines of the three planes [B, C, L] and a line kernel a tap [k, O, C, k] -> [3B, k, O, L]."""
    stacked = torch.stack(list(lines), 1).flatten(0, 1)
    return F.conv1d(stacked, kernels.flatten(0, 1), padding=1).unflatten(1, (3, -1))


def _placed(taps: Tensor, size: int, dim: int) -> Tensor:
    """[3B, 3, O, L] spread along `dim`: all taps inside, without the first (last) tap at the first (last) position."""
    if size == 1:
        return taps[:, 1].unsqueeze(dim)
    first, inside, last = taps[:, 1:].sum(1), taps.sum(1), taps[:, :2].sum(1)
    repeats = [-1, -1, -1, -1]
    repeats[dim] = size - 2
    return torch.cat([first.unsqueeze(dim), inside.unsqueeze(dim).expand(repeats), last.unsqueeze(dim)], dim)


def own_plane(x: Tensors) -> Tensor:
    """A plain convolution of C channels, which every form of the collapse contains."""
    planes, weight = x["planes"].flatten(0, 1), x["weight"]
    return F.conv2d(planes, weight[:, : planes.shape[1]], x["bias"], padding=1).unflatten(0, (-1, 3))
