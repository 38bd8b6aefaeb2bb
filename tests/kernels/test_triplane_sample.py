"""Tri-plane sampling against grid_sample, in all modes, at every size, and where coordinates are no numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from rodin_kernels import EG3D, RODIN, RODINHD, sample_triplane, sample_triplane_reference
from rodin_kernels.layouts import EG3D_FIXED, plane_axes
from rodin_kernels.testing import STORAGES, assert_within_budget, gradients, poisoned, random_tensor, stored_as
from rodin_kernels.triplane_sample import torch_path

LAYOUTS = (RODIN, RODINHD, EG3D_FIXED, EG3D)
REDUCTIONS = ("sum", "mean", "concat", "product")
PADDINGS = ("zeros", "border", "reflection")
BACKENDS = ("reference", "torch")
SPECIAL = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, -1.0, 1.0, 0.0)


def points_in(batch: int, count: int, *, reach: float = 1.3, seed: int = 3,
              dtype: torch.dtype = torch.float64) -> Tensor:
    """Points [B, N, 3] spread evenly over [-reach, reach]^3."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, count, 3, generator=generator, dtype=torch.float64) * (2 * reach) - reach).to(dtype)


def by_grid_sample(planes: Sequence[Tensor] | Tensor, points: Tensor, layout: Sequence[str] = RODIN,
                   reduce: str = "sum", **options: object) -> Tensor:
    """What everybody writes: three grid_samples and a reduction."""
    own = planes.unbind(1) if isinstance(planes, Tensor) else planes
    features = []
    for plane, (column, row) in zip(own, plane_axes(layout), strict=True):
        grid = torch.stack([points[..., column], points[..., row]], -1)[:, None]
        plane = plane.expand(len(points), -1, -1, -1)
        features.append(functional.grid_sample(plane, grid, **options)[:, :, 0].transpose(1, 2))
    first, second, third = features
    if reduce == "concat":
        return torch.cat(features, -1)
    if reduce == "product":
        return first * second * third
    return (first + second + third) / (3 if reduce == "mean" else 1)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_grid_sample_forward_and_backward(backend: str, align_corners: bool, padding_mode: str,
                                                 mode: str) -> None:
    planes = random_tensor(2, 3, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    points = points_in(2, 40, reach=2.5).requires_grad_()
    options = {"align_corners": align_corners, "padding_mode": padding_mode, "mode": mode}
    for layout, reduce in itertools.product(LAYOUTS, REDUCTIONS):
        ours = sample_triplane(planes, points, layout=layout, reduce=reduce, backend=backend, **options)
        theirs = by_grid_sample(planes, points, layout, reduce, **options)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert ours.is_contiguous()
        for mine, plain in zip(gradients(ours, (planes, points)), gradients(theirs, (planes, points)), strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-11, atol=1e-11)


def test_first_letter_picks_the_column() -> None:
    columns = torch.arange(16.0).expand(1, 1, 16, 16)
    planes = torch.stack([columns, torch.zeros_like(columns), torch.zeros_like(columns)], 1)
    points = torch.tensor([[[0.0, 0.9, 0.9], [0.5, -0.3, 0.1]]])
    torch.testing.assert_close(sample_triplane(planes, points), torch.tensor([[[7.5], [11.5]]]))
    turned = sample_triplane(planes, points[..., [1, 0, 2]], layout=("yx", "zx", "yz"))
    torch.testing.assert_close(turned, torch.tensor([[[7.5], [11.5]]]))


def not_near_a_texel_border(points: Tensor, sizes: Sequence[int], align_corners: bool) -> Tensor:
    """The same points, moved so that on lines of these sizes none lies within 0.05 texels of a kink."""
    for _ in range(40):
        near = torch.zeros_like(points, dtype=torch.bool)
        for size in sizes:
            position = (points + 1) * ((size - 1) / 2) if align_corners else (points + 1) * size / 2 - 0.5
            near |= (position - position.round()).abs() < 0.05
            near |= (position + 0.5 - (position + 0.5).round()).abs() < 0.05
        points = torch.where(near, points + 0.0173, points)
    return points


@pytest.mark.parametrize("reduce", ["sum", "concat", "product"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_both_orders_are_right(backend: str, reduce: str) -> None:
    planes = random_tensor(2, 3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    for align_corners, padding_mode in ((False, "zeros"), (True, "border"), (False, "reflection")):
        points = not_near_a_texel_border(points_in(2, 4, reach=1.4), (2, 3), align_corners).requires_grad_()

        def run(planes: Tensor, points: Tensor, align: bool = align_corners, padding: str = padding_mode) -> Tensor:
            return sample_triplane(planes, points, reduce=reduce, align_corners=align, padding_mode=padding,
                                   backend=backend)

        assert torch.autograd.gradcheck(run, (planes, points))
        assert torch.autograd.gradgradcheck(run, (planes, points), fast_mode=True)


def test_eikonal_and_gradient_penalties_train() -> None:
    planes = random_tensor(2, 3, 4, 7, 7, requires_grad=True)
    points = points_in(2, 30, dtype=torch.float32).requires_grad_()
    results = []
    for backend in BACKENDS:
        value = sample_triplane(planes, points, backend=backend).square().sum(-1)
        (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
        results.append(torch.autograd.grad((slope.norm(dim=-1) - 1).square().mean(), (planes, points)))
    for plain, fast in zip(*results, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


def test_third_derivatives_are_refused_or_left_to_the_reference() -> None:
    planes = random_tensor(1, 3, 2, 5, 5, requires_grad=True)
    points = points_in(1, 8, dtype=torch.float32).requires_grad_()

    def third(backend: str) -> Tensor:
        value = sample_triplane(planes, points, reduce="product", backend=backend).square().sum()
        for _ in range(2):
            value = torch.autograd.grad(value, points, create_graph=True)[0].square().sum()
        return torch.autograd.grad(value, points)[0]

    assert third("reference").isfinite().all()
    with pytest.raises(RuntimeError, match="third derivatives need backend='reference'"):
        third("torch")


def test_product_keeps_its_gradient_where_features_are_zero() -> None:
    planes = torch.ones(1, 3, 2, 4, 4)
    planes[:, 0] = 0.0
    planes.requires_grad_()
    output = sample_triplane(planes, points_in(1, 9, reach=0.7, dtype=torch.float32), reduce="product")
    (grad,) = torch.autograd.grad(output.sum(), planes)
    torch.testing.assert_close(grad[:, 0].sum(), torch.tensor(18.0))
    assert grad[:, 1:].abs().max() == 0


sizes = st.sampled_from([1, 2, 3, 7, 13])


@settings(max_examples=60)
@given(batch=st.integers(0, 3), count=st.sampled_from([0, 1, 2, 17, 31]), channels=st.integers(1, 17), height=sizes,
       width=sizes, layout=st.sampled_from(LAYOUTS), reduce=st.sampled_from(REDUCTIONS),
       align_corners=st.booleans(), padding_mode=st.sampled_from(PADDINGS), storage=st.sampled_from(STORAGES),
       mode=st.sampled_from(["bilinear", "nearest"]), dtype=st.sampled_from([torch.float32, torch.float64]),
       seed=st.integers(0, 99))
def test_every_size_equals_the_reference(batch: int, count: int, channels: int, height: int, width: int,
                                         layout: Sequence[str], reduce: str, align_corners: bool, padding_mode: str,
                                         mode: str, storage: str, dtype: torch.dtype, seed: int) -> None:
    planes = stored_as(random_tensor(batch, 3, channels, height, width, seed=seed, dtype=dtype), storage)
    planes.requires_grad_()
    points = points_in(batch, count, seed=seed, dtype=dtype, reach=2.2).requires_grad_()
    options = {"layout": layout, "reduce": reduce, "align_corners": align_corners, "padding_mode": padding_mode}
    ours = sample_triplane(planes, points, mode=mode, backend="torch", **options)
    plain = sample_triplane_reference(planes, points, mode=mode, **options)
    assert ours.shape == (batch, count, channels * (3 if reduce == "concat" else 1))
    tolerance = {"rtol": 1e-4, "atol": 2e-4} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(ours, plain, **tolerance)
    for mine, theirs in zip(gradients(ours, (planes, points)), gradients(plain, (planes, points)), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def test_texel_borders_agree_to_the_bit_of_a_cell() -> None:
    size = 8
    centres = (torch.arange(size) + 0.5) * 2 / size - 1
    above, below = (torch.nextafter(centres, torch.tensor(limit)) for limit in (2.0, -2.0))
    ticks = torch.cat([centres, above, below, torch.tensor([-1.0, 1.0, -1 - 1 / size, 1 + 1 / size])])
    points = torch.cartesian_prod(ticks, ticks[:5], ticks[:3])[None].requires_grad_()
    planes = random_tensor(1, 3, 3, size, size, requires_grad=True)
    for align_corners, padding_mode in itertools.product((False, True), PADDINGS):
        options = {"align_corners": align_corners, "padding_mode": padding_mode}
        plain = sample_triplane_reference(planes, points, **options)
        torch.testing.assert_close(plain, by_grid_sample(planes, points, **options), rtol=1e-5, atol=1e-5)
        ours = sample_triplane(planes, points, backend="torch", **options)
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(gradients(ours, (planes, points)), gradients(plain, (planes, points)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_coordinates_that_are_no_numbers(mode: str, padding_mode: str, align_corners: bool) -> None:
    points = torch.cartesian_prod(*[torch.tensor(SPECIAL)] * 3)[None].requires_grad_()
    planes = random_tensor(1, 3, 2, 5, 5, requires_grad=True)
    options = {"align_corners": align_corners, "padding_mode": padding_mode, "mode": mode}
    plain = sample_triplane_reference(planes, points, **options)
    ours = sample_triplane(planes, points, backend="torch", **options)
    torch.testing.assert_close(ours, plain, equal_nan=True)
    usual = by_grid_sample(planes, points, **options)
    reads_nothing = points.isinf().any(-1) if padding_mode == "zeros" else points.abs().ge(3e9).any(-1)
    torch.testing.assert_close(ours[~reads_nothing], usual[~reads_nothing], equal_nan=True)
    for mine, theirs in zip(gradients(ours, (planes, points)), gradients(plain, (planes, points)), strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_infinitely_far_points_read_nothing_and_nan_stays_nan() -> None:
    planes = torch.ones(1, 3, 1, 4, 4)
    for backend in BACKENDS:
        points = torch.tensor([[[float("inf")] * 3, [float("nan")] * 3]])
        far, lost = sample_triplane(planes, points, backend=backend)[0]
        assert far.item() == 0
        assert lost.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("align_corners", [False, True])
def test_reflection_ends_where_no_texels_are_left(align_corners: bool, dtype: torch.dtype) -> None:
    span = 4 if align_corners else 5
    planes = torch.arange(5.0, dtype=dtype).expand(1, 3, 1, 5, 5)
    for backend in BACKENDS:
        options = {"padding_mode": "reflection", "align_corners": align_corners, "reduce": "mean", "backend": backend}
        # an even number of widths away the line is as it was, an odd one backwards
        near, back, last, *far = sample_triplane(planes, torch.tensor(
            [0.2, 2.2, 2 * (1 << 20), 2 * ((1 << 22) + 2), -1e30, float("inf"), float("nan")], dtype=dtype,
        ).repeat_interleave(3).view(1, -1, 3), **options)[0, :, 0].tolist()
        assert near == pytest.approx(2 + 0.1 * span, rel=1e-6) and back == pytest.approx(2 - 0.1 * span, rel=1e-6)
        assert last == 2 and far == [0.0] * 4


def test_no_points_make_no_chunks() -> None:
    # on a GPU a chunk is as large as there are points
    assert list(torch_path._chunks(0, 0)) == []


@pytest.mark.parametrize("storage", STORAGES)
def test_storage_of_the_planes_does_not_matter(storage: str) -> None:
    planes = stored_as(random_tensor(2, 3, 5, 6, 6), storage)
    points = points_in(2, 50, dtype=torch.float32)
    assert torch.equal(sample_triplane(planes, points), sample_triplane(planes.contiguous(), points))


def test_one_set_of_planes_serves_all_views_without_a_copy() -> None:
    planes = stored_as(random_tensor(1, 3, 5, 6, 6), "channels_last")
    points = points_in(4, 50, dtype=torch.float32)
    expanded, single = planes.expand(4, -1, -1, -1, -1), planes.clone().requires_grad_()
    scheme = torch_path.Scheme((0, 1) * 3, False, "zeros", "bilinear", 6, 6)
    table, stride = torch_path._table(expanded, torch.float32, scheme)
    assert (table.data_ptr(), table.numel(), stride) == (planes.data_ptr(), planes.numel(), 0)
    output = sample_triplane(single, points)
    assert torch.equal(output, sample_triplane(expanded, points))
    wide = single.detach().expand(4, -1, -1, -1, -1).clone().requires_grad_()
    (one,), (many,) = gradients(output, [single]), gradients(sample_triplane(wide, points), [wide])
    assert one.shape == planes.shape
    torch.testing.assert_close(one, many.sum(0, keepdim=True))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_planes_of_different_sizes(reduce: str) -> None:
    planes = [random_tensor(2, 4, h, w, seed=h, requires_grad=True) for h, w in ((5, 6), (1, 9), (7, 2))]
    points = points_in(2, 33, dtype=torch.float32)
    theirs = by_grid_sample(planes, points, reduce=reduce, align_corners=False)
    expected = gradients(theirs, planes)
    for backend in BACKENDS:
        ours = sample_triplane(planes, points, reduce=reduce, backend=backend)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        for mine, plain in zip(gradients(ours, planes), expected, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


def test_equal_sizes_as_a_list_equal_the_stack() -> None:
    planes, points = random_tensor(2, 3, 4, 6, 6), points_in(2, 33, dtype=torch.float32)
    together = sample_triplane(planes, points, reduce="concat")
    assert torch.equal(together, sample_triplane(list(planes.unbind(1)), points, reduce="concat"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_error_is_within_twice_that_of_plain_torch(reduce: str, dtype: torch.dtype) -> None:
    planes = random_tensor(2, 3, 8, 16, 16, dtype=dtype, requires_grad=True)
    points = points_in(2, 400, reach=1.1, dtype=torch.float32)
    ours = sample_triplane(planes, points, reduce=reduce)
    wide = planes.detach().double().requires_grad_()
    exact = sample_triplane_reference(wide, points.double(), reduce=reduce)
    low = planes.detach().clone().requires_grad_()
    plain = by_grid_sample(low.float(), points, reduce=reduce, align_corners=False).to(dtype)
    assert_within_budget(ours, exact, plain, what=reduce)
    cotangent = random_tensor(*ours.shape, seed=5, dtype=dtype)
    mine, best, usual = (torch.autograd.grad(out, leaf, cotangent.to(out.dtype))[0]
                         for out, leaf in ((ours, planes), (exact, wide), (plain, low)))
    assert mine.dtype == dtype
    assert_within_budget(mine, best, usual, what=f"gradient of {reduce}")


@pytest.mark.parametrize("batch", [1, 3])
def test_chunks_do_not_matter(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = random_tensor(batch, 3, 4, 9, 9, requires_grad=True)
    points = points_in(3, 50, dtype=torch.float32).requires_grad_()
    whole = sample_triplane(planes, points)
    expected = gradients(whole, (planes, points))
    for chunk, together in ((7, 1 << 18), (16, 60), (64, 33), (1, 120)):
        monkeypatch.setattr(torch_path, "CHUNK", chunk)
        monkeypatch.setattr(torch_path, "SORTED_CHUNK", together)
        parts = sample_triplane(planes, points)
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
        for mine, one in zip(gradients(parts, (planes, points)), expected, strict=True):
            torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduce", ["sum", "concat"])
def test_nothing_is_left_unwritten_and_results_repeat(reduce: str) -> None:
    planes, points = random_tensor(2, 3, 5, 6, 6, requires_grad=True), points_in(2, 300, dtype=torch.float32)
    points.requires_grad_()
    first = sample_triplane(planes, points, reduce=reduce)
    expected = (first, *gradients(first, (planes, points)))
    for _ in range(5):
        with poisoned():
            again = sample_triplane(planes, points, reduce=reduce)
            results = (again, *gradients(again, (planes, points)))
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_a_hundred_repeats_by_many_threads_give_the_same_bits() -> None:
    planes = stored_as(random_tensor(1, 3, 8, 6, 6), "channels_last").requires_grad_()
    points = points_in(1, 4000, dtype=torch.float32).requires_grad_()
    threads, found = torch.get_num_threads(), []
    try:
        for repeat in range(100):
            torch.set_num_threads(4 if repeat else 1)
            features = sample_triplane(planes, points)
            found.append([features, *gradients(features, (planes, points))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for again in found[1:] for a, b in zip(again, found[0], strict=True))


def test_gradient_of_channels_last_planes_is_channels_last() -> None:
    planes = stored_as(random_tensor(2, 3, 5, 6, 6), "channels_last").requires_grad_()
    sample_triplane(planes, points_in(2, 10, dtype=torch.float32)).sum().backward()
    assert planes.grad is not None
    assert planes.grad.stride() == planes.stride()
