"""Layouts name the axes that planes show; roll-out and back lose nothing and copy nothing that they need not."""

from __future__ import annotations

import itertools

import pytest
import torch

from rodin_kernels import EG3D, EG3D_FIXED, RODIN, RODINHD, check_layout, cross_sources, plane_axes, roll_out, unroll
from rodin_kernels.testing import STORAGES, random_planes

NAMES = ("xy", "yx", "xz", "zx", "yz", "zy")


def test_plane_axes_are_columns_then_rows() -> None:
    assert plane_axes(RODIN) == ((0, 1), (2, 0), (1, 2))
    assert plane_axes(RODINHD) == ((0, 1), (0, 2), (1, 2))
    assert plane_axes(EG3D_FIXED) == ((0, 1), (0, 2), (2, 1))
    assert plane_axes(EG3D) == ((0, 1), (0, 2), (2, 0))


@pytest.mark.parametrize("bad", ["xyz", ("xy", "zx"), ("xy", "zx", "yy"), ("xy", "zx", "yw"), ("xy", "zx", "y")])
def test_bad_layouts_are_named(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="layout"):
        check_layout(bad)  # type: ignore[arg-type]


def test_a_layout_from_a_list_becomes_a_tuple() -> None:
    assert check_layout(["xy", "zx", "yz"]) == RODIN


def test_rodin_is_cyclic() -> None:
    assert cross_sources(RODIN) == (((1, -1), (2, -2)), ((2, -1), (0, -2)), ((0, -1), (1, -2)))


@pytest.mark.parametrize("layout", [c for c in itertools.product(NAMES, repeat=3) if len({*map(frozenset, c)}) == 3])
def test_every_line_runs_along_a_shared_axis_and_is_used_once(layout: tuple[str, str, str]) -> None:
    axes, used = plane_axes(layout), []
    for target, sources in enumerate(cross_sources(layout)):
        for axis, (source, averaged) in zip(axes[target], sources, strict=True):
            left = axes[source][0] if averaged == -2 else axes[source][1]
            assert source != target and left == axis
            used.append((source, averaged))
    assert sorted(used) == [(plane, dim) for plane in range(3) for dim in (-2, -1)]


def test_a_layout_without_all_three_planes_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="no plane yz.*EG3D_FIXED"):
        cross_sources(EG3D)


def test_roll_out_puts_the_planes_side_by_side() -> None:
    planes = random_planes(2, 3, 4)
    rolled = roll_out(planes)
    assert rolled.shape == (2, 3, 4, 12)
    for plane in range(3):
        assert torch.equal(rolled[..., 4 * plane : 4 * plane + 4], planes[:, plane])


@pytest.mark.parametrize("storage", STORAGES)
def test_unroll_undoes_roll_out(storage: str) -> None:
    planes = random_planes(2, 3, 4, storage=storage)
    assert torch.equal(unroll(roll_out(planes)), planes)


def test_unroll_never_copies_and_roll_out_gives_its_view_back() -> None:
    rolled = torch.randn(2, 3, 4, 12)
    for given in (rolled, rolled.contiguous(memory_format=torch.channels_last), rolled[..., ::2]):
        planes = unroll(given)
        assert planes.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
        assert roll_out(planes).data_ptr() == given.data_ptr()


@pytest.mark.parametrize(
    "function, shape", [(roll_out, (2, 4, 3, 5, 5)), (roll_out, (2, 3, 5, 5)), (unroll, (2, 3, 4, 13))]
)
def test_wrong_shapes_are_named(function: object, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, "):
        function(torch.zeros(shape))  # type: ignore[operator]
