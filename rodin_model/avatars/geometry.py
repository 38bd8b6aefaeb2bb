"""One avatar as a signed-distance field with colour: what pictures, points and the data set are made from.

The field is the union of parts (skin, eyes, brows, hair, beard, garment, trim, glasses, hat, earrings, headphones).
A grid of distances, exact near the surface, is baked on first use, so that rays can step and light can be computed with
lookups; the exact field is evaluated only where a ray lands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from rodin_model.avatars.accessories import Earrings, Glasses, Hat, Headphones
from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.clothes import Clothes
from rodin_model.avatars.face import Face
from rodin_model.avatars.fused import FusedField, can_run
from rodin_model.avatars.hair import FacialHair, Hair
from rodin_model.avatars.head import Head
from rodin_model.avatars.sdf import Place

#: Nodes of the baked grid along each axis of the box [-1, 1]^3, and the edge of the blocks in which it is refined.
GRID, BLOCK = 128, 8
#: The parts are modelled in their own unit; `SCALE` box units make one of it, `DROP` lower.
SCALE, DROP = 1.08, 0.03
#: Gloss of the garments and hair styles that differ from the rest.
_SHINE = {"leather jacket": 0.42, "afro": 0.03, "buzz cut": 0.03}
_KEY = torch.nn.functional.normalize(torch.tensor([-0.40, 0.62, 0.68]), dim=0)
_HALF = torch.nn.functional.normalize(torch.tensor([-0.25, 0.45, 0.86]), dim=0)
#: The corners of a tetrahedron, between which differences give a slope.
_CORNERS = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])


@lru_cache(maxsize=16)
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Key light, half vector of the gloss, and corners on a device, copied there once."""
    return _KEY.to(device), _HALF.to(device), _CORNERS.to(device)


def _model(points: Tensor) -> Place:
    """Points of the box in the unit in which the parts are modelled."""
    return _place(*points.T.contiguous().unbind(0))


def _place(x: Any, y: Any, z: Any) -> Place:
    """The same of three coordinates, which may be recorded."""
    return Place(x / SCALE, y / SCALE + DROP / SCALE, z / SCALE)


@dataclass(frozen=True)
class Part:
    """One material: its signed distance, its colour, how much it shines, and the tint of its shadows."""

    name: str
    distance: Callable[[Place], Tensor]
    color: Callable[[Place], Tensor]
    gloss: float = 0.0
    shadow: tuple[float, float, float] = (0.56, 0.55, 0.62)


def _nearest(parts: list[Part], p: Place) -> tuple[Tensor, Tensor]:
    """Signed distance in the box, and the number of the part that it belongs to; both may be recorded."""
    best = parts[0].distance(p)
    which = torch.zeros_like(best, dtype=torch.long)
    for i, part in enumerate(parts[1:], 1):
        d = part.distance(p)
        which = torch.where(d < best, i, which)
        best = torch.minimum(best, d)
    return best * SCALE, which


