"""Curly hair: round locks that cover the scalp like a cloud, each coiled around its own middle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rodin_model.avatars import sdf
from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.head import Head
from rodin_model.avatars.sdf import Place
from rodin_model.avatars.tape import recorded

#: Locks on the whole sphere; those over the face and below the nape are left out.
_LOCKS = 54


class Curls:
    """The locks of one avatar: where they sit follows the head's size, so that curls lie alike on all heads.

    Which lock sits where must be the same for everybody: a pattern that slides over the head from avatar to avatar is
    noise to whoever learns from the pictures, and its average is a smooth cap.
    """

    def __init__(self, a: Attributes, head: Head, volume: float, line: float, device: torch.device | str) -> None:
        turn = math.pi * (3 - math.sqrt(5))
        up = [1 - 2 * (i + 0.5) / _LOCKS for i in range(_LOCKS)]
        axes = [(math.sqrt(1 - u * u) * math.sin(turn * i), u, math.sqrt(1 - u * u) * math.cos(turn * i))
                for i, u in enumerate(up)]
        radii = (0.455 * head.width, 0.445 * head.height, 0.465 * head.depth)
        height = 0.255 + 0.2 * (head.height - 1)
        front = 0.385 + line + 0.25 * (head.height - 1)
        low = -0.17 - 0.02 * a.number("hair_length")
        keep = []
        for i, (x, y, z) in enumerate(axes):
            centre = (radii[0] * x, height + radii[1] * y, -0.07 + radii[2] * z)
            face = centre[2] > 0.12 and centre[1] < front and abs(centre[0]) < 0.36 * head.width
            if not face and centre[1] > low + 0.15 * centre[2]:
                keep.append((i, centre))
        self.centres = torch.tensor([centre for _, centre in keep], device=device)
        self.axes = torch.tensor([axes[i] for i, _ in keep], device=device)
        #: big and small locks take turns
        sizes = [0.112 + 0.018 * math.sin(2.4 * i) for i, _ in keep]
        self.radii = torch.tensor(sizes, device=device) * volume
        side = torch.stack([self.axes[:, 2], torch.zeros_like(self.axes[:, 0]), -self.axes[:, 0]], -1)
        self.right = side / side.norm(dim=-1, keepdim=True).clamp_min(1e-4)
        self.above = torch.linalg.cross(self.axes, self.right)

    def _near(self, p: Place) -> tuple[Tensor, Tensor]:
        """Distances to the surfaces of the two nearest locks [N, 2] and their numbers [N, 2]."""
        points = torch.stack([p.x, p.y, p.z], -1)
        away = torch.cdist(points, self.centres.to(points), compute_mode="donot_use_mm_for_euclid_dist")
        found = (away - self.radii.to(points)).topk(2, largest=False)
        return found.values, found.indices

    def distance(self, p: Place) -> Tensor:
        """Signed distance to all locks; [N]."""
        if recorded(p.x) is not None:
            return self._recorded(p)[0]
        return self._near(p)[0][:, 0]

    def shade(self, p: Place) -> Tensor:
        """Brightness: dark where two locks touch, a coil on each; [N]."""
        if recorded(p.x) is not None:
            return self._recorded_shade(p)
        near, number = self._near(p)
        lock = number[:, 0]
        points = torch.stack([p.x, p.y, p.z], -1)
        out = points - self.centres.to(points)[lock]
        out = out / out.norm(dim=-1, keepdim=True).clamp_min(1e-4)
        along = (out * self.axes.to(points)[lock]).sum(-1).clamp(-1, 1)
        round_it = torch.atan2((out * self.above.to(points)[lock]).sum(-1), (out * self.right.to(points)[lock]).sum(-1))
        coil = torch.cos(6.5 * torch.acos(along) - round_it)
        groove = (1 - (near[:, 1] - near[:, 0]) / 0.035).clamp(0, 1)
        return 1.04 + 0.13 * coil - 0.45 * groove

    def _recorded(self, p: Place) -> tuple[Any, Any, Any]:
        """`_near` as values on a tape: both distances, and the number of the nearest lock."""
        first: Any = None
        second: Any = None
        lock: Any = None
        for i, (centre, radius) in enumerate(zip(self.centres.tolist(), self.radii.tolist(), strict=True)):
            d = sdf.sphere(p.x, p.y, p.z, centre, radius)
            if first is None:
                first, second, lock = d, d + 9.0, torch.zeros_like(d)
                continue
            lock = torch.where(d < first, i, lock)
            second = torch.minimum(second, torch.maximum(first, d))
            first = torch.minimum(first, d)
        return first, second, lock

    def _recorded_shade(self, p: Place) -> Any:
        """`shade` as a value on a tape."""
        first, second, lock = self._recorded(p)

        def of_lock(table: Tensor) -> list[Any]:
            return [lock.tape.gather(lock, column) for column in table.T.tolist()]

        def dot(a: list[Any], b: list[Any]) -> Any:
            return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]

        out = [at - middle for at, middle in zip((p.x, p.y, p.z), of_lock(self.centres), strict=True)]
        far = sdf.length(out[0], out[1], out[2]).clamp_min(1e-4)
        out = [at / far for at in out]
        along = dot(out, of_lock(self.axes)).clamp(-1, 1)
        round_it = torch.atan2(dot(out, of_lock(self.above)), dot(out, of_lock(self.right)))
        coil = torch.cos(6.5 * torch.acos(along) - round_it)
        groove = (1 - (second - first) / 0.035).clamp(0, 1)
        return 1.04 + 0.13 * coil - 0.45 * groove
