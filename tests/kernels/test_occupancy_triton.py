"""The occupancy grid's kernel, interpreted or on a GPU, against float64; and that empty space costs no decoding.

The tests marked `interpret` run in a process of their own, which the last test starts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import EG3D, RODINHD, OccupancyGrid, TinyDecoder, render_triplane
from rodin_kernels.testing import STORAGES, amid_poison, poisoned, random_planes, random_tensor, stored_as
from rodin_kernels.volume_render.decoder import DecoderConfig
from rodin_kernels.volume_render.dense import NEARLY, density_bound_grid, density_grid
from rodin_kernels.volume_render.occupancy_path import covers_grid, unpacked
from tests.interpreter import assert_passes_interpreted

interpret = pytest.mark.interpret
interpreted = pytest.mark.interpret(only=True)


@pytest.fixture(autouse=True)
def quick_interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter checks every integer operation for overflow, at half of its time."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        builder = __import__("triton.runtime.interpreter", fromlist=["_"]).interpreter_builder
        monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
    yield


GRIDS: dict[str, dict[str, Any]] = {
    "probe": {"resolution": 5, "dilate": 1}, "probe parts": {"samples_per_cell": 2, "batch": 2},
    "probe far": {"resolution": 5, "dilate": 2, "reduce": "concat", "dtype": torch.float16, "layout": EG3D,
                  "decoder": {"hidden": (17, 5), "activation": "leaky_relu", "density": "exp"}},
    "probe product": {"reduce": "product", "padding_mode": "border", "align_corners": True, "layout": RODINHD,
                      "decoder": {"hidden": (3,), "activation": "softplus", "bias": False}},
    "bound": {"batch": 2},
    "bound silu": {"decoder": {"activation": "silu", "density": "trunc_exp"}, "reduce": "mean", "layout": EG3D,
                   "align_corners": True, "padding_mode": "reflection"},
    "bound concat": {"reduce": "concat", "dtype": torch.float16, "padding_mode": "border",
                     "decoder": {"hidden": (6, 9), "activation": "softplus", "density": "shifted_softplus"}},
    "bound product": {"reduce": "product", "samples_per_cell": 2, "layout": RODINHD,
                      "decoder": {"activation": "leaky_relu", "bias": False, "density_bias": 0.4}},
}  # fmt: skip


@interpret
@pytest.mark.parametrize("name", GRIDS)
def test_the_kernel_marks_what_float64_marks(name: str, watched_addresses: None,
                                             other_dtype: torch.dtype | None) -> None:
    case = {"batch": 1, "resolution": 3, "samples_per_cell": 1, "dilate": 0, "reduce": "sum", "decoder": {},
            "dtype": torch.float32, **GRIDS[name]}
    case["dtype"] = other_dtype or case["dtype"]
    resolution, parts, dilate = case.pop("resolution"), case.pop("samples_per_cell"), case.pop("dilate")
    torch.manual_seed(1)
    decoder = TinyDecoder(3 * (3 if case["reduce"] == "concat" else 1), **{"hidden": (7,), **case.pop("decoder")})
    planes = (random_tensor(case.pop("batch"), 3, 3, 5, 4, seed=2) * 1.5).to(case.pop("dtype"))
    rule = name.split()[0]
    fill = density_grid if rule == "probe" else density_bound_grid
    exact = F.max_pool3d(fill(planes.double(), decoder.double(), resolution * parts, **case), parts)
    # half way between two of the values, so that rounding decides about none
    ordered = exact.flatten().sort().values
    gaps = ordered[1:] / ordered[:-1]
    middle = len(gaps) // 3
    middle += int(gaps[middle:2 * middle].argmax())
    assert gaps[middle] > 1 + 1e-3
    limit = (ordered[middle] * gaps[middle].sqrt()).item()
    threshold = limit / NEARLY
    wanted = F.max_pool3d((exact > limit).float(), 2 * dilate + 1, 1, dilate).bool()
    with poisoned(64):
        grid = OccupancyGrid.from_planes(amid_poison(planes), decoder.float(), resolution, threshold=threshold,
                                         rule=rule, samples_per_cell=parts, dilate=dilate, backend="triton", **case)
    assert torch.equal(grid.cells, wanted) and wanted.any() and (dilate or not wanted.all())


@interpret
@pytest.mark.parametrize("rule", ["probe", "bound"])
def test_what_is_not_a_number_counts_and_nothing_else(rule: str) -> None:
    planes = torch.zeros(1, 3, 2, 6, 6)
    planes[0, 1, 1, 0, 5] = float("nan")  # plane zx: columns are z, rows are x
    decoder = TinyDecoder(2, (4,))
    with torch.no_grad():
        decoder.layers[1].bias[0] = -20
    found = [OccupancyGrid.from_planes(planes, decoder, 3, rule=rule, samples_per_cell=1, dilate=0, backend=backend)
             for backend in ("triton", "torch")]
    assert torch.equal(*(grid.cells for grid in found))
    assert found[0].cells[0, 0, :, 2].all() and found[0].cells.sum() == 3


@interpret
@pytest.mark.parametrize("storage", STORAGES)
def test_storage_does_not_matter(storage: str) -> None:
    planes = random_planes(2, 3, 4, storage=storage)
    torch.manual_seed(0)
    decoder = TinyDecoder(3, (4,))
    threshold = density_grid(planes.contiguous(), decoder, 3).median().item()
    grids = [OccupancyGrid.from_planes(x, decoder, 3, threshold=threshold * 1.001, samples_per_cell=1, dilate=0,
                                       backend=backend)
             for x, backend in ((planes, "triton"), (stored_as(planes, storage).contiguous(), "torch"))]
    assert torch.equal(*(grid.cells for grid in grids)) and 0 < grids[0].fraction < 1


@interpret
def test_no_scenes_and_what_the_kernel_does_not_take() -> None:
    decoder = TinyDecoder(3, (4,), view_directions="concat")
    none = OccupancyGrid.from_planes(torch.ones(0, 3, 3, 4, 4), TinyDecoder(3, (4,)), 3, backend="triton")
    assert none.cells.shape == (0, 3, 3, 3)
    planes = random_planes(1, 3, 4)
    for rule in ("probe", "bound"):
        pair = [OccupancyGrid.from_planes(planes, decoder, 4, rule=rule, backend=b) for b in ("triton", "torch")]
        assert torch.equal(*(grid.cells for grid in pair))


@interpreted
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_empty_space_is_not_even_read(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = random_planes(1, 3, 6).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    cells = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    cells[0, 1, 2, 1] = cells[0, 2, 1, 2] = True
    grid = OccupancyGrid(cells)
    origins = torch.tensor([0.03, 0.02, 3.0]) + random_tensor(1, 20, 3) * 0.4
    directions = torch.tensor([-0.01, 0.02, -1.0]).expand(1, 20, 3)
    steps = 2 + (torch.arange(10) + 0.5) / 10 * 2
    points = origins.unsqueeze(2) + steps.view(1, 1, -1, 1) * directions.unsqueeze(2)
    seen = int(grid.query(points).sum())
    read = _count_texels(planes, monkeypatch) if backend == "triton" else None
    decoded = _count_decoded(monkeypatch)
    with torch.no_grad():
        asked = {"near": 2.0, "far": 4.0, "num_samples": 10, "backend": backend, "padding_mode": "border"}
        found = render_triplane(planes, origins, directions, TinyDecoder(3, (4,)), occupancy=grid, **asked)
        assert 0 < seen < 60 and found.opacity.count_nonzero() > 0
        # a sample reads four texels of three channels on each of three planes
        count = sum(read) / 36 if read is not None else sum(decoded)
        assert count == seen
        empty = OccupancyGrid(torch.zeros_like(cells))
        before = sum(read or decoded)
        dark = render_triplane(planes, origins, directions, TinyDecoder(3, (4,)), occupancy=empty, **asked)
        assert (dark.opacity == 0).all() and sum(read or decoded) == before


def _count_texels(planes: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers that the interpreter reads from the planes, by load."""
    from triton.runtime import interpreter

    first, last = planes.data_ptr(), planes.data_ptr() + planes.numel() * planes.element_size()
    inner, counts = interpreter._interpreter, [0]

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def load(self, places: Any, mask: Any, other: Any, dtype: Any) -> Any:
            used = places[mask.astype(bool)]
            counts.append(int(((used >= first) & (used < last)).sum()))
            return inner.load(places, mask, other, dtype)

    monkeypatch.setattr(interpreter, "_interpreter", Counting())
    return counts