class AvatarField:
    """Signed distance and shaded colour of the avatar that `attributes` describe, inside |coordinate| <= 0.93.

    `fused` records the formulas and runs them by one kernel each (see `fused.FusedField`), to the same numbers but for
    rounding; left out, it is so on a GPU with Triton.
    """

    def __init__(self, attributes: Attributes, device: torch.device | str = "cpu", *,
                 fused: bool | None = None) -> None:
        self.attributes, self.device = attributes, torch.device(device)
        recorded = can_run(self.device) if fused is None else fused
        self.parts = self._assemble(attributes, torch.device("cpu") if recorded else self.device)
        self.fused = FusedField(self.parts, _place, _nearest, self.device) if recorded else None
        self._chunk = 16_384 if self.device.type == "cpu" else 2_000_000

    def _assemble(self, a: Attributes, device: torch.device) -> list[Part]:
        """The parts that this avatar has, with their constants on `device`."""
        head = Head(a)
        face, clothes = Face(a, head, device), Clothes(a, head, device)
        warm = (0.66, 0.52, 0.50)
        parts = [Part("skin", lambda p: torch.minimum(head.skin(p), clothes.body(p)), face.skin, 0.10, warm),
                 Part("eyes", head.eyes, face.eyes, 0.0, (0.90, 0.88, 0.92)),
                 Part("brows", head.brows, face.brows),
                 Part("garment", clothes.garment, clothes.garment_color, _SHINE.get(a.clothing, 0.03))]
        if clothes.has_trim and a.clothing != "dress":
            parts.append(Part("trim", clothes.trim, clothes.trim_color, 0.05))
        hair, beard = Hair(a, head, device), FacialHair(a, head, device)
        if hair.present:
            parts.append(Part("hair", hair.distance, hair.color, _SHINE.get(a.hair_style, 0.16)))
        if beard.present:
            parts.append(Part("beard", beard.distance, beard.color, 0.05))
        for name, piece, gloss in (("glasses", Glasses(a, head, device), 0.35), ("hat", Hat(a, head, device), 0.04),
                                   ("earrings", Earrings(a, head, device), 0.6),
                                   ("headphones", Headphones(a, head, device), 0.35)):
            if piece.present:
                parts.append(Part(name, piece.distance, piece.color, gloss))
        return parts

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance at `points` [N, 3]: [N], negative inside, safe to step by; no gradient is recorded."""
        return self.nearest(points)[0]

    @torch.no_grad()
    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [N] and the index [N] (into `parts`) of the part that it belongs to."""
        points = self._check(points)
        if self.fused is not None:
            return self.fused.nearest(points)
        results = [_nearest(self.parts, _model(chunk)) for chunk in points.split(self._chunk)]
        if not results:
            return points.new_zeros(0), torch.zeros(0, dtype=torch.long, device=self.device)
        return torch.cat([d for d, _ in results]), torch.cat([i for _, i in results])

    @torch.no_grad()
    def color(self, points: Tensor, which: Tensor | None = None) -> Tensor:
        """Shaded colour at `points` [N, 3] at or near the surface: [N, 3] in [0, 1], the same from every side.

        The light is soft and baked in: colour times a wrapped cosine, open sky and a faint gloss for a viewer in
        front. `which` [N] saves the search for the nearest part where `nearest` has already been called.
        """
        points = self._check(points)
        if which is None:
            which = self.nearest(points)[1]
        if self.fused is not None:
            return self._light(points, *self.fused.albedo(points, which))
        albedo, gloss, shadow = torch.zeros_like(points), points.new_zeros(len(points)), torch.ones_like(points)
        for i, part in enumerate(self.parts):
            index = (which == i).nonzero()[:, 0]
            for some in index.split(self._chunk):
                if len(some):
                    albedo[some] = part.color(_model(points[some]))
            gloss[index] = part.gloss
            shadow[index] = points.new_tensor(part.shadow)
        return self._light(points, albedo.clamp(0, 1), gloss, shadow)

    def _light(self, points: Tensor, albedo: Tensor, gloss: Tensor, shadow: Tensor) -> Tensor:
        """Soft light on `albedo`: wrapped key light, occlusion read from the baked distances, gloss."""
        key, half, _ = _constants(points.device)
        normal = self.normal(points)
        wrapped = (0.42 + 0.58 * (normal @ key)).clamp(0, 1)
        open_sky = sum(w * (self.lookup(points + normal * h) / h).clamp(0, 1) for h, w in ((0.05, 0.45), (0.13, 0.55)))
        light = (0.12 + 0.88 * wrapped) * (0.50 + 0.50 * open_sky)
        shine = (normal @ half).clamp_min(0) ** 14 * gloss * (0.4 + 0.6 * open_sky)
        color = albedo * (shadow + (1.06 - shadow) * light[:, None])
        return (color + shine[:, None] * (1 - 0.6 * color)).clamp(0, 1)

    def normal(self, points: Tensor) -> Tensor:
        """Unit normals [N, 3] at `points` [N, 3], from differences of the baked distances."""
        h = 1.6 / GRID
        corners = _constants(points.device)[2]
        around = (points[None] + h * corners[:, None]).reshape(-1, 3)
        values = self.lookup(around).reshape(4, -1)
        return torch.nn.functional.normalize(values.T @ corners, dim=-1)

    def lookup(self, points: Tensor) -> Tensor:
        """The baked distance at `points` [N, 3], trilinear: [N]."""
        where = points.reshape(1, 1, 1, -1, 3)
        return torch.nn.functional.grid_sample(self.grid[None, None], where, mode="bilinear", padding_mode="border",
                                               align_corners=True).reshape(-1)

    @cached_property
    @torch.no_grad()
    def grid(self) -> Tensor:
        """Distances on GRID^3 nodes, [z, y, x]: exact in blocks that the surface may cross, interpolated elsewhere."""
        device, blocks = self.device, GRID // BLOCK
        axis = torch.linspace(-1, 1, GRID, device=device)
        middle = axis.reshape(blocks, BLOCK).mean(1)
        z, y, x = torch.meshgrid(middle, middle, middle, indexing="ij")
        coarse = self.distance(torch.stack([x, y, z], -1).reshape(-1, 3)).reshape(blocks, blocks, blocks)
        fine = torch.nn.functional.interpolate(coarse[None, None], scale_factor=BLOCK, mode="trilinear")[0, 0]
        reach = 3 ** 0.5 * BLOCK / GRID + 0.03
        active = (coarse.abs() < reach).nonzero()
        step = torch.arange(BLOCK, device=device)
        k, j, i = torch.meshgrid(step, step, step, indexing="ij")
        index = active[:, None] * BLOCK + torch.stack([k, j, i], -1).reshape(1, -1, 3)
        k, j, i = index.reshape(-1, 3).unbind(-1)
        fine[k, j, i] = self.distance(torch.stack([axis[i], axis[j], axis[k]], -1))
        return fine

    def _check(self, points: Tensor) -> Tensor:
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"points must have shape [N, 3]; got {tuple(points.shape)}")
        return points.to(self.device, torch.float32)
