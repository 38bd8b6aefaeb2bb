"""The occupancy grid: which cell a point is in, conservative building, dense density against point-wise sampling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rodin_kernels import EG3D, RODIN, RODINHD, OccupancyGrid, TinyDecoder, density_grid, render_triplane
from rodin_kernels import sample_triplane_reference as sample
from rodin_kernels.testing import random_planes, random_tensor


def blobs(seed: int = 0, batch: int = 1) -> tuple[Tensor, TinyDecoder]:
    """A smooth field, dense in places and almost empty elsewhere."""
    torch.manual_seed(seed)
    coarse = random_planes(batch, 6, 5, seed=seed)
    planes = torch.nn.functional.interpolate(coarse.flatten(0, 1), size=24, mode="bicubic").view(batch, 3, 6, 24, 24)
    decoder = TinyDecoder(6, (16,))
    with torch.no_grad():
        decoder.layers[1].weight[0] *= 25
        decoder.layers[1].bias[0] = -5.0
    return planes, decoder


def test_cells_are_indexed_by_x_y_z() -> None:
    cells = torch.zeros(4, 4, 4, dtype=torch.bool)
    cells[3, 0, 1] = True
    grid = OccupancyGrid(cells)
    points = torch.tensor([[[0.9, -0.9, -0.3], [1.0, -1.0, -0.5], [0.9, -0.3, -0.9], [1.1, -0.9, -0.3],
                            [float("nan"), 0.0, 0.0], [float("inf"), 0.0, 0.0]]])
    assert grid.query(points).tolist() == [[True, True, False, False, False, False]]
    assert grid.fraction == 1 / 64 and "resolution=4" in repr(grid) and grid.to("cpu").resolution == 4


@pytest.mark.parametrize("layout", [RODIN, RODINHD, EG3D])
@pytest.mark.parametrize(("reduce", "padding"), [("sum", "zeros"), ("mean", "border"), ("concat", "reflection"),
                                                 ("product", "zeros")])
def test_the_dense_density_is_the_density_of_its_points(layout: tuple[str, ...], reduce: str, padding: str) -> None:
    planes = random_planes(2, 3, 7, dtype=torch.float64)
    decoder = TinyDecoder(9 if reduce == "concat" else 3, (8,)).double()
    options = {"layout": layout, "reduce": reduce, "padding_mode": padding, "align_corners": reduce == "mean"}
    dense = density_grid(planes, decoder, 5, **options)
    centre = (torch.arange(5, dtype=torch.float64) * 2 + 1) / 5 - 1
    points = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij"), -1).view(1, -1, 3).expand(2, -1, -1)
    expected, _ = decoder(sample(planes, points, **options))
    assert torch.allclose(dense.view(2, -1), expected, rtol=1e-10)


def test_what_is_left_out_is_as_thin_as_promised() -> None:
    planes, decoder = blobs()
    threshold = 0.05
    grid = OccupancyGrid.from_planes(planes, decoder, 24, threshold=threshold)
    assert 0.02 < grid.fraction < 0.9
    points = random_tensor(1, 40_000, 3).clamp(-1, 1)
    density, _ = decoder(sample(planes, points))
    assert density[~grid.query(points)].max() <= threshold
    origins = torch.nn.functional.normalize(random_tensor(1, 400, 3), dim=-1) * 3
    inputs = planes, origins, -origins + random_tensor(1, 400, 3, seed=2) * 0.3, decoder
    options = {"near": 0.3, "far": 1.7, "num_samples": 48}
    full, sparse = (render_triplane(*inputs, occupancy=g, **options) for g in (None, grid))
    assert (full.opacity - sparse.opacity).abs().max() <= -math.expm1(-threshold * 2 * math.sqrt(3))


def test_growing_reaches_all_26_neighbours_and_dead_ends() -> None:
    planes = torch.full((1, 3, 1, 8, 8), float("nan"))
    planes[..., :4, :4] = 0
    decoder = TinyDecoder(1, ())
    with torch.no_grad():
        decoder.layers[0].bias.fill_(-20.0)
    exact = OccupancyGrid.from_planes(planes, decoder, 8, dilate=0).cells[0]
    grown = OccupancyGrid.from_planes(planes, decoder, 8, dilate=1).cells[0]
    expected = torch.nn.functional.max_pool3d(exact[None, None].float(), 3, 1, 1)[0, 0].bool()
    assert exact.any() and not exact.all() and torch.equal(grown, expected)


def test_scenes_have_their_own_grids() -> None:
    planes, decoder = blobs(batch=2)
    both = OccupancyGrid.from_planes(planes, decoder, 12)
    alone = OccupancyGrid.from_planes(planes[1:], decoder, 12)
    assert torch.equal(both.cells[1:], alone.cells) and not torch.equal(both.cells[0], both.cells[1])


@pytest.mark.parametrize(("call", "error", "name"), [
    (lambda: OccupancyGrid(torch.ones(2, 2, 2)), TypeError, "cells"),
    (lambda: OccupancyGrid(torch.ones(2, 2, 3).bool()), ValueError, "cells"),
    (lambda: OccupancyGrid(torch.ones(3, 2, 2, 2).bool()).query(torch.ones(2, 4, 3)), ValueError, "points"),
    (lambda: OccupancyGrid.from_planes(torch.ones(3, 1, 2, 2), TinyDecoder(1)), ValueError, "planes"),
    (lambda: OccupancyGrid.from_planes(torch.ones(1, 3, 1, 2, 2), TinyDecoder(1), 0), ValueError, "resolution"),
    (lambda: OccupancyGrid.from_planes(torch.ones(1, 3, 1, 2, 2), TinyDecoder(1), 4, threshold=-1.0), ValueError,
     "threshold"),
])
def test_errors_name_the_argument(call: object, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        call()  # type: ignore[operator]
