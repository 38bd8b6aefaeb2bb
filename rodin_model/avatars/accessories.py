"""What an avatar wears on its head: glasses, hats, earrings and headphones."""

from __future__ import annotations

import torch
from torch import Tensor

from rodin_model.avatars import palette, sdf
from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.hair import BULK, hat_plane
from rodin_model.avatars.head import Head
from rodin_model.avatars.sdf import Place


class Glasses:
    """Two round frames with a bridge and temples; sunglasses have dark lenses."""

    def __init__(self, a: Attributes, head: Head, device: torch.device | str) -> None:
        self.a, self.head = a, head
        self.present = a.glasses != "none"
        self.dark = a.glasses == "sunglasses"
        self.radius = 0.132 * (1 + 0.05 * a.number("accessory_size"))
        self.tube = 0.0185 if self.dark else 0.0165
        self.z = max(head.eye[2] + 0.075, head.front + 0.02)
        frame = palette.accessory(a.number("accessory_color"))
        if self.dark:
            frame = palette.dark(frame, 0.55)
        elif palette.luminance(frame) > 0.5:
            frame = palette.dark(frame, 0.75)
        self.frame = torch.tensor(frame, device=device)
        self.lens = torch.tensor(palette.from_hex("15161c"), device=device)
        self.glint = torch.tensor(palette.from_hex("5d6b86"), device=device)

    def _lens_frame(self, p: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates around the middle of the nearer lens, on a front that wraps a little around the face."""
        x, y, _, _ = self.head.eye
        return p.m - max(x, self.radius + 0.022), p.y - y + 0.004, p.z - self.z + 0.30 * p.m * p.m

    def distance(self, p: Place) -> Tensor:
        """Signed distance; [N]."""
        u, v, w = self._lens_frame(p)
        r, middle = self.radius, max(self.head.eye[0], self.radius + 0.022)
        squared = 1.0 if not self.dark else 1.12
        around = sdf.length(u, v * squared)
        d = sdf.length(around - r, w) - self.tube
        if self.dark:
            d = torch.minimum(d, sdf.meet(around - r, w.abs() - 0.012, 0.01))
        d = torch.minimum(d, sdf.capsule(p.m, p.y, p.z, (0, self.head.eye[1] + 0.035, self.z), (middle - r + 0.01,
                          self.head.eye[1] + 0.025, self.z - 0.30 * (middle - r) ** 2), self.tube * 0.95))
        outer = middle + r
        qx, qy, qz, _ = self.head.ear
        temple = sdf.capsule(p.m, p.y, p.z, (outer, self.head.eye[1] + 0.03, self.z - 0.30 * outer * outer),
                             (qx + 0.045, qy + 0.085, qz), self.tube * 0.95)
        return torch.minimum(d, temple) * 0.92

    def color(self, p: Place) -> Tensor:
        """Frame colour; dark lenses with a soft diagonal light; [N, 3]."""
        color = self.frame.expand(p.x.shape[0], 3)
        if not self.dark:
            return color
        u, v, w = self._lens_frame(p)
        around = sdf.length(u, v * 1.12) - self.radius + self.tube
        local = torch.where(p.x > 0, u, -u)
        light = sdf.inside((local + v - 0.035).abs() - 0.020, 0.02) * (p.z > 0.1)
        lens = sdf.mix(self.lens.expand_as(color), self.glint, light * 0.7)
        return sdf.mix(color, lens, sdf.inside(around, 0.008))


class Hat:
    """Cap with a visor, beanie with a rolled edge and a bobble, or fedora with a ribbon."""

    def __init__(self, a: Attributes, head: Head, device: torch.device | str) -> None:
        self.a, self.head, self.kind = a, head, a.hat
        self.present = a.hat != "none"
        self.size = 1 + 0.04 * a.number("accessory_size")
        self.room = 0.050 + 0.45 * min(BULK[a.hair_style], 0.06)
        tint = a.number("accessory_color")
        if a.hat == "fedora":
            main = palette.blend(palette.from_hex("7b5a3c"), palette.from_hex("54545c"), 0.5 + 0.25 * tint)
            band = palette.from_hex("1e1c20")
        else:
            main = palette.accessory(-tint)
            band = palette.blend(main, (1, 1, 1), 0.75)
        self.main, self.band = torch.tensor(main, device=device), torch.tensor(band, device=device)
        self.top = 0.31 + 0.375 * (head.height - 1) * 0.55 + 0.375 * head.height
        self.bobble = min(self.top + self.room + 0.035, 0.795)

    def distance(self, p: Place) -> Tensor:
        """Signed distance; [N]."""
        above = -hat_plane(p)
        dome = self.head.base(p) - self.room
        if self.kind == "cap":
            d = sdf.meet(dome, above, 0.03)
            low = p.y - 0.425 + 0.22 * (p.z - 0.40) + 0.5 * p.x * p.x
            visor = sdf.meet(sdf.length(p.x, p.z - 0.42) - 0.31 * self.size, low.abs() - 0.026, 0.04) * 0.88
            button = sdf.sphere(p.x, p.y, p.z, (0, self.top + self.room, -0.05), 0.03)
            return torch.minimum(sdf.union(d, visor, 0.02), button)
        if self.kind == "beanie":
            ribs = 0.006 * torch.sin(torch.atan2(p.x, p.z + 0.05) * 30)
            d = sdf.meet(dome - 0.015 - 0.4 * ribs, above, 0.03)
            roll = sdf.meet(dome - 0.045 - ribs, (hat_plane(p) - 0.055).abs() - 0.075, 0.06)
            bobble = sdf.sphere(p.x, p.y, p.z, (0, self.bobble, -0.05), 0.078 * self.size)
            bobble = (bobble - 0.008 * sdf.bubbles(p.x, p.y, p.z, 60, 0.0)) * 0.85
            return torch.minimum(torch.minimum(d, roll) * 0.93, bobble)
        crown = sdf.meet(dome - 0.02, p.y - self.top - 0.070 + 0.9 * p.x * p.x, 0.06)
        tall = sdf.ellipsoid(p.x, p.y, p.z, (0, self.top - 0.15, -0.05), (0.365, 0.30, 0.39))
        crown = sdf.union(crown, sdf.meet(tall, p.y - self.top - 0.090 + 0.05 * torch.cos(6 * p.x), 0.06), 0.06)
        crown = sdf.meet(crown, above, 0.02)
        curl = hat_plane(p) - 0.015 - 0.28 * (p.x * p.x) + 0.10 * (p.z + 0.03) ** 2
        brim = sdf.meet(sdf.length(p.x / 1.02, (p.z + 0.03) * 0.98) - 0.63 * self.size, curl.abs() - 0.024, 0.03)
        return sdf.union(crown, brim, 0.03) * 0.88

    def color(self, p: Place) -> Tensor:
        """Colour with panels, ribs or a ribbon; [N, 3]."""
        color = self.main.expand(p.x.shape[0], 3)
        up = hat_plane(p)
        if self.kind == "cap":
            badge = torch.maximum(sdf.length(p.x, p.y - 0.545) - 0.062, 0.1 - p.z)
            return sdf.mix(color, self.band, sdf.inside(badge, 0.012))
        if self.kind == "beanie":
            bobble = sdf.sphere(p.x, p.y, p.z, (0, self.bobble, -0.05), 0.078 * self.size + 0.012)
            color = color * (0.92 + 0.08 * torch.sin(torch.atan2(p.x, p.z + 0.05) * 30))[:, None]
            roll = 0.30 * sdf.inside(up - 0.13, 0.01)
            return sdf.mix(color, self.band, torch.maximum(sdf.inside(bobble, 0.02), roll))
        crown = sdf.length(p.x, p.z + 0.04) - 0.52
        return sdf.mix(color, self.band, sdf.inside(torch.maximum((up - 0.085).abs() - 0.045, crown), 0.012))


class Earrings:
    """Studs or hoops of gold or silver."""

    def __init__(self, a: Attributes, head: Head, device: torch.device | str) -> None:
        self.present, self.kind = a.earrings != "none", a.earrings
        x, y, z, size = head.ear
        self.centre = (x + 0.030 * size, y - 0.098 * size, z + 0.050)
        self.size = 1 + 0.08 * a.number("accessory_size")
        self.rgb = torch.tensor(palette.GOLD if a.number("accessory_color") < 0.8 else palette.SILVER, device=device)

    def distance(self, p: Place) -> Tensor:
        """Signed distance; [N]."""
        x, y, z = self.centre
        if self.kind == "studs":
            return sdf.sphere(p.m, p.y, p.z, (x, y, z), 0.036 * self.size)
        radius = 0.078 * self.size
        return sdf.ring(p.m - x - 0.020, p.y - y + radius * 0.95, p.z - z, radius, 0.0175)

    def color(self, p: Place) -> Tensor:
        """Plain metal; [N, 3]."""
        return self.rgb.expand(p.x.shape[0], 3)


class Headphones:
    """A band over the head and two cups on the ears."""

    def __init__(self, a: Attributes, head: Head, device: torch.device | str) -> None:
        self.present = a.headphones != "none"
        self.head = head
        self.size = 1 + 0.04 * a.number("accessory_size")
        bulk = BULK[a.hair_style]
        self.top = min(0.31 + 0.585 * (head.height - 1) + 0.375 + 0.035 + 0.85 * bulk, 0.855)
        self.side = head.ear[0] + 0.065 + 0.70 * bulk
        main = palette.accessory(a.number("accessory_color") * 0.9 + 0.2)
        self.main, self.pad = torch.tensor(main, device=device), torch.tensor(palette.from_hex("2b2b30"), device=device)

    def _cups(self, p: Place) -> Tensor:
        _, y, z, _ = self.head.ear
        u = sdf.length(p.y - y - 0.035, p.z - z)
        return sdf.meet(u - 0.125 * self.size, (p.m - self.side - 0.012).abs() - 0.052, 0.045)

    def distance(self, p: Place) -> Tensor:
        """Signed distance; [N]."""
        _, y, z, _ = self.head.ear
        low = y + 0.10
        wide, tall = self.side + 0.015, self.top - low
        a, b = p.x / wide, (p.y - low).clamp_min(-0.02) / tall
        near = sdf.length(a, b)
        arch = near * (near - 1) / sdf.length(a / wide, b / tall).clamp_min(1e-4)
        band = sdf.meet(arch.abs() - 0.026, (p.z - z).abs() - 0.055, 0.03)
        band = torch.maximum(band, low - 0.02 - p.y)
        return torch.minimum(band, self._cups(p)) * 0.95

    def color(self, p: Place) -> Tensor:
        """Coloured shell, dark pads on the inside; [N, 3]."""
        color = self.main.expand(p.x.shape[0], 3)
        inner = torch.maximum(p.m - self.side - 0.004, p.y - self.head.ear[1] - 0.18)
        return sdf.mix(color, self.pad, sdf.inside(inner, 0.010))
