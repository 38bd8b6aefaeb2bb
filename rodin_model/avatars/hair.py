"""Hair of the head and of the face: shells over the skull, style by style, cut by the face, the ears and the hat."""

from __future__ import annotations

import torch
from torch import Tensor

from rodin_model.avatars import palette, sdf
from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.curls import Curls
from rodin_model.avatars.face import beard_mask, hair_rgb, skin_rgb
from rodin_model.avatars.head import Head
from rodin_model.avatars.sdf import Place

#: How far each style stands off the skull beside the ears; headphones and hats make room for it.
BULK = {"bald": 0.0, "buzz cut": 0.02, "short": 0.05, "side part": 0.055, "curly": 0.12, "afro": 0.15, "bob": 0.09,
        "long straight": 0.075, "long wavy": 0.10, "ponytail": 0.035, "bun": 0.035, "mohawk": 0.015}
_LONG = ("bob", "long straight", "long wavy")


def hat_plane(p: Place) -> Tensor:
    """Signed height over the edge of every hat, higher in front; [N]."""
    return p.y - 0.375 - 0.10 * p.z


class Hair:
    """The hair of one avatar: `distance` and `color`; a bald head has none (`present` is False)."""

    def __init__(self, a: Attributes, head: Head, device: torch.device | str) -> None:
        self.a, self.head, self.style = a, head, a.hair_style
        self.present = a.hair_style != "bald"
        self.volume = 1 + 0.10 * a.number("hair_volume")
        self.longer = a.number("hair_length")
        self.phase = 1.5 * a.number("hair_phase")
        self.line = 0.012 * a.number("hair_line") + (0.02 if a.age == "elderly" else 0.0)
        rgb = hair_rgb(a)
        if self.style in ("buzz cut", "mohawk"):
            self.sides = torch.tensor(palette.blend(rgb, skin_rgb(a), 0.25), device=device)
        self.rgb = torch.tensor(rgb, device=device)
        if self.style == "curly":
            self.curls = Curls(a, head, self.volume, self.line, device)
        self.tie = torch.tensor(palette.accessory(a.number("accessory_color")), device=device)

    def distance(self, p: Place) -> Tensor:
        """Signed distance to all hair of the head, already cut by hat and ears; [N]."""
        styles = {"buzz cut": self._buzz, "short": self._short, "side part": self._side_part, "curly": self._curly,
                  "afro": self._afro, "bob": self._bob, "long straight": self._long, "long wavy": self._long,
                  "ponytail": self._ponytail, "bun": self._bun, "mohawk": self._mohawk}
        d = styles[self.style](p)
        if self.a.hat != "none":
            d = sdf.meet(d, hat_plane(p) - 0.015, 0.02)
        qx, qy, qz, size = self.head.ear
        if self.a.headphones != "none":
            d = sdf.meet(d, -sdf.ellipsoid(p.m, p.y, p.z, (qx + 0.10, qy + 0.04, qz), (0.13, 0.15, 0.15)), 0.03)
        if self.a.earrings != "none" and BULK[self.style] > 0.06:
            room = sdf.ellipsoid(p.m, p.y, p.z, (qx + 0.13, qy - 0.09, qz + 0.07), (0.15, 0.17, 0.13))
            d = sdf.meet(d, -room, 0.03)
        return d

    def color(self, p: Place) -> Tensor:
        """Colour with strands, curls or stubble; [N, 3]."""
        style = self.style
        if style == "curly":
            shade = self.curls.shade(p)
        elif style == "afro":
            shade = 0.86 + 0.20 * sdf.bubbles(p.x, p.y, p.z, 44.0, self.phase)
        elif style == "buzz cut":
            shade = 0.95 + 0.10 * torch.sin(80 * p.x) * torch.sin(80 * p.y) * torch.sin(80 * p.z)
            return self.sides * shade[:, None]
        elif style in _LONG:
            wave = 0.05 * torch.sin(13 * p.y + self.phase) if style == "long wavy" else 0.0
            shade = 0.94 + 0.09 * torch.sin(46 * (torch.atan2(p.x, p.z + 0.1) * 0.45 + wave) + self.phase)
        else:
            along = {"short": 1.15 * p.x + 0.10 * torch.sin(7 * p.z), "side part": 0.95 * p.x + 0.45 * p.y}
            across = along.get(style, 0.7 * p.x + 0.35 * torch.sin(2.4 * p.z + 1.2 * p.y))
            shade = 0.94 + 0.09 * torch.sin(44 * across + self.phase)
        color = self.rgb * shade[:, None]
        if style == "mohawk":
            return torch.where((self._crest(p) < 0.012)[:, None], color, self.sides.expand_as(color))
        if style == "ponytail":
            return sdf.mix(color, self.tie, sdf.inside(self._tie(p) - 0.006, 0.012))
        return color

    def _face_cut(self, p: Place, line: float = 0.43, wide: float = 0.60) -> Tensor:
        """Distance to the ellipsoid that keeps the face free up to a hair line at height `line`."""
        line = line + self.line + 0.25 * (self.head.height - 1)
        tall = (line + 0.02) / 0.93
        return sdf.ellipsoid(p.x, p.y, p.z, (0, -0.02, 0.47), (wide, tall, 0.52))

    def _cap(self, p: Place, thick: float, line: float = 0.43, ears: bool = True, nape: float = -0.20,
             spikes: float = 0.0) -> Tensor:
        """A shell of `thick` over the skull with the face, the ears and everything below the nape cut off."""
        d = self.head.base(p) - thick * self.volume
        cut = self._face_cut(p, line)
        if spikes:
            cut = (cut + spikes * torch.sin(30 * p.x + self.phase)) * 0.85
        d = sdf.meet(d, -cut, 0.05)
        if ears:
            qx, qy, qz, size = self.head.ear
            below = (nape + 0.40 * (p.z + 0.45) - p.y) * 0.92
            hole = sdf.ellipsoid(p.m, p.y, p.z, (qx + 0.03, qy, qz + 0.012), (0.13, 0.145 * size, 0.110 * size))
            d = sdf.meet(sdf.meet(d, below, 0.04), -hole, 0.03)
        return d

    def _buzz(self, p: Place) -> Tensor:
        return self._cap(p, 0.020)

    def _short(self, p: Place) -> Tensor:
        """A cap with a tousled tuft over the forehead."""
        d = self._cap(p, 0.050, 0.415, spikes=0.022)
        top = 0.62 + 0.3 * (self.head.height - 1)
        tuft = sdf.ellipsoid(p.x, p.y - 0.10 * p.x, p.z, (0.02, top, 0.16),
                             (0.27 * self.volume, 0.135 * self.volume, 0.25))
        tuft = (tuft + 0.024 * torch.sin(26 * p.x + 9 * p.z + self.phase)) * 0.82
        cut = (self._face_cut(p, 0.40) + 0.022 * torch.sin(30 * p.x + self.phase)) * 0.85
        return sdf.union(d, sdf.meet(tuft, -cut, 0.03), 0.06)

    def _side_part(self, p: Place) -> Tensor:
        """Combed over from a parting at the left of the picture: smooth, high on one side."""
        d = self._cap(p, 0.050, 0.44)
        top = 0.60 + 0.3 * (self.head.height - 1)
        sweep = sdf.ellipsoid(p.x, p.y + 0.35 * (p.x - 0.10), p.z, (0.12, top + 0.01, 0.08),
                              (0.30 * self.volume, 0.150 * self.volume, 0.32)) * 0.9
        fringe = sdf.capsule(p.x, p.y, p.z, (-0.10, top - 0.02, 0.30), (0.29, 0.40, 0.24), 0.085 * self.volume, 0.060)
        d = sdf.union(d, sdf.union(sweep, fringe, 0.06), 0.04)
        groove = sdf.capsule(p.x, p.y, p.z, (-0.175, 0.44, 0.37), (-0.15, 0.78, -0.10), 0.075, 0.030)
        return sdf.meet(d, -groove, 0.03) * 0.94

    def _curly(self, p: Place) -> Tensor:
        """A cloud of round locks that falls over the ears and the forehead."""
        d = self.head.base(p) - 0.06
        d = sdf.meet(d, -self._face_cut(p, 0.43, 0.58), 0.05)
        d = sdf.meet(d, (-0.16 + 0.15 * p.z - p.y), 0.08)
        return sdf.union(d, self.curls.distance(p), 0.015)

    def _afro(self, p: Place) -> Tensor:
        """A big soft ball."""
        r = 0.515 + 0.013 * (self.volume - 1) / 0.1
        d = sdf.ellipsoid(p.x, p.y, p.z, (0, 0.315, -0.09), (r * 1.05, r, r * 0.98))
        cut = sdf.ellipsoid(p.x, p.y, p.z, (0, 0.0, 0.52), (0.40, 0.46 + self.line, 0.56))
        d = sdf.meet(d, -cut, 0.06)
        return (d - 0.010 * sdf.bubbles(p.x, p.y, p.z, 44.0, self.phase)) * 0.86

    def _bob(self, p: Place) -> Tensor:
        """Straight hair to the jaw with a fringe."""
        end = -0.25 - 0.030 * self.longer
        fall = sdf.ellipsoid(p.x, p.y, p.z, (0, 0.10, -0.09), (0.495 * self.volume * self.head.width, 0.62, 0.46))
        d = sdf.union(self.head.base(p) - 0.065 * self.volume, fall, 0.08)
        d = sdf.meet(d, end - p.y - 0.10 * p.z, 0.07)
        return sdf.meet(d, -self._curtain(p, 0.345), 0.04)

    def _curtain(self, p: Place, line: float, half: float = 0.315) -> Tensor:
        """What long hair leaves free: the face, from the hair line down, and the throat."""
        line = line + self.line + 0.25 * (self.head.height - 1)
        half = half * self.head.width
        opening = sdf.box(p.x, p.y, p.z, (0, (line - 1.2) / 2, 0.56), (half, (line + 1.2) / 2, 0.52), 0.24)
        return torch.minimum(opening, self._face_cut(p, line - self.line, half * 1.12))

    def _long(self, p: Place) -> Tensor:
        """Long hair over the back and beside the neck; with waves if the style says so."""
        wavy = self.style == "long wavy"
        end = -0.66 - 0.05 * self.longer
        half = (0.455 if wavy else 0.425) * self.volume * self.head.width
        y = p.y
        swing = 0.045 * torch.sin(13 * y + self.phase) * (0.45 - y).clamp(0, 0.5) * 2 if wavy else 0.0
        m = p.m + swing
        curtain = sdf.box(m, y, p.z + (0.5 * swing if wavy else 0.0), (0, (0.35 + end) / 2, -0.15),
                          (half, (0.35 - end) / 2, 0.27), 0.19)
        d = sdf.union(self.head.base(p) - (0.085 if wavy else 0.060) * self.volume, curtain, 0.12)
        d = sdf.meet(d, -self._curtain(p, 0.46), 0.05)
        parting = sdf.capsule(p.x, p.y, p.z, (0.02, 0.50, 0.38), (0.02, 0.80, -0.06), 0.024)
        return sdf.meet(d, -parting, 0.03) * (0.80 if wavy else 0.98)

    def _tail_root(self) -> tuple[float, float, float]:
        return (0.06, 0.10, -0.47) if self.a.hat != "none" else (0.13, 0.57, -0.37)

    def _tie(self, p: Place) -> Tensor:
        return sdf.sphere(p.x, p.y, p.z, self._tail_root(), 0.085)

    def _ponytail(self, p: Place) -> Tensor:
        """Combed back tightly into a tail that swings out to one side, so that it shows from the front."""
        d = self._cap(p, 0.036, 0.455, nape=-0.12)
        x, y, z = self._tail_root()
        drop = 0.04 * self.longer
        if self.a.hat == "none":
            bends = ((x, y, z), (0.34, 0.60, -0.44), (0.50, 0.34, -0.42), (0.53, 0.02 - drop, -0.36),
                     (0.45, -0.24 - 1.5 * drop, -0.30))
        else:
            bends = ((x, y, z), (0.26, 0.05, -0.52), (0.44, -0.12, -0.42), (0.52, -0.30 - 0.5 * drop, -0.32),
                     (0.48, -0.46 - drop, -0.26))
        sizes = (0.065, 0.095 * self.volume, 0.120 * self.volume, 0.100 * self.volume, 0.030)
        tail = sdf.capsule(p.x, p.y, p.z, bends[0], bends[1], sizes[0], sizes[1])
        for i in (1, 2, 3):
            tail = sdf.union(tail, sdf.capsule(p.x, p.y, p.z, bends[i], bends[i + 1], sizes[i], sizes[i + 1]), 0.06)
        return torch.minimum(sdf.union(d, tail * 0.95, 0.03), self._tie(p))

    def _bun(self, p: Place) -> Tensor:
        """Combed up into a round knot on top, or at the nape under a hat."""
        d = self._cap(p, 0.036, 0.455, nape=-0.12)
        top = 0.31 + 0.2 * (self.head.height - 1) + 0.375 * self.head.height
        place = (0.0, min(top + 0.080, 0.732), -0.06) if self.a.hat == "none" else (0.0, -0.02, -0.50)
        r = 0.135 * (1 + 0.5 * (self.volume - 1))
        x, y, z = p.x - place[0], p.y - place[1], p.z - place[2]
        knot = sdf.ellipsoid(x, y, z, (0, 0, 0), (r * 1.15, r, r * 1.15))
        knot = (knot - 0.010 * torch.sin(5 * torch.atan2(x, z) + 30 * y + self.phase)) * 0.90
        return sdf.union(d, knot, 0.035)

    def _crest(self, p: Place) -> Tensor:
        """The standing strip of a mohawk, with spikes."""
        angle = torch.atan2(p.z + 0.05, p.y - 0.24)
        radius = sdf.length(p.z + 0.05, p.y - 0.24)
        outer = 0.565 + 0.012 * (self.volume - 1) / 0.1 + 0.026 * torch.cos(9 * angle + 0.4 * self.phase)
        over = sdf.meet(radius - outer, (angle + 0.45).abs() * 0.5 - 0.72, 0.06)
        return sdf.meet(over, p.x.abs() - 0.098, 0.06) * 0.88

    def _mohawk(self, p: Place) -> Tensor:
        d = torch.maximum(self._crest(p), -self.head.base(p) - 0.05)
        return sdf.union(self._cap(p, 0.012), d, 0.02)


