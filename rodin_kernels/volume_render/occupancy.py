"""Which cells of the box may hold something: rays decode their samples only there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_choice, check_integer, check_number, check_shape, check_tensor
from ..launch import resolve_backend
from ..layouts import RODIN, check_layout
from .arguments import PADDINGS, REDUCTIONS, is_tiny
from .dense import NEARLY, Decoder, occupied_cells

#: How a cell is found to be occupied.
RULES = ("probe", "bound")


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
                    samples_per_cell: int = 2, dilate: int | None = None, rule: str = "probe",
                    layout: Sequence[str] = RODIN, reduce: str = "sum", align_corners: bool = False,
                    padding_mode: str = "zeros", backend: str = "auto") -> OccupancyGrid:
        """The grid of a field: which cells hold, or may hold, a density above the threshold.

        Each cell is cut into `samples_per_cell`^3 equal parts. A cell is occupied if one of its parts is, and then all
        cells are that lie up to `dilate` cells away along every axis. When a part is, the rule says:

            "probe"  the density at its middle exceeds the threshold. Left out are then only details that fit between
                     the probes and lie further than `dilate` cells from everything found. Works for any decoder.
            "bound"  interval arithmetic cannot rule out that somewhere in the part, up to 1e-5 beyond its faces and
                     seen from anywhere, the density of `render_triplane_reference` exceeds the threshold, rounding
                     included. No renderer can sample such a point in a cell that is left out. Needs a `TinyDecoder`;
                     marks more, the less the finer the parts are.

        Where "probe" misses nothing, or always with "bound", a ray loses at most 1 - exp(-threshold * length) of its
        light. A density that is not a number counts as occupied. Not differentiable.

        Args:
            planes: [B, 3, C, H, W]. decoder: as for `render_triplane`; for "probe", directions are +z.
            resolution: G cells along each axis. threshold: density, in 1/world unit.
            samples_per_cell, rule: see above. dilate: None is 1 for "probe", 0 for "bound".
            layout, reduce, align_corners, padding_mode: as for `render_triplane`.
            backend: "auto", "triton" (one launch for what `occupancy_path.covers_grid` says, all else as torch) or
                "torch". Both compute in float32 (torch float64 planes in float64) and mark all that exceeds the
                threshold by more than rounding; densities within 0.1 % below it may differ.

        Raises:
            TypeError, ValueError: an argument is not of the kind or range above; the message names it.
            RuntimeError: the backend cannot run here.
        """
        check_integer("resolution", resolution, least=1)
        check_integer("samples_per_cell", samples_per_cell, least=1)
        check_choice("rule", rule, RULES)
        dilate = check_integer("dilate", int(rule == "probe") if dilate is None else dilate, least=0)
        check_number("threshold", threshold, least=0)
        check_shape("planes", check_tensor("planes", planes), (None, 3, None, None, None), "[B, 3, C, H, W]")
        check_choice("reduce", reduce, REDUCTIONS)
        check_choice("padding_mode", padding_mode, PADDINGS)
        check_choice("backend", backend, ("auto", "triton", "torch"))
        if rule == "bound" and not is_tiny(decoder):
            raise ValueError(f"decoder must be a TinyDecoder for rule='bound'; got {type(decoder).__name__}")
        chosen, names = resolve_backend("render_triplane", backend, planes), check_layout(layout)
        if chosen == "triton" and is_tiny(decoder):
            from . import occupancy_path

            if occupancy_path.covers_grid(planes, decoder.choices, resolution, samples_per_cell):
                return cls(occupancy_path.occupied_cells(
                    planes, decoder, resolution, threshold * NEARLY, samples_per_cell, dilate, rule == "bound",
                    (names, reduce, align_corners, padding_mode)))
        return cls(occupied_cells(planes, decoder, resolution, threshold, samples_per_cell, dilate, rule, names, reduce,
                                  align_corners, padding_mode))

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
