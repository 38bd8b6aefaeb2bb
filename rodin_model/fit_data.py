"""What avatars are fitted to: labelled points and pictures, and seeded draws of points and rays from them.

Every draw follows from its keys alone, one key of integers for each avatar, so an avatar's draws do not depend on the
batch that it is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from .avatars.dataset import shard_paths
from .cameras import box_near_far
from .noise import beside

#: Points further than this from the surface, in world units, are far: they tell where nothing is.
FAR = 0.1


#: A part of the box [-1, 1]^3: x, y and z each from .. to.
Box = tuple[tuple[float, float], ...]

EVERYWHERE: Box = ((-1.0, 1.0),) * 3
#: Where faces are, in box coordinates: x, y and z each from .. to.
FACE: Box = ((-0.42, 0.42), (-0.32, 0.46), (0.12, 1.0))
#: Where brows, eyes, nose and mouth are, in the middle of it.
FEATURES: Box = ((-0.32, 0.32), (-0.24, 0.32), (0.25, 1.0))
#: The back of the head, where the plane that shows the face would show it again.
BEHIND: Box = ((-0.42, 0.42), (-0.40, 0.50), (-1.0, -0.05))


class Cloud(NamedTuple):
    """Labelled points of A avatars: points [A, N, 3] in the box, signed distance [A, N], color [A, N, 3] uint8."""

    points: Tensor
    distance: Tensor
    color: Tensor


class Views(NamedTuple):
    """Pictures of A avatars: rgb [A, V, H, W, 3] uint8 on white, alpha and depth [A, V, H, W], cameras.

    alpha is uint8; depth is the distance along the unit ray, 0 where there is nothing; cam2world [A, V, 4, 4];
    intrinsics [A, V, 4] are fx, fy, cx, cy in pixels.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    cam2world: Tensor
    intrinsics: Tensor


