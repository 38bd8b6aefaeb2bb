"""Cameras: OpenCV cam2world matrices (x right, y down, z forward), intrinsics in pixels, pixel centres at +0.5.

The world: x to the right of a viewer who stands in front, y up, z towards that viewer. The avatar fills the box
[-1, 1]^3 and looks along +z, so yaw 0 sees the face and yaw +90 degrees looks from the +x side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Vertical field of view of the papers' cameras in degrees (RodinHD's mesh export), and a distance that fits the box.
FIELD_OF_VIEW = 28.84
RADIUS = 4.2


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: `cam2world` [4, 4], focal lengths and principal point in pixels, size in pixels."""

    cam2world: Tensor
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @classmethod
    def orbit(cls, yaw: float = 0.0, pitch: float = 0.0, size: int = 256, *, radius: float = RADIUS,
              field_of_view: float = FIELD_OF_VIEW, target: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Camera:
        """A square camera on a sphere around `target` (angles in degrees; positive pitch looks from above)."""
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel; got {size}")
        yaw_r, pitch_r = math.radians(yaw), math.radians(pitch)
        level = math.cos(pitch_r)
        away = torch.tensor([math.sin(yaw_r) * level, math.sin(pitch_r), math.cos(yaw_r) * level])
        forward = -away
        right = torch.tensor([math.cos(yaw_r), 0.0, -math.sin(yaw_r)])
        down = torch.linalg.cross(forward, right)
        matrix = torch.eye(4)
        matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = right, down, forward
        matrix[:3, 3] = torch.tensor(target) + radius * away
        focal = 0.5 * size / math.tan(math.radians(field_of_view) / 2)
        return cls(matrix, focal, focal, size / 2, size / 2, size, size)

    @property
    def yaw(self) -> float:
        """Degrees from the front about the axis upwards, in [-180, 180], as `orbit` takes them."""
        return math.degrees(math.atan2(float(self.cam2world[0, 3]), float(self.cam2world[2, 3])))

    def resized(self, width: int, height: int | None = None) -> Camera:
        """The same view on another number of pixels."""
        height = width if height is None else height
        sx, sy = width / self.width, height / self.height
        return Camera(self.cam2world, self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, width, height)

    def rays(self, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Origins and unit directions of all pixels, row by row: two tensors [height * width, 3], world units."""
        matrix = self.cam2world.to(device=device or self.cam2world.device, dtype=torch.float32)
        y, x = torch.meshgrid(torch.arange(self.height, device=matrix.device) + 0.5,
                              torch.arange(self.width, device=matrix.device) + 0.5, indexing="ij")
        local = torch.stack([(x - self.cx) / self.fx, (y - self.cy) / self.fy, torch.ones_like(x)], -1).reshape(-1, 3)
        directions = torch.nn.functional.normalize(local @ matrix[:3, :3].T, dim=-1)
        return matrix[:3, 3].expand_as(directions).contiguous(), directions

    def intrinsics(self) -> Tensor:
        """[4]: fx, fy, cx, cy in pixels."""
        return torch.tensor([self.fx, self.fy, self.cx, self.cy])


def box_near_far(origins: Tensor, directions: Tensor, bound: float = 1.0) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the box [-bound, bound]^3: two tensors [...]; near = far for rays that miss it."""
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    a, b = (-bound - origins) / safe, (bound - origins) / safe
    near = torch.minimum(a, b).amax(-1).clamp_min(0.0)
    far = torch.maximum(a, b).amin(-1)
    return near, torch.maximum(near, far)


def turntable(count: int, size: int = 256, *, pitch: float = 5.0) -> list[Camera]:
    """`count` cameras once around, starting in front."""
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    return [Camera.orbit(360.0 * i / count, pitch, size) for i in range(count)]


def sample_cameras(count: int, seed: int, size: int = 128) -> list[Camera]:
    """Seeded cameras over the useful part of the sphere: any yaw, the front more often, pitch -20 to 35 degrees."""
    rng = np.random.default_rng([0xCA3, seed])
    front = rng.random(count) < 0.5
    yaw = np.where(front, rng.uniform(-90, 90, count), rng.uniform(-180, 180, count))
    pitch = np.clip(rng.normal(5.0, 12.0, count), -20.0, 35.0)
    return [Camera.orbit(float(y), float(p), size) for y, p in zip(yaw, pitch, strict=True)]


def portrait_cameras(count: int, seed: int, size: int = 128, *, max_yaw: float = 70.0) -> list[Camera]:
    """Seeded cameras that see a face: any yaw up to `max_yaw` degrees to either side, pitch about 5, -10 to 20."""
    rng = np.random.default_rng([0xFACE, seed])
    yaw, pitch = rng.uniform(-max_yaw, max_yaw, count), np.clip(rng.normal(5.0, 5.0, count), -10.0, 20.0)
    return [Camera.orbit(float(y), float(p), size) for y, p in zip(yaw, pitch, strict=True)]


def face_of(images: Tensor) -> Tensor:
    """Where the front camera has the face: half as many columns and rows of pictures [B, C, S, S].

    These are the middle half of the columns, and the rows from 23 % to 73 %.
    """
    size = images.shape[-1]
    top, left, half = round(0.23 * size), size // 4, size // 2
    return images[:, :, top:top + half, left:left + half]
