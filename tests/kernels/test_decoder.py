"""The decoder: its formula, every choice, gradients, serialisation, and the fused layers against plain ones."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import TinyDecoder
from rodin_kernels.testing import assert_within_budget, random_tensor
from rodin_kernels.volume_render.decoder import COLORS, DENSITIES, encode
from rodin_kernels.volume_render.perceptron import ACTIVATIONS, mlp, plain_mlp


def layers(activation_widths: tuple[int, ...], bias: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A flat list of weights [and biases]."""
    flat = []
    for i, (a, b) in enumerate(zip(activation_widths[:-1], activation_widths[1:], strict=True)):
        flat.append((random_tensor(b, a, seed=i, dtype=torch.float64) / math.sqrt(a)).to(dtype).requires_grad_())
        if bias:
            flat.append(random_tensor(b, seed=50 + i, dtype=dtype, requires_grad=True))
    return flat


def test_the_formula_by_hand() -> None:
    decoder = TinyDecoder(3, (5,), 2)
    x = random_tensor(7, 3)
    sigma, rgb = decoder(x)
    first, last = decoder.layers
    out = F.linear(F.linear(x, first.weight, first.bias).relu(), last.weight, last.bias)
    assert torch.allclose(sigma, F.softplus(out[:, 0]), atol=1e-6)
    assert torch.allclose(rgb, out[:, 1:].sigmoid(), atol=1e-6)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("color", COLORS)
def test_every_output_activation(density: str, color: str) -> None:
    decoder = TinyDecoder(2, (), 1, density=density, color=color, bias=False).double()
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.eye(2))
    sigma, rgb = decoder(torch.tensor([[1.5, 0.7]], dtype=torch.float64))
    densities = {"softplus": math.log1p(math.exp(1.5)), "shifted_softplus": math.log1p(math.exp(0.5))}
    one = 1 / (1 + math.exp(-0.7))
    colors = {"sigmoid": one, "clamped_sigmoid": one * 1.002 - 0.001, "none": 0.7}
    assert sigma.item() == pytest.approx(densities.get(density, math.exp(1.5)), rel=1e-12)
    assert rgb.item() == pytest.approx(colors[color], rel=1e-12)


def test_trunc_exp_bounds_the_gradient_and_nothing_else() -> None:
    decoder = TinyDecoder(1, (), 1, density="trunc_exp", density_bias=-1.0, bias=False)
    with torch.no_grad():
        decoder.layers[0].weight.fill_(1.0)
    x = torch.tensor([[3.0], [41.0]], requires_grad=True)
    sigma, _ = decoder(x)
    sigma.sum().backward()
    assert torch.allclose(sigma.detach(), torch.tensor([2.0, 40.0]).exp(), rtol=1e-5)
    assert x.grad is not None and torch.allclose(x.grad[:, 0], torch.tensor([2.0, 15.0]).exp(), rtol=1e-5)


def test_encoding_counts_and_order() -> None:
    x = torch.tensor([[0.3, -0.2]])
    expected = torch.cat([x, x.sin(), x.cos(), (2 * x).sin(), (2 * x).cos()], -1)
    assert torch.allclose(encode(x, 2), expected) and encode(x, 0) is x


def test_view_directions_count_only_by_where_they_point() -> None:
    decoder = TinyDecoder(4, (8,), view_directions="concat", direction_frequencies=2)
    features, d = random_tensor(5, 4), random_tensor(5, 3, seed=1)
    sigma, rgb = decoder(features, d)
    again = decoder(features, 3 * d)
    assert torch.allclose(sigma, again[0], atol=1e-6) and torch.allclose(rgb, again[1], atol=1e-6)
    assert not torch.allclose(rgb, decoder(features, -d)[1])
    with pytest.raises(ValueError, match="directions"):
        decoder(features)


def test_rodinhd_has_the_published_sizes_and_a_density_blind_to_the_view() -> None:
    decoder = TinyDecoder.rodinhd()
    assert decoder.choices.widths == ((40, 128, 129), (120 + 128 + 15, 128, 128, 3))
    assert sum(p.numel() for p in decoder.parameters() if p.ndim == 2) == 72_064
    features, d = random_tensor(5, 32), random_tensor(5, 3, seed=1)
    (sigma, rgb), (other, other_rgb) = decoder(features, d), decoder(features, -d)
    assert torch.equal(sigma, other) and not torch.allclose(rgb, other_rgb)


