"""One residual block of the U-Nets, with our convolution, against the same block as published."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.config import UNetConfig
from rodin_model.layers import ResBlock

from . import convolution
from .case import OURS, Call, Case, Contender, Tensors, Work, channels_last, contiguous, random, short

PUBLISHED = "as published"
GROUPS, EMBEDDING = 32, 256


def cases(level: str, device: torch.device) -> list[Case]:
    """The cases of a level on a device: widths and resolutions of the three presets."""
    if level == "smoke":
        return [case(1, 8, 6, torch.float32, level)]
    if device.type == "cpu":
        shapes = ((1, 192, 64), (1, 64, 64)) if level == "quick" else ((1, 192, 64), (1, 64, 64), (1, 64, 128))
        return [case(*shape, torch.float32, level) for shape in shapes]
    shapes = ((8, 192, 64), (8, 64, 256), (1, 64, 512))
    return [case(*shape, torch.bfloat16, level) for shape in shapes]


def case(batch: int, channels: int, size: int, dtype: torch.dtype, level: str) -> Case:
    """A block that keeps its width: norm, SiLU, conv, adaptive norm, SiLU, 3D-aware conv, sum."""
    config = UNetConfig(size, channels, channels, channels, (1,), (1,), embedding=EMBEDDING, groups=GROUPS)
    block = ResBlock(channels, channels, config, cross_plane=True).to(dtype)
    names = [name for name, _ in block.named_parameters()]
    shapes = {name: tuple(p.shape) for name, p in block.named_parameters()}

    def make(device: torch.device) -> Tensors:
        tensors = {"x": random(batch, 3, channels, size, size, seed=31, dtype=dtype, device=device),
                   "embedding": random(batch, 3, EMBEDDING, seed=32, dtype=dtype, device=device)}
        for i, name in enumerate(names):
            fan = max(1, torch.Size(shapes[name][1:]).numel())
            tensors[name] = random(*shapes[name], seed=33 + i, dtype=dtype, device=device) / fan**0.5
        return tensors

    def ours(x: Tensors) -> Tensor:
        return torch.func.functional_call(block, {name: x[name] for name in names}, (x["x"], x["embedding"]))

    contenders = [Contender(OURS, ours, channels_last("x")), Contender(PUBLISHED, published, contiguous("x")),
                  Contender(f"{PUBLISHED}, channels-last", stored, channels_last("x"))]
    if level == "full" or (level == "quick" and (batch, channels, size) == (8, 192, 64)):
        contenders.append(Contender(f"torch.compile: {PUBLISHED}", stored, channels_last("x"), compiled=True))
    own = convolution.works((batch, channels, size, channels), dtype)
    plain = Work(3 * batch * 18 * channels**2 * size**2, 0)
    work = {"forward": own["forward"] + plain, "backward": own["backward"] + plain + plain}
    work["both"] = work["forward"] + work["backward"]
    leaves = ("x", "conv1.conv.weight", "conv2.weight", "conv2.bias", "norm2.project.weight")
    return Case(
        "unet_block", f"B{batch} C{channels} R{size} {short(dtype)}", work["forward"].flops / 1e9, "collapsed GFLOP",
        dtype, make, published, tuple(contenders), work, leaves=leaves, factor=4.0, plain=stored,
    )  # fmt: skip


def stored(x: Tensors) -> Tensor:
    """The block as published, everything channels-last, all planes in one convolution."""
    return published({**x, **channels_last("x")({"x": x["x"]})}, convolution.batched)


def published(x: Tensors, mix: Call = convolution.reference) -> Tensor:
    """The block as its formula reads, the 3D-aware convolution by concatenation."""
    planes = x["x"]
    channels = planes.shape[2]
    groups = max(g for g in range(1, GROUPS + 1) if channels % g == 0)
    flat = planes.flatten(0, 1)
    h = F.silu(F.group_norm(flat, groups, x["norm1.weight"], x["norm1.bias"]))
    h = F.conv2d(h, x["conv1.conv.weight"], x["conv1.conv.bias"], padding=1)
    both = F.linear(F.silu(x["embedding"]), x["norm2.project.weight"], x["norm2.project.bias"]).flatten(0, 1)
    scale, shift = both[..., None, None].chunk(2, 1)
    h = F.silu(F.group_norm(h, groups) * (1 + scale) + shift).unflatten(0, (-1, 3))
    return planes + mix({"planes": h, "weight": x["conv2.weight"], "bias": x["conv2.bias"]})
