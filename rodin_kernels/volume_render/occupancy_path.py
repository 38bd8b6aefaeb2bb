"""The occupancy grid by its Triton kernel: what it covers, its launch, and bits as cells."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ..launch import device_guard, launch_options, needs_int64
from ..layouts import plane_axes
from .decoder import DENSITIES, DecoderConfig, TinyDecoder
from .intervals import cell_places
from .perceptron import ACTIVATIONS
from .tiles import architecture, padded

#: Widths of features (of each plane) and of hidden layers up to which the kernel keeps a layer on the chip in float32.
LARGEST_WIDTH = 64
#: Cells along an axis, times parts of a cell, up to which all numbers fit 32 bits.
LARGEST_GRID = 1024
#: Cells of a program, each a row of the decoder's products.
CELLS = 32

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def covers_grid(planes: Tensor, config: DecoderConfig, resolution: int, parts: int) -> bool:
    """Whether the kernel builds this grid.

    It takes float16, bfloat16 and float32 planes, every reduction, layout, padding and alignment, and decoders with one
    or two hidden layers up to 64 wide for up to 64 channels. It leaves to plain torch: float64 planes, two heads,
    frequency encodings, view directions, no or more than two hidden layers, more than 1024 parts along an axis, and
    sizes beyond 32-bit offsets inside one plane.
    """
    if planes.dtype not in (torch.float16, torch.bfloat16, torch.float32) or planes.numel() == 0:
        return False
    if config.density_features or config.feature_frequencies or config.view_directions != "none":
        return False
    if len(config.hidden) not in (1, 2) or max(planes.shape[2], *config.hidden) > LARGEST_WIDTH:
        return False
    wide = planes.shape[2] * planes.shape[3] * planes.shape[4] >= 2**31 or needs_int64(planes[0, 0])
    return not wide and resolution * parts <= LARGEST_GRID


def warps(arch: str) -> int:
    """Warps of a program, with which no register is without a place; one is twice as wide on AMD."""
    return 4 if arch == "gfx942" else 8


def precision(arch: str) -> str:
    """How float32 is multiplied: by AMD's matrix cores as it is, by NVIDIA's in three products of its halves.

    The latter lose 2^-21 of each product, which the slack of intervals and thresholds contains many times.
    """
    return "ieee" if arch == "gfx942" else "tf32x3"


def occupied_cells(planes: Tensor, decoder: TinyDecoder, resolution: int, threshold: float, parts: int, dilate: int,
                   bound: bool, planes_are: tuple[tuple[str, ...], str, bool, str]) -> Tensor:
    """bool [B, G, G, G]: what `OccupancyGrid.from_planes` marks; `threshold` is what a density must not exceed."""
    from .occupancy_kernels import occupancy_kernel

    layout, reduce, align_corners, padding_mode = planes_are
    if planes.stride(2) != 1 and planes.shape[2] > 1:
        planes = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    (batch, _, channels, height, width), config, count = planes.shape, decoder.choices, resolution**3
    weights, biases = _packed(decoder, channels, reduce)
    blocks, words = -(-count // CELLS), -(-count // 32)
    bits = torch.zeros(batch, words, dtype=torch.int32, device=planes.device)
    across, down = (cell_places(resolution * parts, size, align_corners, padding_mode).shape[1] + 1 if bound else 1
                    for size in (width, height))
    axes = [axis for pair in plane_axes(layout) for axis in pair]
    constants: dict[str, Any] = {
        "C": channels, "CP": padded(channels), "HIDDEN": padded(*config.hidden), "DEPTH": len(config.hidden),
        "UNIT": _unit(planes), "AXES": sum(axis << (2 * i) for i, axis in enumerate(axes)), "ALIGN": align_corners,
        "BORDER": padding_mode != "zeros", "HOW": {"concat": 1, "product": 2}.get(reduce, 0),
        "SCALE": 1 / 3 if reduce == "mean" else 1, "ACTIVATION": ACTIVATIONS.index(config.activation),
        "DENSITY": max(DENSITIES.index(config.density) - 1, 0), "PRECISION": precision(architecture(planes.device)),
        "BOUND": bound, "BLOCK": CELLS,
    }
    strides = [stride // constants["UNIT"] for stride in planes.stride()]
    shift = config.density_bias - (config.density == "shifted_softplus")
    arch = architecture(planes.device)
    with device_guard(planes):
        occupancy_kernel[(batch * blocks,)](
            planes, weights, biases, bits, blocks, words, resolution, parts, dilate, threshold, shift, height, width,
            across, down, strides[0] if batch > 1 else 0, strides[1], strides[3], strides[4], **constants,
            **launch_options(warps(arch)))
    return unpacked(bits, resolution)


def unpacked(bits: Tensor, resolution: int) -> Tensor:
    """Cells bool [B, G, G, G] from a bit field int32 [B, words], cell i in bit i % 32 of word i // 32."""
    places = torch.arange(32, dtype=torch.int32, device=bits.device)
    flat = ((bits.unsqueeze(-1) >> places) & 1).bool().flatten(1)
    return flat[:, :resolution**3].reshape(len(bits), resolution, resolution, resolution)


def _unit(planes: Tensor) -> int:
    """The largest power of two, at most 16, that divides every stride over texels."""
    batch, plane, _, row, column = planes.stride()
    steps = (batch if planes.shape[0] > 1 else 0, plane, row, column)
    return next(unit for unit in (16, 8, 4, 2, 1) if not any(step % unit for step in steps))


def _packed(decoder: TinyDecoder, channels: int, reduce: str) -> tuple[Tensor, Tensor]:
    """What makes the density, in float32: weights [in, out] padded with zeros one after the other, biases likewise."""
    config, step = decoder.choices, 2 if decoder.choices.bias else 1
    wide, planes = padded(*config.hidden), 3 if reduce == "concat" else 1
    flat = [p.detach().float() for p in decoder.flat_parameters()]
    weights, shifts = flat[::step], flat[1::step] if config.bias else []
    first = flat[0].new_zeros(planes, padded(channels), wide)
    first[:, :channels, :config.hidden[0]] = weights[0].t().reshape(planes, channels, -1)
    matrices = [first]
    for weight in weights[1:-1]:
        matrices.append(flat[0].new_zeros(wide, wide))
        matrices[-1][:weight.shape[1], :weight.shape[0]] = weight.t()
    last = flat[0].new_zeros(wide)
    last[:config.hidden[-1]] = weights[-1][0]
    biases = flat[0].new_zeros(len(config.hidden) * wide + 1)
    for i, shift in enumerate(shifts[:-1]):
        biases[i * wide:i * wide + len(shift)] = shift
    if config.bias:
        biases[-1] = shifts[-1][0]
    return torch.cat([m.reshape(-1) for m in (*matrices, last)]), biases