@pytest.mark.parametrize("choices", [
    {}, {"activation": "silu", "view_directions": "concat", "direction_frequencies": 1, "bias": False},
    {"density": "exp", "feature_frequencies": 2, "density_features": 2, "density_hidden": (6,),
     "density_activation": "softplus", "geometry_features": 3, "activation": "leaky_relu"},
])
def test_gradients_and_the_way_through_json(choices: dict[str, object]) -> None:
    torch.manual_seed(0)
    decoder = TinyDecoder(5, (6,), 2, **choices).double()
    twin = TinyDecoder.from_config(json.loads(json.dumps(decoder.config()))).double()
    twin.load_state_dict(decoder.state_dict())
    x, d = (random_tensor(3, n, dtype=torch.float64, requires_grad=True) for n in (5, 3))
    assert all(torch.equal(a, b) for a, b in zip(decoder(x, d), twin(x, d), strict=True))
    assert twin.choices == decoder.choices and len(decoder.flat_parameters()) == len(list(decoder.parameters()))
    torch.autograd.gradcheck(decoder, (x, d) if choices.get("view_directions") else (x,))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_fused_layers_keep_the_budget_of_plain_ones(activation: str, bias: bool) -> None:
    widths = (16, 32, 24, 4)
    flat = layers(widths, bias)
    x = random_tensor(5000, 16, seed=9, requires_grad=True)
    cotangent = random_tensor(5000, 4, seed=10)
    exact_inputs = [y.detach().double().requires_grad_() for y in (x, *flat)]
    exact = plain_mlp(exact_inputs[0], exact_inputs[1:], activation, bias)
    plain = plain_mlp(x, flat, activation, bias)
    fused = mlp(x, flat, activation, bias)
    assert_within_budget(fused, exact, plain, what="forward")
    with torch.no_grad():
        assert torch.equal(mlp(x, flat, activation, bias), fused)
    gradients = [torch.autograd.grad(y, [z, *w], cotangent.to(y.dtype))
                 for y, z, w in ((fused, x, flat), (exact, exact_inputs[0], exact_inputs[1:]), (plain, x, flat))]
    for i, (got, true, low) in enumerate(zip(*gradients, strict=True)):
        assert_within_budget(got, true, low, factor=3.0, what=f"gradient {i}")


def test_fused_layers_differentiate_twice() -> None:
    flat, x = layers((16, 32, 4), True), random_tensor(300, 16, requires_grad=True)

    def penalty(run: object) -> tuple[Tensor, ...]:
        out = run(x, flat, "softplus", True)  # type: ignore[operator]
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, flat[0]])

    for a, b in zip(penalty(mlp), penalty(plain_mlp), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_low_precision_is_computed_in_single() -> None:
    decoder, x = TinyDecoder(4, (8,)), random_tensor(6, 4)
    sigma, _ = decoder(x.bfloat16())
    assert sigma.dtype == torch.float32 and torch.equal(sigma, decoder(x.bfloat16().float())[0])


@pytest.mark.parametrize(("arguments", "error", "name"), [
    ({"in_features": 0}, ValueError, "in_features"), ({"in_features": 4, "hidden": (8, 0)}, ValueError, r"hidden\[1\]"),
    ({"in_features": 4, "activation": "tanh"}, ValueError, "activation"),
    ({"in_features": 4, "density": "relu"}, ValueError, "density"), ({"in_features": 2.0}, TypeError, "in_features"),
    ({"in_features": 4, "wings": 2}, TypeError, "wings"), ({"in_features": 4, "bias": 1}, TypeError, "bias"),
    ({"in_features": 4, "density_features": 4}, ValueError, "density_features"),
    ({"in_features": 4, "geometry_features": 4}, ValueError, "geometry_features"),
])
def test_errors_name_the_argument(arguments: dict[str, object], error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        TinyDecoder(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="features must be"):
        TinyDecoder(4)(torch.ones(2, 5))
