"""Which two axes each of the three planes shows, and the way between a set of planes and one rolled-out picture.

A plane is named by two letters: the axis along its columns (width), then the axis along its rows (height). A layout is
three such names, in the order in which the planes are stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Layout = tuple[str, str, str]

#: The paper's planes (uv, wu, vw): cyclic, so that every plane relates to the next two in the same way.
RODIN: Layout = ("xy", "zx", "yz")
#: RodinHD's and TripoSR's planes.
RODINHD: Layout = ("xy", "xz", "yz")
#: EG3D with its third plane repaired, as OpenLRM uses it.
EG3D_FIXED: Layout = ("xy", "xz", "zy")
#: EG3D as shipped: the third plane shows the same axes as the second, none shows y and z together.
EG3D: Layout = ("xy", "xz", "zx")

_AXES = "xyz"


def check_layout(layout: Sequence[str]) -> Layout:
    """The layout as a tuple, after a check that it names three planes of two different axes each.

    Raises:
        TypeError: `layout` is a single string or holds something that is no string.
        ValueError: there are not exactly three names, or a name is not two different letters of x, y, z.
    """
    if isinstance(layout, str) or not all(isinstance(name, str) for name in layout):
        raise TypeError(f"layout must be three plane names such as {RODIN}; got {layout!r}")
    if len(layout) != 3:
        raise ValueError(f"layout must name three planes; got {len(layout)}: {tuple(layout)!r}")
    for name in layout:
        if len(name) != 2 or name[0] == name[1] or not set(name) <= set(_AXES):
            raise ValueError(
                f"layout: a plane is named by two different letters of x, y, z (columns, then rows); got {name!r}"
            )
    return (layout[0], layout[1], layout[2])


def plane_axes(layout: Sequence[str]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """For each plane the axis (0 = x, 1 = y, 2 = z) along its columns and the one along its rows.

    `plane_axes(RODIN)` is `((0, 1), (2, 0), (1, 2))`. Raises what `check_layout` raises.
    """
    first, second, third = ((_AXES.index(name[0]), _AXES.index(name[1])) for name in check_layout(layout))
    return first, second, third


def cross_sources(layout: Sequence[str]) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """Where each plane finds the line along its columns and the line along its rows in the other two planes.

    A plane that shows axes a (columns) and b (rows) shares a with exactly one other plane and b with the remaining one.
    The line along a is that plane's mean over the axis that the first plane does not show.

    Returns:
        For each plane two pairs (source plane, dimension to average): -2 averages over the source's rows and leaves a
        line along its columns, -1 averages over its columns. Each of the six lines is used exactly once.

    Raises:
        ValueError: the layout lacks one of the planes xy, xz, yz (in either order), as EG3D's does.
    """
    axes = plane_axes(layout)
    pairs = {frozenset(pair) for pair in axes}
    if len(pairs) < 3:
        missing = [a + b for a, b in ("xy", "xz", "yz") if frozenset((_AXES.index(a), _AXES.index(b))) not in pairs]
        raise ValueError(
            f"layout {tuple(layout)!r} has no plane {' and no plane '.join(missing)}, so an axis has no second plane "
            f"to take a line from; the 3D-aware convolution needs xy, xz and yz, as EG3D_FIXED = {EG3D_FIXED} has them"
        )

    def source(target: int, axis: int) -> tuple[int, int]:
        other = next(plane for plane in range(3) if plane != target and axis in axes[plane])
        return other, -2 if axes[other][0] == axis else -1

    return tuple((source(plane, column), source(plane, row)) for plane, (column, row) in enumerate(axes))


def roll_out(planes: Tensor) -> Tensor:
    """The planes side by side in one picture, the paper's roll-out.

    Args:
        planes: [B, 3, C, H, W], any strides and dtype.

    Returns:
        [B, C, H, 3 W]; columns p W ... (p + 1) W - 1 are plane p. Shares memory with `planes` where strides allow it
        (always with what `unroll` returned), else it is a copy. Differentiable.

    Raises:
        ValueError: `planes` is not five-dimensional with three planes.
    """
    if planes.ndim != 5 or planes.shape[1] != 3:
        raise ValueError(f"planes must be [B, 3, C, H, W]; got {list(planes.shape)}")
    return planes.permute(0, 2, 3, 1, 4).flatten(3)


def unroll(rolled: Tensor) -> Tensor:
    """The set of planes behind a rolled-out picture, without a copy.

    Args:
        rolled: [B, C, H, 3 W], any strides and dtype.

    Returns:
        [B, 3, C, H, W], a view of `rolled`. Differentiable.

    Raises:
        ValueError: `rolled` is not four-dimensional, or its width does not divide by three.
    """
    if rolled.ndim != 4 or rolled.shape[3] % 3:
        raise ValueError(f"rolled must be [B, C, H, 3 W]; got {list(rolled.shape)}")
    return rolled.unflatten(3, (3, rolled.shape[3] // 3)).permute(0, 3, 1, 2, 4)