class FacialHair:
    """Moustache, goatee or beard; stubble is only a colour and belongs to the face."""

    def __init__(self, a: Attributes, head: Head, device: torch.device | str) -> None:
        self.a, self.head, self.style = a, head, a.facial_hair
        self.present = a.facial_hair not in ("none", "stubble")
        self.longer = a.number("beard_length")
        rgb = palette.blend(hair_rgb(a), palette.from_hex("6a3a14"), 0.22)
        if a.age == "elderly":
            rgb = palette.blend(rgb, (0.82, 0.82, 0.82), 0.35)
        self.rgb = torch.tensor(rgb, device=device)

    def distance(self, p: Place) -> Tensor:
        """Signed distance, with the lips left free; [N]."""
        head = self.head
        gap, lips, _ = head.mouth(p)
        free = torch.maximum(torch.minimum(lips, gap) - 0.014, 0.1 - p.z)
        parts = []
        if self.style in ("moustache", "goatee", "short beard", "full beard"):
            parts.append(self._moustache(p))
        if self.style == "goatee":
            parts.append(self._goatee(p))
        if self.style in ("short beard", "full beard"):
            parts.append(self._beard(p, free))
        d = parts[0]
        for part in parts[1:]:
            d = sdf.union(d, part, 0.03)
        return (d - 0.004 * torch.sin(70 * p.x) * torch.sin(60 * p.y)) * 0.93

    def color(self, p: Place) -> Tensor:
        """Colour with short strands; [N, 3]."""
        shade = 0.93 + 0.10 * torch.sin(75 * p.x + 14 * p.y) * torch.cos(20 * p.y)
        return self.rgb * shade[:, None]

    def _moustache(self, p: Place) -> Tensor:
        """Two drops that meet under the nose and follow the upper lip."""
        head = self.head
        big = 1.0 if self.style in ("moustache", "full beard") else 0.72
        half = head.mouth_half * (1.12 if self.style != "moustache" else 1.25)
        y = head.mouth_y + head.gap_up + head.lip_up + 0.022
        u = (p.m / max(half, 0.10)).clamp_max(1.4)
        drop = y + 0.012 - 0.055 * u * u + head.mouth_curve * (u * u - 0.4) * 0.8
        thick = 0.031 * big * (1.15 - 0.55 * u)
        strip = torch.maximum(((p.y - drop).abs() - thick) * 0.66, p.m - max(half, 0.10))
        return sdf.meet(torch.maximum(strip, 0.1 - p.z), head.base(p) - 0.040 * big, 0.025)

    def _goatee(self, p: Place) -> Tensor:
        """A tuft on the chin that is joined to the moustache around the mouth."""
        head = self.head
        low = head.chin_y - 0.030 - 0.015 * self.longer
        chin = sdf.ellipsoid(p.x, p.y, p.z, (0, low, 0.255), (0.105, 0.095 + 0.012 * self.longer, 0.105))
        x = p.m - head.mouth_half * 1.10 - 0.010
        side = torch.maximum(x.abs() - 0.024, (p.y - (head.mouth_y - 0.075)).abs() - 0.105)
        side = sdf.meet(torch.maximum(side, 0.1 - p.z), head.base(p) - 0.026, 0.02)
        return sdf.union(chin, side, 0.04)

    def _beard(self, p: Place, free: Tensor) -> Tensor:
        """A shell over the jaw; the full one is thick and hangs below the chin."""
        head, full = self.head, self.style == "full beard"
        thick = 0.062 + 0.006 * self.longer if full else 0.026
        shell = sdf.meet(head.base(p) - thick, beard_mask(p, head), 0.03)
        if full:
            low = head.chin_y - 0.115 - 0.030 * self.longer
            hang = sdf.ellipsoid(p.x, p.y, p.z, (0, low, 0.20), (0.215 * head.jaw, 0.175, 0.165))
            shell = sdf.union(shell, hang, 0.09)
        return sdf.meet(shell, -free, 0.02)
