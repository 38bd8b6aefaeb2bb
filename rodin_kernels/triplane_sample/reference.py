"""The specification of tri-plane sampling: bilinear or nearest reads in plain torch, differentiable to any order.

Equal to `torch.nn.functional.grid_sample` on each plane, for every mode, padding and alignment, also at coordinates
that are not finite (but for very far ones by reflection, where it differs from device to device); but unlike it
differentiable twice and more, in planes and points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layouts import RODIN, plane_axes

#: Widths of a line out to which reflection folds positions back. Twice as far float32 holds no fractions of texels, and
#: what divisions leave there would differ from one device to the next.
LARGEST_FOLD = 1 << 22


def unpadded_position(coordinate: Tensor, size: int, align_corners: bool) -> Tensor:
    """Where a coordinate falls on a line of `size` texels, 0 being the centre of the first.

        align_corners: (x + 1) (size - 1) / 2, so that -1 and 1 are the centres of the outer texels
        otherwise:     (x + 1) size / 2 - 1/2, so that -1 and 1 are the outer edges of the outer texels
    """
    return (coordinate + 1) * ((size - 1) / 2) if align_corners else (coordinate + 1) * (size / 2) - 0.5


def texel_position(coordinate: Tensor, size: int, align_corners: bool, padding_mode: str) -> Tensor:
    """Where on a line of `size` texels a coordinate reads, after padding.

    "zeros" moves positions outside to the nearest one that reads nothing, -1 or `size`, and keeps what is not a number;
    "border" moves them to the nearest outer texel, "reflection" folds them back, and these two send what is not a
    number to texel 0, as grid_sample does; so does reflection with what lies `LARGEST_FOLD` widths away or further, on
    every device. Differentiable; the slope is 0 where a position was moved to an end.
    """
    position = unpadded_position(coordinate, size, align_corners)
    if padding_mode == "zeros":
        return position.clamp(-1, size)
    if padding_mode == "reflection":
        position = _reflect(position, 0.0, size - 1.0) if align_corners else _reflect(position, -0.5, size - 0.5)
    inner = (position > 0) & (position < size - 1)
    return torch.where(inner, position, position.detach().clamp(0, size - 1).nan_to_num(0.0))


def _reflect(position: Tensor, low: float, high: float) -> Tensor:
    span = high - low
    if span == 0:
        return torch.zeros_like(position)
    distance = (position - low).abs()
    rest = torch.fmod(distance, span)
    turns = torch.floor(distance / span)
    folded = torch.where(turns % 2 == 0, rest + low, span - rest + low)
    # what is not finite fails the comparison as well
    return torch.where(turns < LARGEST_FOLD, folded, 0.0)


def _line_corners(position: Tensor, size: int, mode: str) -> list[tuple[Tensor, Tensor]]:
    """The texels that a position reads on its line, as (index, weight); texels outside the line weigh nothing."""
    if mode == "nearest":
        texel = position.detach().round().nan_to_num(-1.0)
        pairs = [(texel, torch.ones_like(position))]
    else:
        fraction = position - position.detach().floor()
        # what is not a number reads texels 0 and 1 with weights that are not numbers either
        texel = position.detach().floor().nan_to_num(0.0)
        pairs = [(texel, 1 - fraction), (texel + 1, fraction)]
    return [(texel.clamp(0, size - 1).long(), weight * ((texel >= 0) & (texel < size))) for texel, weight in pairs]


def _sample_plane(plane: Tensor, x: Tensor, y: Tensor, align_corners: bool, padding_mode: str, mode: str) -> Tensor:
    """One plane [B, C, H, W] read at columns x [B, N] and rows y [B, N], both in [-1, 1]: [B, N, C]."""
    batch, channels, height, width = plane.shape
    columns = _line_corners(texel_position(x, width, align_corners, padding_mode), width, mode)
    rows = _line_corners(texel_position(y, height, align_corners, padding_mode), height, mode)
    texels = plane.flatten(2).transpose(1, 2)  # [B, H W, C]
    out = plane.new_zeros(batch, x.shape[1], channels)
    for row, row_weight in rows:
        for column, column_weight in columns:
            index = (row * width + column)[..., None].expand(-1, -1, channels)
            out = out + (row_weight * column_weight)[..., None] * texels.gather(1, index)
    return out


def reduce_features(features: Sequence[Tensor], reduce: str) -> Tensor:
    """The features [..., C] of the planes as one: their sum, mean or product [..., C], or side by side [..., 3C]."""
    if reduce == "concat":
        return torch.cat(list(features), dim=-1)
    total = features[0]
    for feature in features[1:]:
        total = total * feature if reduce == "product" else total + feature
    return total / len(features) if reduce == "mean" else total


def sample_triplane_reference(
    planes: Tensor | Sequence[Tensor],
    points: Tensor,
    *,
    layout: Sequence[str] = RODIN,
    reduce: str = "sum",
    align_corners: bool = False,
    padding_mode: str = "zeros",
    mode: str = "bilinear",
) -> Tensor:
    """Features of points from three planes, in plain torch: the meaning of `sample_triplane`, which documents it.

        f(p) = reduce over planes P of  sum over the 4 texels (i, j) around p of  w_i(p[col P]) w_j(p[row P]) P[j, i]

    Args:
        planes: [B, 3, C, H, W], or three [B, C, H_i, W_i]; a batch of 1 serves all points.
        points: [B, N, 3], inside [-1, 1] where the planes are.
        layout, reduce, align_corners, padding_mode, mode: as in `sample_triplane`.

    Returns:
        [B, N, C], or [B, N, 3C] for reduce="concat", in the planes' dtype; computed in float32 or float64.

    Differentiable to any order in planes and points.
    """
    own = list(planes.unbind(1)) if isinstance(planes, Tensor) else list(planes)
    dtype = torch.promote_types(torch.promote_types(own[0].dtype, points.dtype), torch.float32)
    coordinates = points.to(dtype).unbind(-1)
    features = []
    for plane, (column, row) in zip(own, plane_axes(layout), strict=True):
        wide = plane.to(dtype).expand(points.shape[0], -1, -1, -1)
        features.append(
            _sample_plane(wide, coordinates[column], coordinates[row], align_corners, padding_mode, mode)
        )
    return reduce_features(features, reduce).to(own[0].dtype)
