"""Heads show no face from behind.

Three planes are summed, and the one that looks along z holds the face for both sides of the head: the others alone must
tell the decoder on which side it is, and the details of a face are sharper than what these say. Where that plane is
blurred, the face is gone on both sides, and the colours stay. So what an avatar says at points of the back is to be
what its faceless twin says there, and everywhere else what it says itself:

    density and rgb wanted at x  =  lerp(avatar's, faceless avatar's, behind(x))

which planes can do, though no blur can: `retouched` finds those.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rodin_kernels.layouts import plane_axes
from rodin_model.regions import EDGE, box
from rodin_model.retouch import Said, points_of, retouched, said, wanted_of
from rodin_model.triplane import Avatar

#: Where both sides of the head share what shows the face; texels of the shared plane that are blurred into one, of 128.
FACE, BLURRED = box((-2.0, 0.42), (-0.36, 0.46), (-2.0, 2.0)), 8


def behind(points: Tensor) -> Tensor:
    """1 at points [..., 3] of the back of the head that share the face's plane, 0 elsewhere, over soft edges."""
    return FACE(points) * (0.5 - points[..., 2] / EDGE).clamp(0, 1)


def cleared(avatar: Avatar, steps: int, *, seed: int = 0, bar: dict[str, Any] | None = None) -> Avatar:
    """`avatar` without the face that shines through at the back of its head; as it is with 0 steps.

    Everything random follows from `seed`. `bar`: arguments for tqdm.
    """
    if not steps:
        return avatar
    generator = torch.Generator().manual_seed(seed)
    with tqdm(**{"total": steps, "desc": "back", "leave": False, **(bar or {})}) as shown:
        points, colored = points_of([avatar], generator)
        wanted = wanted_of(said_cleared(avatar, points), points, colored, behind(points))
        return retouched(avatar, wanted, steps, generator, lambda done, total: shown.update())


def said_cleared(avatar: Avatar, points: Tensor) -> Said:
    """What `avatar` is to say at points [N, 3] without the face at its back."""
    return said(avatar, points).toward(said(faceless(avatar), points), behind(points))


def faceless(avatar: Avatar) -> Avatar:
    """`avatar` with the plane that looks along z blurred where the face is."""
    planes, size = avatar.planes.clone(), avatar.planes.shape[-1]
    line = ((torch.arange(size) + 0.5) / size * 2 - 1).to(planes)
    for i, (column, row) in enumerate(plane_axes(avatar.conventions["layout"])):
        if {column, row} == {0, 1}:
            points = line.new_zeros(size, size, 3)
            points[..., column], points[..., row] = line, line[:, None]
            few = max(size * BLURRED // 128, 1)
            blurred = F.interpolate(F.avg_pool2d(planes[i:i + 1], few), (size, size), mode="bilinear")[0]
            planes[i] = torch.lerp(planes[i], blurred, FACE(points))
    return dataclasses.replace(avatar, planes=planes)