def _count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples that the torch path decodes, by call."""
    from rodin_kernels.volume_render import op

    counts = [0]

    def counting(inner: Any) -> Any:
        def decode(config: Any, parameters: Any, features: Tensor, *rest: Any) -> Any:
            counts.append(len(features))
            return inner(config, parameters, features, *rest)

        return decode

    for name in ("decode", "decode_folded"):
        monkeypatch.setattr(op, name, counting(getattr(op, name)))
    return counts


@pytest.mark.parametrize(("changes", "inside"), [
    ({}, True), ({"config": DecoderConfig(64, (64, 64))}, True), ({"config": DecoderConfig(4, (65,))}, False),
    ({"config": DecoderConfig(4, ())}, False), ({"config": DecoderConfig(4, (8, 8, 8))}, False),
    ({"config": DecoderConfig(4, view_directions="concat")}, False), ({"parts": 16}, True), ({"parts": 17}, False),
    ({"config": DecoderConfig(4, feature_frequencies=1)}, False), ({"planes": torch.ones(1, 3, 65, 2, 2)}, False),
    ({"config": DecoderConfig(4, density_features=2)}, False),
    ({"planes": torch.ones(1, 3, 4, 2, 2, dtype=torch.float64)}, False), ({"planes": torch.ones(0, 3, 4, 2, 2)}, False),
])  # fmt: skip
def test_coverage_is_what_its_docstring_says(changes: dict[str, Any], inside: bool) -> None:
    assert covers_grid(**{"planes": torch.ones(1, 3, 4, 2, 2), "config": DecoderConfig(4), "resolution": 64,
                          "parts": 2, **changes}) is inside


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_bits_are_cells_in_order(size: int) -> None:
    cells = random_tensor(2, size, size, size, seed=size) > 0
    words = F.pad(cells.flatten(1), (0, -size**3 % 32)).view(2, -1, 32).long()
    bits = (words << torch.arange(32)).sum(-1)
    bits = torch.where(bits >= 2**31, bits - 2**32, bits).int()
    assert torch.equal(unpacked(bits, size), cells)


def test_all_of_the_above_under_the_interpreter() -> None:
    assert_passes_interpreted(__file__)