class Rays(NamedTuple):
    """A draw from `Views`: origins, directions [A, R, 3], t [A, R, S], rgb [A, R, 3] on white, alpha [A, R]."""

    origins: Tensor
    directions: Tensor
    t: Tensor
    rgb: Tensor
    alpha: Tensor


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on all numbers of `key` (each at least 0) and on nothing else."""
    state = np.random.SeedSequence(key).generate_state(2)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


def draw_points(cloud: Cloud, count: int, keys: Sequence[tuple[int, ...]] | torch.Generator, far_share: float = 0.25,
                face_share: float = 0.0, feature_share: float = 0.0, behind_share: float = 0.0) -> Cloud:
    """`count` points of each avatar, drawn with replacement by that avatar's key; colours become float in [0, 1].

    A share of `far_share` is drawn among the points further than `FAR` from the surface, of the others one of
    `face_share` inside `FACE`, one of `feature_share` inside `FEATURES` and one of `behind_share` inside `BEHIND`, the
    rest anywhere. One generator in place of the keys, on the cloud's device, draws for all avatars at once, which keeps
    a GPU busy.
    """
    near = cloud.distance.abs() <= FAR
    masks = [near.logical_not(), near]
    ends = [0, int(count * far_share), count]
    gone = far_share
    for box, share in ((FACE, face_share), (FEATURES, feature_share), (BEHIND, behind_share)):
        if share:
            gone += share
            masks.insert(-1, near & _inside(cloud.points, box))
            ends.insert(-1, int(count * gone))
    if isinstance(keys, torch.Generator):
        drawn = torch.rand(len(near), count, generator=keys, dtype=torch.float64, device=keys.device)
    else:
        drawn = torch.stack([torch.rand(count, generator=generator(*key), dtype=torch.float64) for key in keys])
    drawn = drawn.to(near.device)
    chosen = torch.cat([_among(mask, drawn[:, a:b]) for mask, a, b in zip(masks, ends[:-1], ends[1:], strict=True)], 1)
    rows = torch.arange(len(near), device=near.device)[:, None]
    return Cloud(cloud.points[rows, chosen].float(), cloud.distance[rows, chosen].float(),
                 cloud.color[rows, chosen].float() / 255)


def draw_inside(cloud: Cloud, box: Box, reach: float, count: int, keys: Sequence[tuple[int, ...]]) -> Cloud:
    """`count` points of each avatar, by its key, among those inside `box` and no further than `reach` from the surface.

    They stay as they are stored.
    """
    mask = _inside(cloud.points, box) & (cloud.distance.abs() <= reach)
    u = torch.stack([torch.rand(count, generator=generator(*key), dtype=torch.float64) for key in keys])
    chosen, rows = _among(mask, u.to(mask.device)), torch.arange(len(mask))[:, None]
    return Cloud(*(part[rows, chosen] for part in cloud))


def _among(mask: Tensor, u: Tensor) -> Tensor:
    """For every u [A, P] in [0, 1) the place of a true entry of mask [A, N], or of any entry if none is true."""
    places = (mask | ~mask.any(1, keepdim=True)).cumsum(1, dtype=torch.int32)
    return torch.searchsorted(places, (u * places[:, -1:]).int() + 1)


def _inside(points: Tensor, box: Box) -> Tensor:
    low, high = points.new_tensor(box).T
    return ((points >= low) & (points <= high)).all(-1)


def read_cloud(shard: str | Path) -> Cloud:
    """The points of all avatars in one file of a data set, in the types they are stored in."""
    with safe_open(shard, framework="pt") as file:
        return Cloud(*(file.get_tensor(name) for name in ("points", "distance", "color")))


def read_views(shard: str | Path) -> Views:
    """The pictures, on white, of all avatars in one file of a data set, in the types they are stored in."""
    with safe_open(shard, framework="pt") as file:
        images, *others = (file.get_tensor(name) for name in ("images", "depth", "cam2world", "intrinsics"))
    return Views(on_white(images[..., :3], images[..., 3:]), images[..., 3], *others)


def on_white(color: Tensor, alpha: Tensor) -> Tensor:
    """Premultiplied colours before white, all bytes: what opacity leaves shows through; rounding ends at 255."""
    return color + (255 - alpha).minimum(255 - color)


def load_views(folder: str | Path) -> Views:
    """The pictures of all avatars of a data set; FileNotFoundError for none."""
    return Views(*(torch.cat(part) for part in zip(*map(read_views, shard_paths(folder)), strict=True)))


def load_clouds(folders: Sequence[str | Path]) -> Cloud:
    """The points of all avatars of some data sets, in the types they are stored in; FileNotFoundError for none."""
    clouds = [read_cloud(shard) for folder in folders for shard in shard_paths(folder)]
    return Cloud(*(torch.cat(part) for part in zip(*clouds, strict=True)))


def ray_depths(views: Views) -> Tensor:
    """The depth of every pixel [A, V, H, W], widened beyond the silhouette so that edges are seen."""
    return widened(views.depth.float())


def widened(depth: Tensor) -> Tensor:
    """Depths [..., H, W], 0 where there is nothing: there the largest within two pixels."""
    wide = F.max_pool2d(depth.reshape(-1, 1, *depth.shape[-2:]), 5, 1, 2).view_as(depth)
    return torch.where(depth > 0, depth, wide)


def stored_ray_depths(views: Views) -> Tensor:
    """`ray_depths` of a whole data set, float16, a few avatars at a time: in float32 they would fill the memory."""
    return torch.cat([ray_depths(Views(*(part[i:i + 64] for part in views))).half()
                      for i in range(0, len(views.rgb), 64)])


def draw_rays(views: Views, depths: Tensor, count: int, samples: int,
              keys: Sequence[tuple[int, ...]] | torch.Generator) -> Rays:
    """`count` rays of each avatar by its key, three quarters of them through or beside the avatar.

    Where the depth is known (`ray_depths`), two thirds of the samples lie within +- 0.08 of it and the rest between
    near and it; other rays are sampled evenly. All samples are jittered in their bins and sorted. One generator in
    place of the keys draws for all avatars at once.
    """
    a, v, h, w = views.alpha.shape
    device = views.rgb.device
    any_pixel, hit, u = (part.to(device) for part in _ray_randomness(keys, a, v * h * w, count, samples))
    hits = depths.reshape(a, -1) > 0
    index = torch.where(torch.arange(count, device=device) < count * 3 // 4, _among(hits, hit), any_pixel)
    rows = torch.arange(a, device=device)[:, None]
    view, pixel = index // (h * w), index % (h * w)
    matrix, lens = views.cam2world[rows, view], views.intrinsics[rows, view]
    x, y = (pixel % w + 0.5 - lens[..., 2]) / lens[..., 0], (pixel // w + 0.5 - lens[..., 3]) / lens[..., 1]
    local = torch.stack([x, y, torch.ones_like(x)], -1)
    directions = F.normalize((matrix[..., :3, :3] @ local[..., None])[..., 0], dim=-1)
    origins = matrix[..., :3, 3].contiguous()
    near, far = box_near_far(origins, directions)
    t = shell_samples(depths.reshape(a, -1)[rows, index], near, far, u)
    return Rays(origins, directions, t, views.rgb.reshape(a, -1, 3)[rows, index].float() / 255,
                views.alpha.reshape(a, -1)[rows, index].float() / 255)


def _ray_randomness(keys: Sequence[tuple[int, ...]] | torch.Generator, avatars: int, pixels: int, count: int,
                    samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Any pixel [A, count], a uniform number [A, count] that will choose one with a depth, and jitter [A, count, S]."""
    if isinstance(keys, torch.Generator):
        shape, on = (avatars, count), beside(keys)
        return torch.randint(pixels, shape, **on), torch.rand(shape, **on), torch.rand(*shape, samples, **on)
    parts = []
    for key in keys:
        random = generator(*key)
        parts.append((torch.randint(pixels, (count,), generator=random), torch.rand(count, generator=random),
                      torch.rand(count, samples, generator=random)))
    any_pixel, hit, jitter = (torch.stack(column) for column in zip(*parts, strict=True))
    return any_pixel, hit, jitter


def shell_samples(depth: Tensor, near: Tensor, far: Tensor, u: Tensor) -> Tensor:
    """Where rays are looked at, sorted [..., S]: `u` [..., S] in [0, 1) jitters the samples in their bins.

    Two thirds of them within +- 0.08 of `depth` [...] and the rest between `near` and there; where depth is 0, evenly
    from `near` to `far`.
    """
    samples = u.shape[-1]
    bins = torch.arange(samples, device=u.device) + u
    even = near[..., None] + (far - near)[..., None] * bins / samples
    close = samples * 2 // 3
    rest = samples - close
    shell_near = torch.maximum(depth - 0.08, near)
    shell_far = torch.minimum(depth + 0.08, far)
    front = near[..., None] + (shell_near - near)[..., None] * bins[..., :rest] / rest
    shell = shell_near[..., None] + (shell_far - shell_near)[..., None] * (bins[..., rest:] - rest) / close
    return torch.where((depth > 0)[..., None], torch.cat([front, shell], -1), even).sort(-1).values
