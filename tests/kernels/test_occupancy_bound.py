"""The rule "bound": no point of a cell that is left out exceeds the threshold, whatever the field."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rodin_kernels import EG3D, RODIN, RODINHD, OccupancyGrid, TinyDecoder
from rodin_kernels import sample_triplane_reference as sample
from rodin_kernels.testing import random_tensor
from rodin_kernels.volume_render import intervals
from rodin_kernels.volume_render.dense import NEARLY, density_bound_grid, density_grid
from rodin_kernels.volume_render.intervals import Interval
from rodin_kernels.volume_render.perceptron import ACTIVATIONS, activated

FIELDS: dict[str, dict[str, Any]] = {
    "relu": {}, "one texel": {"size": (1, 1)},
    "silu": {"decoder": {"activation": "silu", "density": "trunc_exp"}, "reduce": "mean", "layout": EG3D},
    "softplus": {"decoder": {"activation": "softplus", "density": "shifted_softplus"}, "padding_mode": "border"},
    "leaky": {"decoder": {"activation": "leaky_relu", "bias": False}, "reduce": "concat", "align_corners": True},
    "product": {"reduce": "product", "padding_mode": "reflection", "layout": RODINHD, "size": (11, 4)},
    "linear": {"decoder": {"hidden": (), "density": "exp", "density_bias": -0.7}, "align_corners": True,
               "padding_mode": "border"},
    "seen from anywhere": {"decoder": {"view_directions": "concat", "direction_frequencies": 1}},
    "two heads": {"decoder": {"density_features": 2, "density_hidden": (6,), "geometry_features": 2,
                              "feature_frequencies": 2, "density_activation": "silu", "view_directions": "concat"}},
}  # fmt: skip


def field(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, TinyDecoder, dict[str, Any]]:
    """Rough planes, a decoder, and how the planes are read."""
    torch.manual_seed(3)
    case = {"decoder": {}, "size": (7, 5), "layout": RODIN, "reduce": "sum", "align_corners": False,
            "padding_mode": "zeros", **FIELDS[name]}
    choices, size, reduce = case.pop("decoder"), case.pop("size"), case["reduce"]
    decoder = TinyDecoder(4 * (3 if reduce == "concat" else 1), **{"hidden": (9, 7), **choices}).to(dtype)
    return random_tensor(1, 3, 4, *size, dtype=dtype, seed=4) * 1.5, decoder, case


def telling_points(resolution: int) -> Tensor:
    """Points [1, N, 3] anywhere, and on and beside faces of cells and, for many sizes of planes, on texels."""
    generator = torch.Generator().manual_seed(0)
    anywhere = torch.rand(30_000, 3, dtype=torch.float64, generator=generator) * 2 - 1
    places = [torch.arange(n + 1, dtype=torch.float64) * (2 / n) - 1 for n in (resolution, 14, 10, 22, 8, 6, 4)]
    lines = torch.cat(places)
    lines = torch.cat([lines, lines + 1e-6, lines - 1e-6]).clamp(-1, 1)
    picked = torch.randint(len(lines), (30_000, 3), generator=generator)
    return torch.cat([anywhere, lines[picked]]).float()[None]


@pytest.mark.parametrize("name", FIELDS)
def test_no_point_of_an_empty_cell_exceeds_the_threshold(name: str) -> None:
    planes, decoder, options = field(name)
    resolution = 6
    points = telling_points(resolution)
    seen = random_tensor(*points.shape, seed=5, dtype=torch.float64)
    exact, _ = decoder.double()(sample(planes.double(), points.double(), **options), seen)
    decoder.float()
    for parts in (1, 3):
        bounds = density_bound_grid(planes, decoder, resolution * parts, **options)
        threshold = torch.nn.functional.max_pool3d(bounds, parts).flatten().median().item()
        grid = OccupancyGrid.from_planes(planes, decoder, resolution, threshold=threshold, rule="bound",
                                         samples_per_cell=parts, **options)
        assert grid.fraction < 0.6 and grid.fraction > 0.3
        assert exact[~grid.query(points)].max() <= threshold, (name, parts)
    finest = density_bound_grid(planes, decoder, 36, **options)
    assert (torch.nn.functional.max_pool3d(finest, 2) <= bounds * (1 + 1e-3)).all()
    assert (density_grid(planes, decoder, 36, **options) <= finest).all()


def test_bounds_close_in_on_the_density() -> None:
    planes, decoder, options = field("relu")
    excess = []
    for resolution in (12, 48, 144):
        exact = density_grid(planes.double(), decoder.double(), resolution, **options)
        excess.append((density_bound_grid(planes.double(), decoder, resolution, **options) - exact).max().item())
    assert excess[1] < excess[0] / 2 and excess[2] < excess[1] / 2 and excess[2] > 0


def test_bounds_hold_where_rounding_decides() -> None:
    planes = torch.full((1, 3, 4, 5, 5), 0.1)
    for seed in range(40):
        torch.manual_seed(seed)
        decoder = TinyDecoder(4, (16, 16))
        bound = density_bound_grid(planes, decoder, 2, padding_mode="border").max()
        exact = decoder.double()(sample(planes.double(), torch.zeros(1, 1, 3).double(), padding_mode="border"))[0]
        assert exact.item() <= bound.item() <= exact.item() * 1.01


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activated_interval_holds_every_value(activation: str) -> None:
    centre, radius = torch.meshgrid(torch.linspace(-5, 3, 40), torch.tensor([0.0, 0.1, 1.0, 4.0]), indexing="ij")
    shares = torch.linspace(-1, 1, 401).view(-1, 1, 1)
    values = activated(centre + shares * radius, activation)
    found = intervals._activated(Interval(centre, radius), activation).widened()
    assert (values <= found.centre + found.radius).all() and (values >= found.centre - found.radius).all()
    assert (2 * found.radius <= values.amax(0) - values.amin(0) + 2e-3).all()


@pytest.mark.parametrize("rule", ["probe", "bound"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_counts_as_occupied(rule: str, value: float) -> None:
    planes = torch.zeros(1, 3, 2, 8, 8)
    planes[0, 0, :, 2, 5] = value
    decoder = TinyDecoder(2, (4,), activation="leaky_relu")
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.tensor([[1.0, 1], [1, -1], [-1, 1], [1, 1]]))
        decoder.layers[1].weight[0] = torch.tensor([1.0, -1, 1, -1])
        decoder.layers[1].bias[0] = -20
    grid = OccupancyGrid.from_planes(planes, decoder, 4, rule=rule, samples_per_cell=2, dilate=0).cells[0]
    # plane xy: columns are x, rows are y; z does not matter
    assert grid[2, 1].all() and not grid[0].any() and not grid[:, 3].any()


def test_growing_and_thresholds_mean_the_same_for_both_rules() -> None:
    planes, decoder, options = field("softplus")
    bounds = density_bound_grid(planes, decoder, 10, **options)
    threshold = bounds.flatten().median().item()
    asked = {"threshold": threshold, "rule": "bound", "samples_per_cell": 2, **options}
    exact = OccupancyGrid.from_planes(planes, decoder, 5, **asked).cells
    wanted = torch.nn.functional.max_pool3d(bounds[None], 2)[0] > threshold * NEARLY
    assert torch.equal(exact, wanted) and exact.any() and not exact.all()
    grown = OccupancyGrid.from_planes(planes, decoder, 5, dilate=1, **asked).cells
    assert torch.equal(grown, torch.nn.functional.max_pool3d(exact[None].float(), 3, 1, 1)[0].bool())


def test_only_known_decoders_have_bounds() -> None:
    planes, decoder, _ = field("relu")
    with pytest.raises(ValueError, match="decoder must be a TinyDecoder"):
        OccupancyGrid.from_planes(planes, lambda f, d: decoder(f, d), 4, rule="bound")
    with pytest.raises(ValueError, match="rule"):
        OccupancyGrid.from_planes(planes, decoder, 4, rule="guess")
    with pytest.raises(RuntimeError, match="triton"):
        OccupancyGrid.from_planes(planes, decoder, 4, backend="triton")
    with pytest.raises(ValueError, match="backend"):
        OccupancyGrid.from_planes(planes, decoder, 4, backend="reference")
