"""Every choice of the decoder against ordinary modules in float64, and what the kernels do not fuse, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rodin_kernels import TinyDecoder, render_triplane, render_triplane_reference
from rodin_kernels.testing import assert_within_budget, random_planes, random_tensor
from rodin_kernels.volume_render import op
from rodin_kernels.volume_render.coverage import covers
from rodin_kernels.volume_render.decoder import COLORS, DENSITIES
from rodin_kernels.volume_render.perceptron import ACTIVATIONS

MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "silu": nn.SiLU, "softplus": nn.Softplus, "leaky_relu": lambda: nn.LeakyReLU(0.01),
}


class Plain(nn.Module):
    """The decoder as a project without this library would write it, with the weights of a `TinyDecoder`."""

    def __init__(self, decoder: TinyDecoder) -> None:
        super().__init__()
        self.c = decoder.choices
        self.color_head = self._head(decoder.layers, self.c.activation)
        self.density_head = self._head(decoder.density_layers, self.c.density_activation)

    def _head(self, layers: nn.ModuleList, activation: str) -> nn.Sequential:
        parts: list[nn.Module] = []
        for i, layer in enumerate(layers):
            parts += [MODULES[activation]()] if i else []
            parts.append(layer)
        return nn.Sequential(*parts)

    @staticmethod
    def waves(x: Tensor, count: int) -> Tensor:
        """NeRF's encoding."""
        parts = [x]
        for i in range(count):
            parts += [torch.sin(2**i * x), torch.cos(2**i * x)]
        return torch.cat(parts, -1)

    def forward(self, features: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Density and colour."""
        c, inputs, geometry = self.c, features, None
        if c.density_features:
            geometry = self.density_head(self.waves(features[:, :c.density_features], c.feature_frequencies))
            inputs = features[:, c.density_features:]
        inputs = self.waves(inputs, c.feature_frequencies)
        inputs = inputs if geometry is None else torch.cat([inputs, geometry[:, 1:]], -1)
        if c.view_directions == "concat":
            unit = directions / directions.square().sum(-1, keepdim=True).sqrt()
            inputs = torch.cat([inputs, self.waves(unit, c.direction_frequencies)], -1)
        out = self.color_head(inputs)
        raw, color = (out[:, 0], out[:, 1:]) if geometry is None else (geometry[:, 0], out)
        raw = raw + c.density_bias
        density = {"softplus": nn.functional.softplus(raw), "exp": raw.exp(), "trunc_exp": raw.exp(),
                   "shifted_softplus": nn.functional.softplus(raw - 1)}[c.density]
        return density, {"sigmoid": color.sigmoid(), "clamped_sigmoid": color.sigmoid() * (1 + 2 * 0.001) - 0.001,
                         "none": color}[c.color]


CHOICES: list[dict[str, Any]] = [
    *({"activation": a, "density": DENSITIES[i % 4], "color": COLORS[i % 3], "bias": i % 2 == 0}
      for i, a in enumerate((*ACTIVATIONS, *reversed(ACTIVATIONS)))),
    {"in_features": 128, "hidden": (128, 128), "out_features": 63}, {"hidden": (), "density_bias": -1.0},
    {"hidden": (16, 16, 16), "out_features": 1}, {"out_features": 100, "density": "shifted_softplus"},
    {"view_directions": "concat", "direction_frequencies": 4, "feature_frequencies": 3},
    {"density_features": 5, "hidden": (128, 128), "density_hidden": (128,), "geometry_features": 128,
     "density_activation": "softplus", "view_directions": "concat", "direction_frequencies": 2,
     "feature_frequencies": 2, "density": "trunc_exp"},
]  # fmt: skip


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_every_choice_is_what_modules_compute(choices: dict[str, Any]) -> None:
    torch.manual_seed(0)
    decoder = TinyDecoder(**{"in_features": 20, "hidden": (64,), **choices})
    wide = TinyDecoder.from_config(decoder.config()).double()
    wide.load_state_dict(decoder.state_dict())
    x = random_tensor(700, decoder.choices.in_features, requires_grad=True)
    d = random_tensor(700, 3, seed=1)
    found = []
    for module, dtype in ((decoder, torch.float32), (Plain(wide), torch.float64), (Plain(decoder), torch.float32)):
        own = x.detach().to(dtype).requires_grad_()
        sigma, color = module(own, d.to(dtype))
        cotangents = [random_tensor(*y.shape, seed=9, dtype=dtype) for y in (sigma, color)]
        grads = torch.autograd.grad([sigma, color], [own, *module.parameters()], cotangents)
        found.append([sigma, color, *grads])
    # the modules hold the density's head last
    mine, exact, plain = found
    count = len(list(decoder.layers.parameters()))
    order = [*mine[:3], *mine[len(mine) - count:], *mine[3:len(mine) - count]]
    for i, (a, b, c) in enumerate(zip(order, exact, plain, strict=True)):
        assert_within_budget(a, b, c, what=f"result {i}", factor=2.0 if i < 2 else 3.0)


UNFUSED: dict[str, dict[str, Any]] = {
    "rodinhd": {"decoder": {"density_features": 2, "density_hidden": (6,), "geometry_features": 3,
                            "feature_frequencies": 2, "view_directions": "concat", "direction_frequencies": 2,
                            "density_activation": "softplus"}},
    "three layers": {"decoder": {"hidden": (6, 6, 6)}}, "seventy colours": {"decoder": {"out_features": 70}},
    "wide": {"decoder": {"hidden": (136,)}}, "concat": {"reduce": "concat"}, "product": {"reduce": "product"},
    "midpoint": {"quadrature": "midpoint"}, "importance": {"num_importance": 5},
}


@pytest.mark.parametrize("name", UNFUSED)
def test_what_is_not_fused_is_composed_in_bounded_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    case = dict(UNFUSED[name])
    choices = {"hidden": (8,), **case.pop("decoder", {})}
    decoder = TinyDecoder(12 if case.get("reduce") == "concat" else 4, **choices).double()
    planes = random_planes(1, 4, 6, dtype=torch.float64).requires_grad_()
    if name not in ("midpoint", "importance"):
        assert not covers(planes.float(), None, 60, decoder.choices, case.get("reduce", "sum"), "left")
    origins = 3 * nn.functional.normalize(random_tensor(1, 60, 3, dtype=torch.float64), dim=-1)
    sizes: list[int] = []

    def counting(inner: Callable[..., Any]) -> Callable[..., Any]:
        def decode(config: Any, parameters: Any, features: Tensor, *rest: Any) -> Any:
            sizes.append(len(features))
            return inner(config, parameters, features, *rest)

        return decode

    for part in ("decode", "decode_folded"):
        monkeypatch.setattr(op, part, counting(getattr(op, part)))
    monkeypatch.setattr(op.torch_path, "CHUNK_SAMPLES", 150)
    monkeypatch.setattr(op, "KEEP_SAMPLES", -1)
    monkeypatch.setattr(op, "BACKWARD_SAMPLES", 100)
    found = []
    for render in (render_triplane, render_triplane_reference):
        rendered = render(planes, origins, -origins / 3, decoder, near=2.0, far=4.0, num_samples=10, **case)
        loss = (rendered.rgb * random_tensor(*rendered.rgb.shape, dtype=torch.float64)).sum()
        found.append((rendered.rgb.detach(), rendered.depth.detach(), *torch.autograd.grad(loss, [planes])))
        if render is render_triplane:
            assert len(sizes) >= 8 and max(sizes) <= 150 < sum(sizes)
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11 * max(1.0, b.abs().max().item()))
