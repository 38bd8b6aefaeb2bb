"""Volume rendering against renderers that keep every sample, in chunks, with checkpoints, and against peers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rodin_kernels import RODINHD, Rendered, TinyDecoder, render_triplane, render_triplane_reference

from . import peers
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
from .plain_renderer import Scene, box_near_far, checkpointed, chunked, materialised, rays_of_a_view

PUBLISHED, CHUNKED, CHECKPOINTED = "every sample kept", "chunks of 4096 rays", "chunks, checkpointed"
#: Rays whose results and gradients are compared with float64.
CHECKED = 256
LAYERS = 3


def cases(level: str, device: torch.device) -> list[Case]:
    """The cases of a level on a device."""
    if level == "smoke":
        return [case(6, 5, 8, 12, dtype, level, device) for dtype in (torch.float32, torch.bfloat16)]
    if device.type == "cpu":
        sizes = (48, 24) if level == "quick" else (96, 64, 48, 24)
        return [case(side, 64, 32, 256, torch.float32, level, device) for side in sizes]
    sizes = (512, 128) if level == "quick" else (512, 256, 128, 64)
    found = [case(side, 96, 32, 256, torch.bfloat16, level, device) for side in sizes]
    if level == "quick":
        found += [case(256, 96, 32, 256, dtype, level, device) for dtype in (torch.float32, torch.float16)]
    if level == "full":
        found += [case(512, 96, 32, 256, torch.float32, level, device),
                  case(128, 128, 80, 64, torch.float32, level, device)]
    return found


def case(side: int, samples: int, channels: int, size: int, dtype: torch.dtype, level: str,
         device: torch.device) -> Case:
    """A view of `side`^2 rays through planes [1, 3, C, R, R] and an MLP C -> 64 -> 64 -> 4, both in `dtype`.

    In half precision the rivals' MLP runs on tensor cores as well, and the budget is the error of such an MLP.
    """
    scene = Scene(samples, RODINHD)
    decoder = TinyDecoder(channels, (64, 64)).to(device)

    def make(device: torch.device) -> Tensors:
        origins, directions = rays_of_a_view(side, device)
        near, far = box_near_far(origins, directions)
        planes = random(1, 3, channels, size, size, seed=7, dtype=dtype, device=device)
        widths = (channels, 64, 64, 4)
        tensors = {"planes": planes, "origins": origins, "directions": directions, "near": near, "far": far}
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            tensors[f"weight{i}"] = random(b, a, seed=8 + i, dtype=dtype, device=device) * (2 / a) ** 0.5
            tensors[f"bias{i}"] = random(b, seed=18 + i, dtype=dtype, device=device) * 0.1
        return tensors

    def ours(x: Tensors, render: Callable[..., Rendered] = render_triplane) -> Tensor:
        options = {"near": x["near"], "far": x["far"], "num_samples": samples, "layout": RODINHD}
        found = torch.func.functional_call(
            _Render(decoder, render), {f"decoder.layers.{i}.{kind}": x[f"{kind}{i}"]
                                       for i in range(LAYERS) for kind in ("weight", "bias")},
            (x["planes"], x["origins"], x["directions"]), options)
        return torch.cat([found.rgb, found.depth.unsqueeze(-1), found.opacity.unsqueeze(-1)], -1)

    def picture(x: Tensors) -> Tensor:
        return ours(x, partial(render_triplane, image_width=side))

    def reference(x: Tensors) -> Tensor:
        return ours(x, render_triplane_reference)

    contenders = [Contender(OURS, picture, channels_last("planes")),
                  Contender(PUBLISHED, lambda x: materialised(scene, x), contiguous("planes")),
                  Contender(CHUNKED, lambda x: chunked(scene, x), contiguous("planes"))]
    if level == "full" or device.type == "cuda":
        contenders.append(Contender(CHECKPOINTED, lambda x: checkpointed(scene, x), contiguous("planes")))
    if level == "full" or (level == "quick" and device.type == "cuda" and side == 512):
        contenders.append(Contender(f"torch.compile: {PUBLISHED}", lambda x: materialised(scene, x),
                                    contiguous("planes"), compiled=True))
    contenders += peers.renderers(scene, device)
    count = side * side * samples
    leaves = ("planes", *(f"{kind}{i}" for i in range(LAYERS) for kind in ("weight", "bias")))
    return Case(
        "render_triplane", f"{side}x{side} rays x {samples} C{channels} R{size} {short(dtype)}", float(count),
        "samples", torch.float32, make, reference, tuple(contenders), works(side, samples, channels, size, dtype),
        leaves=leaves, rows=("origins", "directions", "near", "far"), checked=CHECKED,
        plain=None if dtype == torch.float32 else lambda x: materialised(scene, x), arithmetic=dtype, jumps=True,
        targets=targets(side, samples, dtype),
    )  # fmt: skip


class _Render(torch.nn.Module):
    """A renderer with its decoder as a sub-module, so that the decoder's weights can be handed in as tensors."""

    def __init__(self, decoder: TinyDecoder, render: Callable[..., Rendered]) -> None:
        super().__init__()
        self.decoder, self.render = decoder, render

    def forward(self, planes: Tensor, origins: Tensor, directions: Tensor, **options: Any) -> Rendered:
        """`render` with the decoder."""
        return self.render(planes, origins, directions, self.decoder, **options)


def works(side: int, samples: int, channels: int, size: int, dtype: torch.dtype) -> dict[str, Work]:
    """12 texels and one MLP a sample; the backward computes the MLP again and twice more; rays in, pictures out."""
    count = side * side * samples
    flops = count * (24 * channels + 2 * (channels * 64 + 64 * 64 + 64 * 4))
    moved = 3 * channels * size**2 * dtype.itemsize + side * side * 4 * (8 + 5)
    return forward_backward(Work(flops, moved), Work(3 * flops, 2 * moved + 3 * channels * size**2 * 4))


def targets(side: int, samples: int, dtype: torch.dtype) -> tuple[Target, ...]:
    """What is expected of a picture of 512^2 x 96 samples on a GPU."""
    if (side, samples, dtype) != (512, 96, torch.bfloat16):
        return ()
    return (Target("forward", 2.0, "", "cuda"), Target("backward", 8.0, "", "cuda"),
            Target("both", 15.0, CHUNKED, "cuda"))
