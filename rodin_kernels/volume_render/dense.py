"""The field on a regular grid: its density at the cells' centres, and which cells may hold something.

On a grid the planes are read once per plane cell, not once per point: feature(x, y, z) is put together from three
resized planes, so that only the decoder's work is left per point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_integer, check_tensor
from ..layouts import RODIN, plane_axes
from ..triplane_sample.reference import reduce_features
from .arguments import REDUCTIONS
from .decoder import TinyDecoder
from .intervals import Interval, along_axes, largest_density, plane_intervals, reduced

#: Points decoded at once while a grid is built.
CHUNK = 1 << 16
#: A density counts as above a threshold from this share of it on, so that rounding hides none that is.
NEARLY = 1 - 2.0**-10

Decoder = Callable[..., tuple[Tensor, Tensor]]


@torch.no_grad()
def density_grid(planes: Tensor, decoder: Decoder, resolution: int, *, layout: Sequence[str] = RODIN,
                 reduce: str = "sum", align_corners: bool = False, padding_mode: str = "zeros") -> Tensor:
    """Density at the centres of a regular grid of cells over the box [-1, 1]^3, for meshes and occupancy.

    Args:
        planes: [B, 3, C, H, W]. decoder: as for `render_triplane`; directions, if it wants some, are +z.
        resolution: G; cell i of an axis has its centre at -1 + (2 i + 1) / G.

    Returns:
        [B, G, G, G] float32 (float64 for float64 planes), indexed by x, y, z. Not differentiable.

    Raises:
        TypeError, ValueError: an argument is not of the kind or range above; the message names it.
    """
    planes = _checked(planes, resolution, reduce)
    centres = (torch.arange(resolution, device=planes.device, dtype=planes.dtype) * 2 + 1) / resolution - 1
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    where = torch.stack([columns, rows], -1).expand(len(planes), -1, -1, -1)
    resized = []
    for plane, (column, row) in zip(planes.unbind(1), plane_axes(layout), strict=True):
        values = F.grid_sample(plane, where, mode="bilinear", padding_mode=padding_mode, align_corners=align_corners)
        resized.append(along_axes(values, column, row))
    towards = planes.new_tensor([0.0, 0.0, 1.0])

    def decoded(parts: list[Tensor]) -> Tensor:
        shape = torch.broadcast_shapes(*(p.shape for p in parts))
        flat = reduce_features([p.expand(shape) for p in parts] if reduce == "concat" else parts, reduce).flatten(0, 2)
        return decoder(flat, towards.expand(len(flat), 3))[0]

    return _by_slabs(resized, resolution, decoded)


@torch.no_grad()
def density_bound_grid(planes: Tensor, decoder: TinyDecoder, resolution: int, *, layout: Sequence[str] = RODIN,
                       reduce: str = "sum", align_corners: bool = False, padding_mode: str = "zeros") -> Tensor:
    """What the density cannot exceed in each cell of a regular grid, by interval arithmetic; see `intervals`.

    Args:
        as for `density_grid`, but the decoder is a `TinyDecoder`, looked at from any direction.

    Returns:
        [B, G, G, G]; not a number or infinite where nothing can be said.

    Raises:
        TypeError, ValueError: as for `density_grid`.
    """
    planes = _checked(planes, resolution, reduce)
    found = plane_intervals(planes, resolution, layout, align_corners, padding_mode)
    config, parameters = decoder.choices, decoder.flat_parameters()

    def bounded(parts: list[Tensor]) -> Tensor:
        features = reduced([Interval(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)], reduce)
        return largest_density(config, parameters, Interval(*(x.flatten(0, 2) for x in features)))

    return _by_slabs([x for own in found for x in own], resolution, bounded)


def occupied_cells(planes: Tensor, decoder: Decoder, resolution: int, threshold: float, parts: int, dilate: int,
                   rule: str, layout: Sequence[str], reduce: str, align_corners: bool, padding_mode: str) -> Tensor:
    """bool [B, G, G, G]: `OccupancyGrid.from_planes` in plain torch, on checked arguments."""
    asked: dict[str, Any] = {"layout": layout, "reduce": reduce, "align_corners": align_corners,
                             "padding_mode": padding_mode}
    if rule == "bound":
        assert isinstance(decoder, TinyDecoder)
        density = density_bound_grid(planes, decoder, resolution * parts, **asked)
    else:
        density = density_grid(planes, decoder, resolution * parts, **asked)
    return _dilated(_pooled(~(density <= threshold * NEARLY), parts), dilate)


def _checked(planes: Tensor, resolution: int, reduce: str) -> Tensor:
    check_tensor("planes", planes, ndim=5)
    check_integer("resolution", resolution, least=1)
    check_choice("reduce", reduce, REDUCTIONS)
    return planes if planes.dtype == torch.float64 else planes.float()


def _by_slabs(parts: list[Tensor], resolution: int, evaluate: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """[B, G, G, G] from what `evaluate` makes of tensors [B, G or 1, G or 1, G or 1, C], slab by slab along x."""
    batch, like = parts[0].shape[0], parts[0]
    found = like.new_empty(batch, resolution, resolution, resolution)
    thickness = max(1, CHUNK // resolution**2)
    for scene in range(batch):
        for start in range(0, resolution, thickness):
            slab = slice(start, min(start + thickness, resolution))
            own = [p[scene] if p.shape[1] == 1 else p[scene, slab] for p in parts]
            found[scene, slab] = evaluate(own).view(slab.stop - start, resolution, resolution)
    return found


def _pooled(occupied: Tensor, size: int) -> Tensor:
    """True where any of the size^3 parts of a cell is."""
    batch, n = occupied.shape[0], occupied.shape[-1] // size
    return occupied.view(batch, n, size, n, size, n, size).any(6).any(4).any(2)


def _dilated(cells: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        for dim in (1, 2, 3):
            grown = cells.clone()
            grown.narrow(dim, 1, cells.shape[dim] - 1).logical_or_(cells.narrow(dim, 0, cells.shape[dim] - 1))
            grown.narrow(dim, 0, cells.shape[dim] - 1).logical_or_(cells.narrow(dim, 1, cells.shape[dim] - 1))
            cells = grown
    return cells
