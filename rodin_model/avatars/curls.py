"""Curly hair: round locks that cover the scalp like a cloud, each coiled around its own middle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.head import Head
from rodin_model.avatars.sdf import Place

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
        return self._near(p)[0][:, 0]

    def shade(self, p: Place) -> Tensor:
        """Brightness: dark where two locks touch, a coil on each; [N]."""
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
