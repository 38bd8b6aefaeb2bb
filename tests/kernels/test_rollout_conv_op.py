"""The 3D-aware convolution as a citizen of PyTorch: registration, compile, autocast, memory, layer, bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rodin_kernels import EG3D, RODINHD, RolloutConv, rollout_conv, rollout_conv_reference
from rodin_kernels.testing import assert_within_budget, random_planes, random_tensor, stored_as

OPTIONS = ("xy zx yz", 1, 1, False, "torch")


def arguments(separate: bool, per_plane: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    lead = (3, 2) if per_plane else (2,)
    stacked = random_planes(2, 2, 4, storage="channels_last")
    planes = [plane.contiguous() for plane in stacked.unbind(1)] if separate else [stacked]
    tensors = [*planes, random_tensor(*lead, 6, 3, 3, seed=1), random_tensor(*lead, seed=2)]
    *planes, weight, bias = (tensor.requires_grad_() for tensor in tensors)
    return planes, weight, bias


@pytest.mark.parametrize("per_plane", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_both_operators_pass_opcheck(separate: bool, per_plane: bool) -> None:
    planes, weight, bias = arguments(separate, per_plane)
    torch.library.opcheck(torch.ops.rodin.rollout_conv.default, (planes, weight, bias, *OPTIONS))
    grads = [torch.randn_like(plane).requires_grad_() for plane in planes]
    needs = (True, True, True)
    torch.library.opcheck(torch.ops.rodin.rollout_conv_backward.default, (grads, planes, weight, *OPTIONS, *needs))


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_the_backward_alone_passes_opcheck_with_what_is_needed(needs: tuple[bool, bool, bool]) -> None:
    planes, weight, _ = arguments(False, False)
    grads = [torch.randn_like(planes[0]).requires_grad_()]
    torch.library.opcheck(torch.ops.rodin.rollout_conv_backward.default, (grads, planes, weight, *OPTIONS, *needs))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph_forward_and_backward(dynamic: bool) -> None:
    layer = RolloutConv(3, 4, layout=RODINHD)

    def step(planes: Tensor) -> Tensor:
        return layer(2 * planes).sin()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (6, 8) if dynamic else (6,):
        planes = random_planes(2, 3, size).requires_grad_()
        tensors = [planes, *layer.parameters()]
        expected = torch.autograd.grad(step(planes).square().sum(), tensors)
        for have, want in zip(torch.autograd.grad(compiled(planes).square().sum(), tensors), expected, strict=True):
            torch.testing.assert_close(have, want)


def test_compiles_with_separate_planes_under_autocast() -> None:
    planes, weight, bias = arguments(True, True)

    def call() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return rollout_conv(planes, weight, bias)

    for have, want in zip(torch.compile(call, fullgraph=True, backend="aot_eager")(), call(), strict=True):
        assert have.dtype == torch.bfloat16 and torch.equal(have, want)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_chooses_the_dtype_and_gradients_keep_their_own(given: torch.dtype) -> None:
    planes, weight = random_planes(1, 8, 6).to(given).requires_grad_(), random_tensor(4, 24, 3, 3).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = rollout_conv(planes, weight)
        plain = rollout_conv_reference(planes, weight)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert planes.grad is not None and planes.grad.dtype == given
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    exact = rollout_conv_reference(planes.double(), weight.double())
    assert_within_budget(out, exact, plain.contiguous())


def test_autocast_leaves_double_alone() -> None:
    planes, weight = random_planes(dtype=torch.float64), random_tensor(2, 12, 3, 3, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = rollout_conv(planes, weight)
    torch.testing.assert_close(out, rollout_conv_reference(planes, weight))


@pytest.mark.parametrize("per_plane", [False, True])
def test_results_lie_channels_last_whatever_came(per_plane: bool) -> None:
    planes, weight, bias = arguments(False, per_plane)
    for given in (planes[0].detach(), planes[0].detach().contiguous()):
        given = given.requires_grad_()
        out = rollout_conv(given, weight, bias)
        grad, *others = torch.autograd.grad(out.sum(), [given, weight, bias])
        assert stored_as(out, "channels_last").stride() == out.stride()
        assert stored_as(grad, "channels_last").stride() == grad.stride()
        assert all(other.is_contiguous() for other in others)


def test_only_planes_and_weight_are_saved_for_the_backward() -> None:
    planes, weight, bias = arguments(False, False)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        rollout_conv(planes[0], weight, bias)
    assert sorted(saved) == sorted([planes[0].data_ptr(), weight.data_ptr()])


def test_the_layer_computes_the_function_and_keeps_its_settings() -> None:
    layer = RolloutConv(3, 4, 5, stride=2, separate=True, layout=RODINHD)
    assert layer.padding == 2 and layer.weight.shape == (3, 4, 9, 5, 5) and layer.bias is not None
    planes = random_planes(2, 3, 8)
    expected = rollout_conv(planes, layer.weight, layer.bias, layout=RODINHD, stride=2, padding=2)
    assert torch.equal(layer(planes), expected)
    assert "separate=True" in repr(layer) and "kernel_size=5" in repr(layer)
    assert RolloutConv(3, 4, bias=False).bias is None and "bias=False" in repr(RolloutConv(3, 4, bias=False))
    up = RolloutConv(3, 4, stride=2, transposed=True)
    assert up(planes).shape == (2, 3, 4, 16, 16) and "transposed=True" in repr(up)


def test_a_layer_without_bias_on_meta_has_a_shape() -> None:
    layer = RolloutConv(3, 4, bias=False, device="meta", dtype=torch.bfloat16)
    assert layer(torch.empty(2, 3, 3, 8, 8, device="meta", dtype=torch.bfloat16)).shape == (2, 3, 4, 8, 8)


def test_reference_backend_runs_the_reference_and_triton_says_what_is_missing() -> None:
    planes, weight, bias = arguments(False, False)
    assert torch.equal(rollout_conv(planes[0], weight, bias, backend="reference"),
                       rollout_conv_reference(planes[0], weight, bias))
    with pytest.raises(RuntimeError, match="rollout_conv: .*TRITON_INTERPRET"):
        rollout_conv(planes[0], weight, bias, backend="triton")


PLANES, WEIGHT, BIAS = random_planes(2, 2, 4), random_tensor(3, 6, 3, 3), random_tensor(3)


@pytest.mark.parametrize("change, error, message", [
    ({"planes": PLANES[0]}, ValueError, "planes must have 5 dimensions"),
    ({"planes": PLANES[:, :2]}, ValueError, r"planes must be \[B, 3, C, R, R\]; got \[2, 2, 2, 4, 4\]"),
    ({"planes": PLANES[..., :3]}, ValueError, "must be square.*three tensors"),
    ({"planes": PLANES.long()}, TypeError, "planes must be float16"),
    ({"planes": 3}, TypeError, "planes must be a tensor .* or three tensors; got int"),
    ({"planes": list(PLANES.unbind(1))[:2]}, TypeError, "three tensors; got 2 of them"),
    ({"planes": [PLANES[:, 0], PLANES[:, 1], PLANES[:, 2, :, :3]]}, ValueError, "z has 4 .* and 3 in plane 'yz'"),
    ({"planes": [PLANES[:, 0], PLANES[:, 1, :1], PLANES[:, 2]]}, ValueError, r"planes\[1\] must be"),
    ({"planes": [PLANES[:, 0], PLANES[:, 1].double(), PLANES[:, 2]]}, TypeError, "one dtype"),
    ({"planes": PLANES[..., :0, :0]}, ValueError, "too small"),
    ({"weight": WEIGHT[:, :5]}, ValueError, r"weight must be .* with 3C = 6; got \[3, 5, 3, 3\]"),
    ({"weight": WEIGHT[..., :2]}, ValueError, r"weight must be \[O, 3C, k, k\]"),
    ({"weight": WEIGHT[None].expand(2, -1, -1, -1, -1)}, ValueError, r"\[3, O, 3C, k, k\]"),
    ({"weight": WEIGHT.double()}, TypeError, "one dtype; got planes torch.float32, weight torch.float64"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "one device.*weight on meta"),
    ({"bias": BIAS[:2]}, ValueError, r"bias must be \[3\]; got \[2\]"),
    ({"bias": BIAS.expand(3, 3)}, ValueError, r"bias must be \[3\]"),
    ({"layout": EG3D}, ValueError, "no plane yz"),
    ({"layout": "xyz"}, TypeError, "layout"),
    ({"stride": 0}, ValueError, "stride must be at least 1"),
    ({"padding": -1}, ValueError, "padding must be at least 0"),
    ({"padding": (1, 1)}, TypeError, "padding must be an integer"),
    ({"transposed": "yes"}, TypeError, "transposed must be True or False"),
    ({"backend": "cuda"}, ValueError, "backend must be one of"),
])  # fmt: skip
def test_bad_arguments_are_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    call = {"planes": PLANES, "weight": WEIGHT, "bias": BIAS, **change}
    with pytest.raises(error, match=message):
        rollout_conv(**call)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments, message", [
    ((0, 4), "in_channels must be at least 1"), ((3, 4, 0), "kernel_size must be at least 1"),
])  # fmt: skip
def test_bad_layers_are_named(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutConv(*arguments)
