"""What the fused kernels render; all else goes, with the same result, through sampler, decoder and sums apart."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..launch import needs_int64
from .decoder import DecoderConfig
from .tiles import Widths, architecture

#: Widths of features and of hidden layers, and of the last layer, up to which they stay on the chip.
LARGEST_WIDTH = 128
LARGEST_OUTPUT = 64
#: Width of features up to which the backward pass does, for planes of 2 bytes an element.
LARGEST_GRADIENT_WIDTH = 64
#: Widths of features and of hidden layers up to which float32 does: wider weights fill the shared memory of many GPUs.
LARGEST_FLOAT32_WIDTH = 64
#: Hidden layers of the fused decoder.
HIDDEN_LAYERS = (1, 2)
#: Planes of these types; their type is that of the decoder's operands as well.
TYPES = (torch.float16, torch.bfloat16, torch.float32)

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_LARGEST_GRID = 1024


def covers(planes: Tensor, cells: Tensor | None, rays: int, config: DecoderConfig, reduce: str,
           quadrature: str) -> bool:
    """Whether the fused kernels render this.

    They take float16, bfloat16 and float32 planes, summed or averaged; one head of one or two hidden layers, features
    and layers up to 128 wide (float32: 64), any activation, density and colour, up to 63 numbers of colour, with or
    without biases; equal bins, jittered or not, and explicit positions; left quadrature; lengths in the world or in
    units of t; any padding, layout, occupancy and stop; weights, and so both passes of importance sampling. They leave
    to the composed path: float64 planes, "concat" and "product", two heads, frequency encodings, view directions, no or
    more than two hidden layers, midpoint quadratures, and sizes beyond 32-bit offsets inside one plane.

    Args:
        planes: [B, 3, C, H, W]. cells: bool [B or 1, G, G, G] or None. rays: R, of each scene.
    """
    if planes.dtype not in TYPES or reduce not in ("sum", "mean") or quadrature != "left":
        return False
    if _INTERPRETED and planes.dtype == torch.bfloat16:
        # Triton's interpreter multiplies bfloat16 as if its bits were integers
        return False
    if config.density_features or config.feature_frequencies or config.view_directions != "none":
        return False
    widest = LARGEST_FLOAT32_WIDTH if planes.dtype == torch.float32 else LARGEST_WIDTH
    if len(config.hidden) not in HIDDEN_LAYERS or max(config.in_features, *config.hidden) > widest:
        return False
    if config.out_features >= LARGEST_OUTPUT or planes.numel() == 0 or not 0 < rays < 2**30:
        return False
    wide = planes.shape[2] * planes.shape[3] * planes.shape[4] >= 2**31 or needs_int64(planes[0, 0])
    return not wide and (cells is None or cells.shape[-1] <= _LARGEST_GRID)


def covers_normals(planes: Tensor, config: DecoderConfig) -> bool:
    """Whether the fused forward pass also renders the normals of what it covers, without spilling a register.

    For planes of 2 bytes an element, features and hidden layers up to 64 wide. Beyond, and in float32, 8 to 600 bytes
    of each thread's registers would go to memory at every step (sm_90), and the composed path is taken.
    """
    widths = Widths.of(config)
    return planes.dtype != torch.float32 and max(widths.features, widths.hidden) <= 64


def covers_gradient(planes: Tensor, cells: Tensor | None, rays: int, config: DecoderConfig, reduce: str,
                    quadrature: str, with_more: bool) -> bool:
    """Whether the fused backward pass renders this again for its gradients, without spilling a register.

    As `covers`, for up to 64 features; in float32 for up to 32 features, hidden layers up to 64 wide and up to 15
    numbers of colour; on sm_80 for hidden layers up to 64 wide, beyond which 16 to 88 bytes of each thread would spill;
    not for weights or normals (`with_more`), nor where gradients must be repeatable bit by bit.
    """
    if torch.are_deterministic_algorithms_enabled() or with_more:
        # several programs add to one texel, in whatever order they come
        return False
    if not covers(planes, cells, rays, config, reduce, quadrature):
        return False
    widths = Widths.of(config)
    if planes.dtype == torch.float32:
        return widths.narrow
    return config.in_features <= LARGEST_GRADIENT_WIDTH and fits_gradient(architecture(planes.device), widths)


def fits_gradient(arch: str, widths: Widths) -> bool:
    """Whether the registers of an architecture hold the backward pass of 16-bit planes for these widths."""
    return arch != "sm_80" or widths.hidden <= 64
