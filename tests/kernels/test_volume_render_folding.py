"""The decoder's first layer on the planes: chosen by shape, and the same pictures and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rodin_kernels import OccupancyGrid, TinyDecoder, render_triplane, render_triplane_reference
from rodin_kernels.testing import assert_within_budget, random_planes, random_tensor
from rodin_kernels.volume_render import op
from rodin_kernels.volume_render.decoder import DecoderConfig
from rodin_kernels.volume_render.folding import folded_planes, folds


@pytest.mark.parametrize(("config", "reduce", "channels", "texels", "samples", "expected"), [
    (DecoderConfig(120, (64,)), "concat", 40, 64**2, 1 << 20, True),  # TripoSR
    (DecoderConfig(96, (64, 64, 64)), "concat", 32, 64**2, 1 << 20, True),  # OpenLRM
    (DecoderConfig(32, (64, 64)), "sum", 32, 256**2, 1 << 25, False),  # twice as much to read for each sample
    (DecoderConfig(64, (64,)), "sum", 64, 256**2, 1 << 22, True),
    (DecoderConfig(64, (64,)), "sum", 64, 256**2, 1 << 16, False),  # fewer samples than texels
    (DecoderConfig(64, (16,)), "mean", 64, 256**2, 1 << 20, True),
    (DecoderConfig(64, (16,)), "product", 64, 256**2, 1 << 20, False), (DecoderConfig(64, ()), "sum", 64, 4, 99, False),
    (DecoderConfig(64, (16,), feature_frequencies=1), "sum", 64, 4, 1 << 20, False),
    (DecoderConfig(64, (16,), view_directions="concat"), "sum", 64, 4, 1 << 20, False),
    (DecoderConfig(64, (16,), density_features=8), "sum", 64, 4, 1 << 20, False),
])  # fmt: skip
def test_it_is_chosen_where_it_takes_fewer_operations(config: DecoderConfig, reduce: str, channels: int, texels: int,
                                                      samples: int, expected: bool) -> None:
    assert folds(config, reduce, channels, texels, samples) is expected


def rays(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    origins = 3 * torch.nn.functional.normalize(random_tensor(2, 40, 3, dtype=dtype), dim=-1)
    return origins, torch.nn.functional.normalize(random_tensor(2, 40, 3, seed=1, dtype=dtype) * 0.6 - origins, dim=-1)


def rendered(render: Any, planes: Tensor, decoder: TinyDecoder, **options: Any) -> list[Tensor]:
    """The sums along rays, and the gradients of planes, rays and decoder."""
    origins, directions = (x.requires_grad_() for x in rays(next(decoder.parameters()).dtype))
    planes = planes.clone().requires_grad_()
    found = [x for x in render(planes, origins, directions, decoder, near=1.0, far=5.0, num_samples=24, **options)
             if x is not None]
    loss = sum((x * random_tensor(*x.shape, seed=i, dtype=x.dtype)).sum() for i, x in enumerate(found))
    assert isinstance(loss, Tensor)
    inputs = [planes, origins, directions, *decoder.parameters()]
    return [*(x.detach() for x in found), *torch.autograd.grad(loss, inputs)]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sum": ({"channels": 8, "hidden": (4, 6)}, {"stop_below": 0.2}),
    "mean": ({"channels": 8, "hidden": (4,), "activation": "softplus", "bias": False},
             {"reduce": "mean", "padding_mode": "border", "align_corners": True}),
    "concat": ({"channels": 4, "hidden": (4,), "activation": "silu"},
               {"reduce": "concat", "outputs": ("rgb", "normals"), "layout": ("xy", "xz", "zx")}),
    "raw midpoint": ({"channels": 8, "hidden": (5,)}, {"quadrature": "raw_midpoint", "padding_mode": "reflection",
                                                       "occupancy": OccupancyGrid(random_tensor(4, 4, 4) > -1)}),
}  # fmt: skip


@pytest.mark.parametrize("kept", [True, False], ids=["keeping", "recomputing"])
@pytest.mark.parametrize("name", CASES)
def test_pictures_and_gradients_are_the_specifications(name: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folded = []
    monkeypatch.setattr(op, "fold", lambda *given: folded.append(1) or original(*given))
    monkeypatch.setattr(op, "KEEP_SAMPLES", 1 << 20 if kept else -1)
    choices, options = dict(CASES[name][0]), CASES[name][1]
    channels = choices.pop("channels")
    torch.manual_seed(0)
    width = 3 * channels if options.get("reduce") == "concat" else channels
    decoder = TinyDecoder(width, **choices).double()
    planes = random_planes(2, channels, 6, dtype=torch.float64) * 2
    found = rendered(render_triplane, planes, decoder, **options)
    assert folded
    for a, b in zip(found, rendered(render_triplane_reference, planes, decoder, **options), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-11 * max(1.0, b.abs().max().item()))


original = op.fold


def test_single_precision_keeps_the_budget_of_the_specification() -> None:
    torch.manual_seed(0)
    decoder = TinyDecoder(24, (8,))
    planes = random_planes(2, 8, 6)
    options = {"reduce": "concat"}
    found = rendered(render_triplane, planes, decoder, **options)
    plain = rendered(render_triplane_reference, planes, decoder, **options)
    exact = rendered(render_triplane_reference, planes.double(), decoder.double(), **options)
    for i, (a, b, c) in enumerate(zip(found, exact, plain, strict=True)):
        assert_within_budget(a, b, c, scale=max(1.0, b.abs().max().item()), what=f"result {i}")


def test_every_slot_of_a_concatenation_goes_to_its_plane() -> None:
    planes, weight = random_tensor(1, 3, 2, 2, 4), random_tensor(5, 12, seed=1)
    folded, reduce = folded_planes(planes, weight, "concat")
    assert reduce == "sum" and folded.shape == (1, 3, 2, 2, 5)
    whole = torch.cat(list(planes[0, :, 1, 0])) @ weight.t()
    assert torch.allclose(folded[0, :, 1, 0].sum(0), whole, atol=1e-6)
