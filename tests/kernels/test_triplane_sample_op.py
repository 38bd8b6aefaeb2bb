"""Tri-plane sampling as a registered operator: opcheck, compilation, and errors that a person can act on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rodin_kernels import EG3D, sample_triplane
from rodin_kernels.testing import random_tensor, stored_as
from rodin_kernels.triplane_sample import op

OPTIONS = ([0, 1, 2, 0, 1, 2], False, False, "zeros", "bilinear", "torch", 1)


def inputs(requires_grad: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Planes, points, tangents and a gradient of the features."""
    planes = stored_as(random_tensor(2, 3, 4, 6, 5), "channels_last").requires_grad_(requires_grad)
    points = random_tensor(2, 9, 3, seed=1).mul_(0.5).requires_grad_(requires_grad)
    return (planes, points, random_tensor(2, 9, 3, seed=2, requires_grad=requires_grad),
            random_tensor(2, 9, 4, seed=3, requires_grad=requires_grad))


@pytest.mark.parametrize("with_tangent", [False, True])
def test_operators_pass_opcheck(with_tangent: bool) -> None:
    planes, points, tangent, grad = inputs()
    along = tangent if with_tangent else None
    torch.library.opcheck(op._sample, (planes, points, along, *OPTIONS, torch.float32))
    torch.library.opcheck(op._plane_gradient, (grad, points, along, *OPTIONS, 2, 6, 5, torch.float32))
    if with_tangent:
        planes, points, along, grad = inputs(requires_grad=False)
    torch.library.opcheck(op._point_gradient, (grad, planes, points, along, *OPTIONS))


def test_separate_features_and_low_precision_pass_opcheck() -> None:
    planes, points, _, _ = inputs()
    half = planes.detach().half().requires_grad_()
    torch.library.opcheck(op._sample, (half, points, None, OPTIONS[0], True, *OPTIONS[2:-1], 3, torch.float16))


@pytest.mark.parametrize("reduce", ["sum", "product"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph_forward_and_backward(reduce: str, dynamic: bool) -> None:
    planes, points, _, _ = inputs()

    def loss(planes: Tensor, points: Tensor) -> Tensor:
        return sample_triplane(planes, points, reduce=reduce, layout=EG3D).square().mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    plain = torch.autograd.grad(loss(planes, points), (planes, points))
    for fast, slow in zip(torch.autograd.grad(compiled(planes, points), (planes, points)), plain, strict=True):
        torch.testing.assert_close(fast, slow)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_agrees() -> None:
    planes, points, _, _ = inputs()
    compiled = torch.compile(lambda a, b: sample_triplane(a * 2, b).square().sum(), fullgraph=True)
    result = torch.autograd.grad(compiled(planes, points), (planes, points))
    plain = torch.autograd.grad(sample_triplane(planes * 2, points).square().sum(), (planes, points))
    for fast, slow in zip(result, plain, strict=True):
        torch.testing.assert_close(fast, slow)


def test_gradients_are_computed_only_where_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    planes, points, _, _ = inputs()
    called: list[str] = []
    for name in ("plane_gradient", "point_gradient"):
        original = getattr(op.torch_path, name)
        monkeypatch.setattr(op.torch_path, name, lambda *a, f=original, n=name: called.append(n) or f(*a))
    sample_triplane(planes, points.detach()).sum().backward()
    sample_triplane(planes.detach(), points).sum().backward()
    assert called == ["plane_gradient", "point_gradient"]


def test_meta_tensors_give_the_shape() -> None:
    planes, points = torch.empty(2, 3, 32, 512, 512, device="meta"), torch.empty(2, 10**6, 3, device="meta")
    assert sample_triplane(planes, points, reduce="concat").shape == (2, 10**6, 96)


PLANES, POINTS = torch.zeros(2, 3, 4, 5, 5), torch.zeros(2, 6, 3)


@pytest.mark.parametrize(("error", "message", "arguments"), [
    (TypeError, "planes must be a tensor .* or three tensors", {"planes": "planes"}),
    (TypeError, "planes must be a tensor .* got 2 of them", {"planes": [PLANES[:, 0]] * 2}),
    (TypeError, "planes must be float16, .* got torch.int64", {"planes": PLANES.long()}),
    (TypeError, "all tensors must have one dtype", {"planes": [PLANES[:, 0], PLANES[:, 1], PLANES[:, 2].double()]}),
    (TypeError, "points must be a tensor; got list", {"points": [0.0, 0.0, 0.0]}),
    (TypeError, "align_corners must be True or False", {"align_corners": 1}),
    (ValueError, "planes must have 5 dimensions; got 4", {"planes": PLANES[0]}),
    (ValueError, r"planes must be \[B, 3, C, H, W\]; got \[2, 2, 4, 5, 5\]", {"planes": PLANES[:, :2]}),
    (ValueError, "planes must have at least one channel, row and column", {"planes": PLANES[..., :0]}),
    (ValueError, r"planes\[1\] must have 4 dimensions", {"planes": [PLANES[:, 0], PLANES, PLANES[:, 2]]}),
    (ValueError, "planes must have the same channels", {"planes": [PLANES[:, 0], PLANES[:, 1, :2], PLANES[:, 2]]}),
    (ValueError, r"batch size of points \(2\) or 1; got 3", {"planes": torch.zeros(3, 3, 4, 5, 5)}),
    (ValueError, r"points must be \[B, N, 3\]; got \[2, 6, 2\]", {"points": POINTS[..., :2]}),
    (ValueError, "one device", {"points": POINTS.to("meta")}),
    (ValueError, "reduce must be one of 'sum', 'mean'", {"reduce": "max"}),
    (ValueError, "padding_mode must be one of 'zeros'", {"padding_mode": "wrap"}),
    (ValueError, "mode must be one of 'bilinear', 'nearest'", {"mode": "bicubic"}),
    (ValueError, "layout must name three planes", {"layout": ("xy", "xz")}),
    (ValueError, "backend must be one of", {"backend": "cuda"}),
])
def test_bad_input_is_named(error: type[Exception], message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        sample_triplane(**{"planes": PLANES, "points": POINTS, **arguments})


def test_missing_kernels_are_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op.launch, "_WITH_KERNELS", frozenset())
    with pytest.raises(RuntimeError, match="no Triton kernels for it yet"):
        sample_triplane(PLANES, POINTS, backend="triton")
