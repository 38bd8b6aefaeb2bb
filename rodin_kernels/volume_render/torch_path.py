"""Rendering without kernels: rays in chunks, steps front to back in blocks, and work only where something may be.

A block of steps of the rays that are still open is looked up in the occupancy grid; the samples that may hold something
are packed, sampled and decoded; rays whose transmittance has fallen under the limit are closed. At the end of a chunk
the optical thickness goes back into rows [rays, steps] for the running sum that the weights need. The same program
serves inference, training by autograd, and the recomputing backward of the registered operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .composite import volume_weights
from .rays import bin_positions, hashed_uniform, sample_lengths

#: Samples (rays times steps) of one chunk of rays, and steps of one block when rays may be closed early.
CHUNK_SAMPLES = 1 << 19
BLOCK_STEPS = 16
#: Where rays may be closed early, a chunk's rows hold at most so many times the samples of a chunk.
ROWS = 8
#: Cells are looked up a little inside the box, so that rounding never loses a point on its faces.
FACE_MARGIN = 2e-6

Decode = Callable[[Tensor, "Tensor | None"], tuple[Tensor, Tensor]]
Sample = Callable[[Tensor, Tensor], Tensor]


class March(NamedTuple):
    """How rays are marched: equal bins, quadrature, transmittance at which they end, outputs beyond the usual.

    deltas: "world" lengths, or those in units of "t". density: what comes after neighbours' raw densities are averaged.
    """

    num_samples: int
    quadrature: str = "left"
    stop_below: float = 0.0
    normals: bool = False
    weights: bool = False
    deltas: str = "world"
    density: Callable[[Tensor], Tensor] | None = None

    @property
    def paired(self) -> bool:
        """Whether neighbours make one interval."""
        return self.quadrature != "left"

    @property
    def stops(self) -> bool:
        """Whether rays are closed early. Means of raw densities may be thinner than the means that would close them."""
        return self.stop_below > 0 and self.density is None

    @property
    def empty(self) -> float:
        """What a sample is worth that holds nothing: a density, or a raw one."""
        return 0.0 if self.density is None else -torch.inf


class Rays(NamedTuple):
    """Rays of a scene: origins, directions [R, 3]; near, far [R]; explicit t [R, S] or None; numbers [R] int64."""

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    t: Tensor | None
    numbers: Tensor

    def take(self, index: Tensor | slice) -> Rays:
        """Some of the rays."""
        pick = (lambda x: x[index]) if isinstance(index, slice) else (lambda x: x.index_select(0, index))
        return Rays._make(None if x is None else pick(x) for x in self)


class Summed(NamedTuple):
    """Sums along rays: color [R, F], depth, opacity [R]; normals [R, 3], weights and t [R, S'] if asked for."""

    color: Tensor
    depth: Tensor
    opacity: Tensor
    normals: Tensor | None = None
    weights: Tensor | None = None
    t: Tensor | None = None


class Found(NamedTuple):
    """Decoded samples: flat places in rows [R, S], their rays, t, density [N], color [N, F], normals [N, 3] or None."""

    where: Tensor
    owner: Tensor
    along: Tensor
    sigma: Tensor
    color: Tensor
    normals: Tensor | None


class Cells(NamedTuple):
    """One scene's occupancy made ready for look-ups: a flat table with an empty rim, its size, and the occupied box."""

    table: Tensor
    size: int
    low: Tensor
    high: Tensor


def march(plane_sets: Sequence[Tensor], rays: Rays, seeds: Tensor | None, cells: Tensor | None, sample: Sample,
          decode: Decode, how: March, width: int) -> Summed:
    """Render all scenes: every field of `rays` with a leading batch dimension, except `numbers`.

    Args:
        plane_sets: B sets of planes [3, C, H, W].
        rays: origins [B, R, 3] and so on; numbers [R].
        seeds: [B] int64, for jitter, or None.
        cells: bool [B or 1, G, G, G] or None.
        sample: planes [3, C, H, W], points [N, 3] -> features [N, C'].
        decode: features, directions [N, 3] -> density [N], color [N, width].

    Returns:
        `Summed`, every field with a leading batch dimension. Differentiable where gradients are recorded.
    """
    if not plane_sets:
        return _nothing(rays, how, width)
    count = rays.origins.shape[1]
    steps = rays.t.shape[2] if rays.t is not None else how.num_samples
    # rows of numbers are cheap beside what is decoded at once: where that is a block, a chunk may have more rays
    together = min(steps, max(BLOCK_STEPS, steps // ROWS)) if how.stops else steps
    chunk = max(1, CHUNK_SAMPLES // max(together, 1))
    prepared: dict[int, Cells] = {}
    scenes = []
    for b, planes in enumerate(plane_sets):
        grid = 0 if cells is None or cells.shape[0] == 1 else b
        if grid not in prepared:
            prepared[grid] = prepare_cells(None if cells is None else cells[grid], rays.origins)
        own = Rays._make((*(None if x is None else x[b] for x in rays[:-1]), rays.numbers))
        seed = None if seeds is None else seeds[b]
        field = lambda points, seen, planes=planes: decode(sample(planes, points), seen)  # noqa: E731
        parts = [_chunk(own.take(slice(first, first + chunk)), seed, prepared[grid], field, how, width)
                 for first in range(0, max(count, 1), chunk)]
        scenes.append(_joined(parts, torch.cat))
    return _joined(scenes, torch.stack)


def _nothing(rays: Rays, how: March, width: int) -> Summed:
    """The sums of no scenes at all."""
    like, steps = rays.near, how.num_samples if rays.t is None else rays.t.shape[2]
    rows = like.unsqueeze(-1).expand(*like.shape, steps - how.paired) if how.weights else None
    return Summed(like.new_zeros(*like.shape, width), like, like, rays.origins if how.normals else None, rows, rows)


def prepare_cells(cells: Tensor | None, like: Tensor) -> Cells:
    """`Cells` of a grid bool [G, G, G]; without a grid the whole box is one occupied cell."""
    if cells is None:
        cells = torch.ones(1, 1, 1, dtype=torch.bool, device=like.device)
    size = cells.shape[-1]
    bounds = []
    for axis in range(3):
        line = cells.any(dim=[d for d in range(3) if d != axis]).nonzero().view(-1)
        bounds.append((int(line[0]), int(line[-1]) + 1) if len(line) else (1, 0))
    edges = torch.tensor(bounds, dtype=like.dtype, device=like.device) * (2 / size) - 1
    low, high = edges.unbind(1)
    return Cells(F.pad(cells, (1, 1, 1, 1, 1, 1)).view(-1), size, low - 1e-5, high + 1e-5)


def _joined(parts: list[Summed], join: Callable[[list[Tensor]], Tensor]) -> Summed:
    if len(parts) == 1 and join is torch.cat:
        return parts[0]
    columns = zip(*parts, strict=True)
    return Summed._make(None if column[0] is None else join(list(column)) for column in columns)


def _chunk(rays: Rays, seed: Tensor | None, cells: Cells, field: Decode, how: March, width: int) -> Summed:
    """One chunk of rays of one scene: only those that meet the occupied part of the box are marched."""
    count = rays.origins.shape[0]
    with torch.no_grad():
        met = _meets(rays, cells).nonzero().view(-1)
    if len(met) == count:
        return _march_rays(rays, seed, cells, field, how, width)
    summed = _march_rays(rays.take(met), seed, cells, field, how, width)
    summed = Summed._make(None if x is None else x.new_zeros(count, *x.shape[1:]).index_copy(0, met, x) for x in summed)
    return summed._replace(t=_along(_positions(rays, seed, how)[0], how)) if how.weights else summed


def _meets(rays: Rays, cells: Cells) -> Tensor:
    """Whether rays [R] pass the occupied box between near and far."""
    a, b = ((edge - rays.origins) / rays.directions for edge in (cells.low, cells.high))
    enter = torch.minimum(a, b).nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(-1)
    leave = torch.maximum(a, b).nan_to_num(torch.inf, torch.inf, -torch.inf).amin(-1)
    first, last = (rays.near, rays.far) if rays.t is None else (enter, leave)
    return (leave >= torch.maximum(enter, first)) & (enter <= last)


def _march_rays(rays: Rays, seed: Tensor | None, cells: Cells, field: Decode, how: March, width: int) -> Summed:
    t, delta = _positions(rays, seed, how)
    found = _shade(rays, t, delta, cells, field, how, width)
    if how.weights or how.paired:
        return _sum_rows(found, t, delta, how)
    tau = found.sigma * _lengths_at(delta, found)
    # one column more than steps, so that the running sum at a sample's own place is the thickness before it
    places = found.where + found.owner
    count, columns = t.shape[0], t.shape[1] + 1
    rows = tau.new_zeros(count * columns).index_copy(0, places + 1, tau).view(count, columns)
    light = torch.exp(-rows.cumsum(1).view(-1).index_select(0, places))
    weights = light * -torch.expm1(-tau)
    if how.stop_below > 0:
        weights = torch.where(light >= how.stop_below, weights, 0.0)
    return _summed(found, weights, count)


def _sum_rows(found: Found, t: Tensor, delta: Tensor, how: March) -> Summed:
    """The sums by way of weights in rows [R, S'], where neighbours are needed or the weights are wanted."""
    rows = found.sigma.new_full((t.numel(),), how.empty).index_copy(0, found.where, found.sigma).view(t.shape)
    rows = 0.5 * (rows[:, 1:] + rows[:, :-1]) if how.paired else rows
    weights, _ = volume_weights(rows if how.density is None else how.density(rows),
                                delta.expand(-1, t.shape[1] - how.paired), stop_below=how.stop_below)
    along = _along(t, how)
    shares = 0.5 * (F.pad(weights, (0, 1)) + F.pad(weights, (1, 0))) if how.paired else weights
    summed = _summed(found, shares.reshape(-1).index_select(0, found.where), t.shape[0])
    return summed._replace(depth=(weights * along).sum(-1), opacity=weights.sum(-1),
                           weights=weights if how.weights else None, t=along if how.weights else None)


def _summed(found: Found, weights: Tensor, count: int) -> Summed:
    """Sums along `count` rays of what was found, by its weights [N]."""
    columns = [found.color, found.along.unsqueeze(-1), torch.ones_like(weights).unsqueeze(-1)]
    columns += [] if found.normals is None else [found.normals]
    values = torch.cat(columns, -1) * weights.unsqueeze(-1)
    sums = values.new_zeros(count, values.shape[1]).index_add(0, found.owner, values)
    width = found.color.shape[1]
    color, depth, opacity, normals = sums.split([width, 1, 1, values.shape[1] - width - 2], 1)
    return Summed(color, depth.squeeze(1), opacity.squeeze(1), None if found.normals is None else normals)


def _positions(rays: Rays, seed: Tensor | None, how: March) -> tuple[Tensor, Tensor]:
    """t [R, S] and lengths [R, S] ([R, S - 1] for midpoints, [R, 1] where all are the same)."""
    world = how.deltas == "world"
    speed = rays.directions.norm(dim=-1, keepdim=True) if world else torch.ones_like(rays.near).unsqueeze(-1)
    if rays.t is not None:
        return rays.t, sample_lengths(rays.t, rays.far, how.quadrature) * speed
    offsets = None if seed is None else hashed_uniform(seed, rays.numbers, how.num_samples)
    t, delta = bin_positions(rays.near, rays.far, how.num_samples, offsets)
    if how.paired:
        return t, sample_lengths(t, rays.far, how.quadrature) * speed
    return t, delta[:, :1] * speed


def _along(t: Tensor, how: March) -> Tensor:
    """Where the weights lie: at the samples, or half way between neighbours."""
    return 0.5 * (t[:, 1:] + t[:, :-1]) if how.paired else t


def _lengths_at(delta: Tensor, found: Found) -> Tensor:
    """The lengths of the found samples, [N]."""
    if delta.shape[1] == 1:
        return delta.reshape(-1).index_select(0, found.owner)
    return delta.reshape(-1).index_select(0, found.where)


def _shade(rays: Rays, t: Tensor, delta: Tensor, cells: Cells, field: Decode, how: March, width: int) -> Found:
    """Decode what may hold something."""
    blocks: list[Found] = []
    live, thickness = None, torch.zeros_like(rays.near).detach()
    for first, last in _blocks(t.shape[1], how.stops):
        with torch.no_grad():
            where = _candidates(rays, t, live, first, last, cells)
        blocks.append(_decode_at(rays, t, where, field, how))
        if how.stops and last < t.shape[1]:
            with torch.no_grad():
                live = _open_rays(thickness, blocks[-1], delta, t.shape[1], last, how)
                if live.numel() == 0:
                    break
    if len(blocks) == 1:
        return blocks[0]
    if not blocks:
        like, none = rays.near, rays.near.new_zeros(0, dtype=torch.int64)
        return Found(none, none, like.new_zeros(0), like.new_zeros(0), like.new_zeros(0, width),
                     like.new_zeros(0, 3) if how.normals else None)
    return Found._make(None if column[0] is None else torch.cat(column) for column in zip(*blocks, strict=True))


def _blocks(steps: int, stops: bool) -> Iterator[tuple[int, int]]:
    size = BLOCK_STEPS if stops else max(steps, 1)
    return ((first, min(first + size, steps)) for first in range(0, steps, size))


def _candidates(rays: Rays, t: Tensor, live: Tensor | None, first: int, last: int, cells: Cells) -> Tensor:
    """Flat places in the rows [R, S] of samples in occupied cells, for steps first ... last - 1 of the live rays."""
    origins, directions, t = (x.detach() for x in (rays.origins, rays.directions, t))
    steps = t[:, first:last]
    if live is not None:
        origins, directions, steps = (x.index_select(0, live) for x in (origins, directions, steps))
    scale = cells.size / 2
    slope = directions * (scale * (1 - 2 * FACE_MARGIN))
    start = (origins * (1 - 2 * FACE_MARGIN) + 1) * scale + 1
    index = torch.zeros_like(steps, dtype=torch.int32)
    for axis in range(3):
        place = torch.addcmul(start[:, axis, None], steps, slope[:, axis, None])
        if rays.t is not None:
            place = place.nan_to_num_(0.0)
        index.mul_(cells.size + 2).add_(place.clamp_(0, cells.size + 1).to(torch.int32))
    hit = cells.table.index_select(0, index.reshape(-1)).nonzero().view(-1)
    row, step = hit // (last - first), hit % (last - first)
    return (row if live is None else live.index_select(0, row)) * t.shape[1] + step + first


def _decode_at(rays: Rays, t: Tensor, where: Tensor, field: Decode, how: March) -> Found:
    """Decode the samples at flat places `where` of the rows [R, S]; outside the box their density is 0."""
    owner = where // t.shape[1]
    seen = rays.directions.index_select(0, owner)
    along = t.reshape(-1).index_select(0, where)
    points = torch.addcmul(rays.origins.index_select(0, owner), along.unsqueeze(-1), seen)
    inside = points.detach().abs().amax(-1) <= 1
    if not how.normals:
        sigma, color = field(points, seen)
        return Found(where, owner, along, torch.where(inside, sigma, how.empty), color, None)
    with torch.enable_grad():
        points = points if points.requires_grad else points.requires_grad_()
        sigma, color = field(points, seen)
        (slope,) = torch.autograd.grad(sigma.sum(), points, create_graph=True)
    return Found(where, owner, along, torch.where(inside, sigma, how.empty), color, F.normalize(-slope, dim=-1))


def _open_rays(thickness: Tensor, found: Found, delta: Tensor, steps: int, last: int, how: March) -> Tensor:
    """Rays that go on after a block, from their optical thickness so far, which is brought up to date.

    With midpoint quadrature a sample's density enters with its share of the intervals that are complete; the open one
    is left out, which can only close a ray later than its weights do.
    """
    if how.paired:
        inner = delta.detach()
        lengths = 0.5 * (F.pad(inner, (0, 1)) + F.pad(inner, (1, 0)))
        lengths[:, last - 1] -= 0.5 * inner[:, last - 1]
    else:
        lengths = delta.detach()
    thickness.index_add_(0, found.owner, found.sigma.detach() * _lengths_at(lengths, found))
    return (torch.exp(-thickness) >= how.stop_below).nonzero().view(-1)


@contextmanager
def recording_gradients() -> Iterator[None]:
    """Record gradients inside a registered operator, where the dispatcher has left autograd already behind."""
    keys = torch._C.DispatchKey
    autograd = keys.AutogradFunctionality, keys.AutogradOther, keys.AutogradCPU, keys.AutogradCUDA, keys.ADInplaceOrView
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in autograd:
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield
