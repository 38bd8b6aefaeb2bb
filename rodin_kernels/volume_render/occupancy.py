"""Which cells of the box may hold something: rays decode their samples only there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_integer, check_number, check_tensor
from ..layouts import RODIN, plane_axes

#: Points decoded at once while a grid is built.
CHUNK = 1 << 16

Decoder = Callable[..., tuple[Tensor, Tensor]]


class OccupancyGrid:
    """A regular grid over the box [-1, 1]^3, for each cell whether the density may matter anywhere in it.

    `cells` is bool [B, G, G, G] (a batch of 1 serves any number of scenes), indexed by x, y, z; cell i of an axis
    covers [-1 + 2 i / G, -1 + 2 (i + 1) / G), the last one its upper end too.

    Args:
        cells: bool [B, G, G, G] or [G, G, G].

    Raises:
        TypeError: `cells` is no bool tensor. ValueError: not a cube.
    """

    def __init__(self, cells: Tensor) -> None:
        check_tensor("cells", cells, floating=False)
        if cells.dtype != torch.bool:
            raise TypeError(f"cells must be bool; got {cells.dtype}")
        if cells.ndim not in (3, 4) or len(set(cells.shape[-3:])) != 1 or cells.shape[-1] < 1:
            raise ValueError(f"cells must be [B, G, G, G] or [G, G, G]; got {list(cells.shape)}")
        self.cells = cells if cells.ndim == 4 else cells.unsqueeze(0)

    @classmethod
    def from_planes(cls, planes: Tensor, decoder: Decoder, resolution: int = 64, *, threshold: float = 0.01,
                    samples_per_cell: int = 2, dilate: int = 1, layout: Sequence[str] = RODIN, reduce: str = "sum",
                    align_corners: bool = False, padding_mode: str = "zeros") -> OccupancyGrid:
        """The grid of a field: a cell is occupied if the density exceeds the threshold in it or in a cell next to it.

        The density is looked at in `samples_per_cell`^3 evenly spaced points of each cell, then occupied cells grow by
        `dilate` cells in all 26 directions. What is left out has at most the threshold's density wherever the field is
        smooth on the scale of a cell, so a ray loses at most 1 - exp(-threshold * length) of its light. A density that
        is not a number counts as occupied. Not differentiable.

        Args:
            planes: [B, 3, C, H, W]. decoder: as for `render_triplane`; directions, if it wants some, are +z.
            resolution: G cells along each axis. threshold: density, in 1/world unit.
            samples_per_cell, dilate: see above. layout, reduce, align_corners, padding_mode: as for `render_triplane`.

        Raises:
            TypeError, ValueError: an argument is not of the kind or range above; the message names it.
        """
        check_integer("resolution", resolution, least=1)
        check_integer("samples_per_cell", samples_per_cell, least=1)
        check_integer("dilate", dilate, least=0)
        check_number("threshold", threshold, least=0)
        density = density_grid(planes, decoder, resolution * samples_per_cell, layout=layout, reduce=reduce,
                               align_corners=align_corners, padding_mode=padding_mode)
        occupied = ~(density <= threshold)
        return cls(_dilated(_pooled(occupied, samples_per_cell), dilate))

    @property
    def resolution(self) -> int:
        """G, the number of cells along each axis."""
        return self.cells.shape[-1]

    @property
    def fraction(self) -> float:
        """Share of the cells that is occupied, 0 to 1."""
        return self.cells.float().mean().item()

    def query(self, points: Tensor) -> Tensor:
        """Whether points lie in occupied cells.

        Args:
            points: [B, ..., 3] in the box's coordinates.

        Returns:
            bool [B, ...]; False outside the box and where a coordinate is not a number.

        Raises:
            ValueError: the batch fits neither the grid's nor 1.
        """
        return query_cells(self.cells, points)

    def to(self, device: torch.device | str) -> OccupancyGrid:
        """The same grid on another device."""
        return OccupancyGrid(self.cells.to(device))

    def __repr__(self) -> str:
        scenes = self.cells.shape[0]
        return f"OccupancyGrid(scenes={scenes}, resolution={self.resolution}, fraction={self.fraction:.3f})"


def query_cells(cells: Tensor, points: Tensor) -> Tensor:
    """`OccupancyGrid.query` as a function of the cells [B, G, G, G]."""
    if cells.shape[0] not in (1, points.shape[0]):
        raise ValueError(f"points must have batch {cells.shape[0]} as the grid; got {list(points.shape)}")
    size = cells.shape[-1]
    inside = (points.abs() <= 1).all(-1)
    index = torch.where(inside.unsqueeze(-1), (points + 1) * (size / 2), 0.0).long().clamp_(0, size - 1)
    scene = torch.arange(cells.shape[0], device=points.device).view(-1, *[1] * (points.ndim - 2))
    return cells[scene, index[..., 0], index[..., 1], index[..., 2]] & inside


@torch.no_grad()
def density_grid(planes: Tensor, decoder: Decoder, resolution: int, *, layout: Sequence[str] = RODIN,
                 reduce: str = "sum", align_corners: bool = False, padding_mode: str = "zeros") -> Tensor:
    """Density at the centres of a regular grid of cells over the box [-1, 1]^3, for meshes and occupancy.

    On a grid the planes are read once per plane cell, not once per point: feature(x, y, z) is put together from three
    resized planes, so that only the decoder's work is left per point.

    Args:
        planes: [B, 3, C, H, W]. decoder: as for `render_triplane`; directions, if it wants some, are +z.
        resolution: G; cell i of an axis has its centre at -1 + (2 i + 1) / G.

    Returns:
        [B, G, G, G] float32 (float64 for float64 planes), indexed by x, y, z. Not differentiable.

    Raises:
        TypeError, ValueError: an argument is not of the kind or range above; the message names it.
    """
    check_tensor("planes", planes, ndim=5)
    check_integer("resolution", resolution, least=1)
    check_choice("reduce", reduce, ("sum", "mean", "concat", "product"))
    planes = planes if planes.dtype == torch.float64 else planes.float()
    centres = (torch.arange(resolution, device=planes.device, dtype=planes.dtype) * 2 + 1) / resolution - 1
    rows, columns = torch.meshgrid(centres, centres, indexing="ij")
    where = torch.stack([columns, rows], -1).expand(len(planes), -1, -1, -1)
    resized = []
    for plane, (column, row) in zip(planes.unbind(1), plane_axes(layout), strict=True):
        values = F.grid_sample(plane, where, mode="bilinear", padding_mode=padding_mode, align_corners=align_corners)
        values = values.permute(0, 3, 2, 1) if column < row else values.permute(0, 2, 3, 1)
        resized.append(values.unsqueeze(({0, 1, 2} - {column, row}).pop() + 1).contiguous())
    return _decode_slabs(resized, decoder, resolution, reduce)


def _decode_slabs(resized: list[Tensor], decoder: Decoder, resolution: int, reduce: str) -> Tensor:
    """Density [B, G, G, G] from planes [B, G or 1, G or 1, G or 1, C], slab by slab along x."""
    batch, like = resized[0].shape[0], resized[0]
    density = like.new_empty(batch, resolution, resolution, resolution)
    thickness = max(1, CHUNK // resolution**2)
    towards = like.new_tensor([0.0, 0.0, 1.0])
    for scene in range(batch):
        for start in range(0, resolution, thickness):
            slab = slice(start, min(start + thickness, resolution))
            parts = [p[scene] if p.shape[1] == 1 else p[scene, slab] for p in resized]
            first, second, third = parts
            if reduce == "concat":
                shape = (slab.stop - start, resolution, resolution, -1)
                features = torch.cat([p.expand(shape) for p in parts], -1)
            elif reduce == "product":
                features = first * second * third
            else:
                features = first + second + third
                features = features / 3 if reduce == "mean" else features
            flat = features.reshape(-1, features.shape[-1])
            density[scene, slab] = decoder(flat, towards.expand(len(flat), 3))[0].view(features.shape[:-1])
    return density


def _pooled(occupied: Tensor, size: int) -> Tensor:
    """True where any of the size^3 points of a cell is."""
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
