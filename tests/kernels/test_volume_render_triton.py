"""The fused renderer's kernels, run by Triton's interpreter or on a GPU, against float64.

The interpreter is chosen when Triton is imported, so the tests marked `interpret` run in a process of their own, which
the last test starts. bfloat16 is silently wrong in the interpreter and waits for a GPU.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import OccupancyGrid, Rendered, TinyDecoder, render_triplane, render_triplane_reference
from rodin_kernels.testing import assert_within_budget, poisoned, random_planes, random_tensor
from rodin_kernels.volume_render import op
from rodin_kernels.volume_render.decoder import color_of, density_of
from tests.interpreter import assert_passes_interpreted

interpret = pytest.mark.interpret
ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "softplus": F.softplus, "leaky_relu": F.leaky_relu}


@pytest.fixture(autouse=True)
def quick_interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter checks every integer operation for overflow, at half of its time."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        builder = __import__("triton.runtime.interpreter", fromlist=["_"]).interpreter_builder
        monkeypatch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
    yield


def aimed_rays(batch: int, rays: int) -> tuple[Tensor, Tensor]:
    """Origins at distance 3 and directions, not of length 1, roughly towards the box, some past it."""
    origins = 3 * F.normalize(random_tensor(batch, rays, 3, dtype=torch.float64), dim=-1)
    directions = 1.3 * F.normalize(random_tensor(batch, rays, 3, seed=1, dtype=torch.float64) * 0.8 - origins, dim=-1)
    return origins.float().double(), directions.float().double()


def rounded(decoder: TinyDecoder, dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    """The decoder as plain PyTorch computes it in a low precision."""
    config, layers = decoder.choices, list(decoder.layers)

    def decode(features: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        x = features.to(dtype)
        for i, layer in enumerate(layers):
            x = F.linear(x, layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype))
            x = x if i == len(layers) - 1 else ACTIVATIONS[config.activation](x)
        return density_of(config, x[..., 0].float()), color_of(config, x[..., 1:].float())

    return decode


def results(render: Callable[..., Rendered], inputs: list[Tensor], decoder: Any, parameters: list[Tensor],
            **options: Any) -> list[Tensor]:
    """What is rendered, then the gradients of all inputs and parameters under random cotangents."""
    planes, origins, directions, near, far, *t = inputs
    given = {**options, **({"t": t[0]} if t else {})}
    rendered = [x for x in render(planes, origins, directions, decoder, near=near, far=far, **given) if x is not None]
    loss = sum((x * random_tensor(*x.shape, seed=7 + i, dtype=x.dtype)).sum() for i, x in enumerate(rendered))
    assert isinstance(loss, Tensor)
    return [*(x.detach() for x in rendered),
            *torch.autograd.grad(loss, [*inputs, *parameters], allow_unused=True, materialize_grads=True)]


CASES: dict[str, dict[str, Any]] = {
    "float32": {"image_width": 5, "rays": 15},
    "float32 places": {"decoder": {"hidden": (9,), "activation": "leaky_relu", "density": "trunc_exp", "bias": False,
                                   "color": "clamped_sigmoid", "out_features": 9}, "explicit": True,
                       "reduce": "mean", "padding_mode": "border", "layout": ("xy", "xz", "zx"), "stop_below": 0.2},
    "float16": {"dtype": torch.float16, "channels": 18, "decoder": {"activation": "silu"}, "jitter": 5,
                "occupancy": (2, 5, 5, 5), "stop_below": 0.3, "image_width": 4},
    "float16 aligned": {"dtype": torch.float16, "align_corners": True, "padding_mode": "reflection", "rays": 9,
                        "decoder": {"hidden": (20,), "activation": "softplus", "density": "exp", "color": "none",
                                    "out_features": 17, "density_bias": -0.5}, "deltas": "t"},
}  # fmt: skip


@interpret
@pytest.mark.parametrize("name", CASES)
def test_sums_and_every_gradient_keep_the_budget(name: str, other_dtype: torch.dtype | None) -> None:
    assert_right({**CASES[name], **({"dtype": other_dtype} if other_dtype else {})})


@pytest.mark.gpu
@pytest.mark.parametrize("channels, hidden, dtype", [
    (32, (64, 64), torch.float32), (32, (64, 64), torch.float16), (32, (64, 64), torch.bfloat16),
    (16, (128,), torch.bfloat16), (64, (64, 64), torch.bfloat16), (80, (32,), torch.bfloat16),
])  # fmt: skip
def test_on_a_gpu(channels: int, hidden: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_right({"dtype": dtype, "channels": channels, "decoder": {"hidden": hidden, "activation": "silu"},
                  "rays": 300, "image_width": 20, "occupancy": (2, 5, 5, 5), "num_samples": 12})


def assert_right(case: dict[str, Any]) -> None:
    """What is rendered and every gradient are within the budget, and every element is written."""
    dtype, channels, count = case.pop("dtype", torch.float32), case.pop("channels", 6), case.pop("rays", 20)
    torch.manual_seed(0)
    decoder = TinyDecoder(channels, **{"hidden": (8, 10), **case.pop("decoder", {})}).double()
    planes = (random_planes(2, channels, 7, dtype=torch.float64) * 2).to(dtype).double()
    near, far = (torch.full((2, count), x, dtype=torch.float64) for x in (1.2, 3.4))
    inputs = [planes, *aimed_rays(2, count), near, far]
    if case.pop("explicit", False):
        steps = torch.linspace(1.3, 3.2, 6, dtype=torch.float64)
        inputs.append((steps + 0.1 * random_tensor(2, count, 6, dtype=torch.float64)).sort(-1).values)
    width = case.pop("image_width", None)
    options = {"num_samples": 6, "background": 0.5, **case}
    if "occupancy" in case:
        options["occupancy"] = OccupancyGrid(random_tensor(*case["occupancy"]) > -0.3)
    found = []
    for kind in ("exact", "plain", "fused"):
        wide = torch.float64 if kind == "exact" else torch.float32
        own = [x.to(wide).requires_grad_() for x in inputs]
        own[0] = inputs[0].to(wide if kind == "exact" else dtype).requires_grad_()
        twin = copy.deepcopy(decoder).to(wide)
        if kind == "fused":
            with poisoned():
                found.append(results(render_triplane, own, twin, list(twin.parameters()), backend="triton",
                                     image_width=width, **options))
        else:
            low = rounded(twin, dtype) if kind == "plain" and dtype != torch.float32 else twin
            found.append(results(render_triplane_reference, own, low, list(twin.parameters()), **options))
    for i, (exact, plain, fused) in enumerate(zip(*found, strict=True)):
        # cotangents have size 1, so what cancels in a float32 gradient does as well
        scale = max(1.0, exact.abs().max().item()) if i < 3 or dtype == torch.float32 else None
        assert_within_budget(fused, exact, plain, scale=scale, what=f"result {i}")


def small(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, TinyDecoder]:
    """Planes of two scenes, eleven rays each, and a decoder."""
    torch.manual_seed(0)
    origins, directions = aimed_rays(2, 11)
    return (random_planes(2, 6, 7) * 2).to(dtype), origins.float(), directions.float(), TinyDecoder(6, (8,))


@interpret
def test_early_stop_is_the_same_rule_in_all_paths() -> None:
    planes, origins, directions, decoder = small()
    with torch.no_grad():
        decoder.layers[-1].bias[0] += 2.0
        options = {"near": 1.2, "far": 4.0, "num_samples": 12, "stop_below": 0.3}
        inputs = planes, origins, directions, decoder
        *rest, reference = (render_triplane(*inputs, **options, backend=name).opacity
                            for name in ("triton", "torch", "reference"))
        full = render_triplane(*inputs, **{**options, "stop_below": 0.0}, backend="triton").opacity
    assert ((full - reference) > 0.02).any()
    assert all(torch.allclose(x, reference, rtol=0, atol=1e-6) for x in rest)


@interpret
def test_rays_without_light_and_planes_that_are_no_numbers() -> None:
    planes, origins, directions, decoder = small()
    nan, inf = float("nan"), float("inf")
    origins[:, :4] = torch.tensor([[0, 0, 3.0], [5, 0, 3], [nan, 0, 3], [0, 0, 3]])
    directions[:, :4] = torch.tensor([[0, 0, 1.0], [0, 0, -1], [0, 0, -1], [0, inf, -1]])
    planes[1, :, :, :3] = nan
    with torch.no_grad(), poisoned():
        inputs = planes, origins, directions, decoder
        found = render_triplane(*inputs, near=1.2, far=4.0, num_samples=6, background=0.25, backend="triton")
        expected = render_triplane_reference(*inputs, near=1.2, far=4.0, num_samples=6, background=0.25)
        for a, b in zip(found[:3], expected[:3], strict=True):
            assert torch.equal(a.isnan(), b.isnan()) and torch.allclose(a, b, atol=1e-6, equal_nan=True)
        assert (found.rgb[:, :4] == 0.25).all() and found.rgb[1].isnan().any() and found.rgb[0].isfinite().all()
        for bounds in ({"near": 2.0, "far": 2.0}, {"near": 4.0, "far": 2.0}, {"near": 1.0, "far": torch.tensor(nan)}):
            dark = render_triplane(planes[:1], origins[:1], directions[:1], decoder, num_samples=6, backend="triton",
                                   **bounds)
            assert (dark.opacity == 0).all() and (dark.depth == 0).all() and (dark.rgb == 0).all()
        for rays, samples in ((0, 6), (11, 0)):
            none = render_triplane(planes, origins[:, :rays], directions[:, :rays], decoder, near=1.2, far=4.0,
                                   num_samples=samples, background=1.0, backend="triton")
            assert none.rgb.shape == (2, rays, 3) and (none.rgb == 1).all()


@interpret
@pytest.mark.parametrize("depth", [1e-6, 0.7, 30.0])
def test_a_constant_field_is_exact_for_any_number_of_samples(depth: float) -> None:
    origins = torch.tensor([[[0.1, 0.2, -3.0], [0.3, -0.4, -3.0]]])
    directions = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]]])
    decoder = TinyDecoder(4, (8,), density="exp", color="none")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.layers[-1].bias.copy_(torch.tensor([depth / 2, 0.0, 0.25, 1.0]))
        decoder.layers[-1].bias[0].log_()
        near, far = torch.tensor([[2.0, 1.0]]), torch.tensor([[4.0, 2.0]])
        for samples in (1, 2, 4):
            found = render_triplane(torch.zeros(1, 3, 4, 5, 5), origins, directions, decoder, near=near, far=far,
                                    num_samples=samples, backend="triton", outputs=("rgb", "opacity"))
            expected = -torch.expm1(torch.tensor(-depth, dtype=torch.float64)).float()
            assert torch.allclose(found.opacity, expected.expand(1, 2), rtol=1e-5, atol=0)
            color = found.rgb[..., 1:] / found.opacity.unsqueeze(-1)
            assert torch.allclose(color, torch.tensor([0.25, 1.0]), rtol=1e-5)


@interpret
def test_a_ray_without_length_still_has_the_gradient_of_its_end() -> None:
    planes, origins, directions, decoder = small()
    found = []
    for backend in ("triton", "reference"):
        near, far = (torch.full((2, 11), 2.1, requires_grad=True) for _ in range(2))
        rendered = render_triplane(planes, origins, directions, decoder, near=near, far=far, num_samples=3,
                                   backend=backend)
        found.append(torch.autograd.grad(rendered.rgb.sum() + rendered.depth.sum(), (near, far)))
    assert all(torch.allclose(a, b, atol=1e-5) and b.abs().max() > 0 for a, b in zip(*found, strict=True))


@interpret
def test_what_is_not_covered_is_the_same_through_the_composed_path() -> None:
    planes, origins, directions, decoder = small()
    wide = TinyDecoder(18, (8,), view_directions="concat")
    for options, own in (({"quadrature": "raw_midpoint"}, decoder), ({"quadrature": "midpoint"}, decoder),
                         ({"outputs": ("weights", "normals"), "quadrature": "midpoint"}, decoder),
                         ({"reduce": "concat"}, wide), ({"num_importance": 3, "quadrature": "midpoint"}, decoder)):
        inputs = planes, origins, directions, own
        pair = [render_triplane(*inputs, near=1.2, far=4.0, num_samples=5, backend=b, **options)
                for b in ("triton", "reference")]
        for a, b in zip(*pair, strict=True):
            assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, atol=1e-5))


def nothing_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the torch path is an error."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("the composed path was taken")

    monkeypatch.setattr(op, "_march", refuse)


@interpret
@pytest.mark.parametrize(("dtype", "choices", "options"), [
    (torch.float16, {"hidden": (9, 20), "activation": "silu"}, {"padding_mode": "border", "stop_below": 0.4}),
    (torch.float16, {"hidden": (12,), "activation": "softplus", "density": "trunc_exp"},
     {"reduce": "mean", "align_corners": True}),
], ids=str)  # fmt: skip
def test_normals_and_weights_are_fused_and_keep_the_budget(dtype: torch.dtype, choices: dict[str, Any],
                                                           options: dict[str, Any], other_dtype: torch.dtype | None,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = other_dtype or dtype
    torch.manual_seed(1)
    # the same decoder wherever tensors are made
    with torch.device("cpu"):
        decoder = TinyDecoder(6, **choices)
    decoder = decoder.to(torch.get_default_device()).double()
    planes = (random_planes(2, 6, 7, dtype=torch.float64) * 2).to(dtype).double()
    origins, directions = aimed_rays(2, 40)
    stop, options = options.get("stop_below", 0.0), {k: v for k, v in options.items() if k != "stop_below"}
    given = {"near": 1.2, "far": 4.0, "num_samples": 6, "outputs": ("normals", "weights", "depth"), **options}
    exact, sooner, later = (render_triplane_reference(planes, origins, directions, decoder, stop_below=stop * near,
                                                      **given) for near in (1, 1.05, 0.95))
    # rounding may end the other rays one sample sooner or later
    sure = (sooner.weights == later.weights).all(-1)
    assert sure.sum() > 50
    low = decoder.float()
    plain = render_triplane_reference(planes.to(dtype), origins.float(), directions.float(),
                                      low if dtype == torch.float32 else rounded(low, dtype), stop_below=stop, **given)
    nothing_composed(monkeypatch)
    with torch.no_grad(), poisoned():
        fused = render_triplane(planes.to(dtype), origins.float(), directions.float(), low, backend="triton",
                                stop_below=stop, **given)
    for name in ("normals", "weights", "depth", "t"):
        a, b, c = (getattr(x, name).detach()[sure] for x in (fused, exact, plain))
        assert b.abs().max() > 0.1
        assert_within_budget(a, b, c, scale=max(1.0, b.abs().max().item()), what=name)


@interpret
def test_both_passes_of_importance_sampling_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    planes, origins, directions, decoder = small()
    options = {"near": 1.2, "far": 4.0, "num_samples": 5, "num_importance": 4, "jitter": 2, "stop_below": 0.05}
    found = []
    for backend in ("reference", "triton"):
        leaf = planes.clone().requires_grad_()
        if backend == "triton":
            nothing_composed(monkeypatch)
        rendered = render_triplane(leaf, origins, directions, decoder, backend=backend, **options)
        found.append((rendered.rgb, rendered.depth, *torch.autograd.grad(rendered.rgb.sum(), leaf)))
    for a, b in zip(*found, strict=True):
        size = b.abs().max().item()
        assert size > 0.01 and torch.allclose(a, b, rtol=0, atol=2e-5 * size)


@interpret
@pytest.mark.filterwarnings("ignore")
def test_the_registered_operator_passes_opcheck_on_the_fused_path() -> None:
    planes, origins, directions, decoder = small()
    tensors = [x.detach().clone().requires_grad_()
               for x in (planes, origins, directions, torch.full((2, 11), 1.2), torch.full((2, 11), 4.0))]
    parameters = [p.detach().clone().requires_grad_() for p in decoder.parameters()]
    torch.library.opcheck(torch.ops.rodin_kernels.render_triplane.default, (
        *tensors, None, None, None, parameters, decoder.text, "xy,zx,yz", "sum", False, "zeros", 2, "left", "world",
        0.1, True, False, 0, "triton", 0), test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_all_of_the_above_under_the_interpreter() -> None:
    assert_passes_interpreted(__file__)
