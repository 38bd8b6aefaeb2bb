"""Neck down: the body and what it wears. The bust ends smoothly at y = -0.775, inside the box."""

from __future__ import annotations

import torch
from torch import Tensor

from rodin_model.avatars import palette, sdf
from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.head import Head
from rodin_model.avatars.sdf import Place

FLOOR = -0.775


class Clothes:
    """Body, garment and the extra pieces of a garment (`trim`: collars, ties, strings, zips), each with its colour."""

    def __init__(self, a: Attributes, head: Head, device: torch.device | str) -> None:
        n = a.number
        self.a, self.head, self.kind = a, head, a.clothing
        man, woman = float(a.gender == "man"), float(a.gender == "woman")
        self.wide = 1 + 0.05 * n("shoulder_width") + 0.06 * man - 0.07 * woman
        self.slope = 0.022 * n("shoulder_slope")
        self.present = True
        self.has_trim = self.kind != "sweater"
        cloth = palette.bend(palette.CLOTH[a.clothing_color], 0.006 * n("cloth_hue"), 0.05 * n("cloth_value"))
        bright = palette.luminance(cloth) > 0.45
        tie = palette.accessory(n("accessory_color"))
        if abs(palette.luminance(tie) - palette.luminance(cloth)) < 0.10:
            tie = palette.from_hex("c22f3e") if cloth[0] < 0.6 else palette.from_hex("27438a")
        table = {"cloth": cloth, "deep": palette.dark(cloth, 0.70), "edge": palette.blend(cloth, (1, 1, 1), 0.22)
                 if not bright else palette.dark(cloth, 0.80), "white": palette.WHITE, "tie": tie,
                 "button": palette.dark(cloth, 0.45) if bright else palette.WHITE, "silver": palette.SILVER,
                 "under": palette.from_hex("d9d9d6") if not bright else palette.from_hex("34343a"), "ink": palette.INK}
        self.rgb = {name: torch.tensor(value, device=device) for name, value in table.items()}

    def body(self, p: Place) -> Tensor:
        """Signed distance to the bare shoulders and chest; [N]."""
        if "body" not in p.cache:
            w = self.wide
            chest = sdf.ellipsoid(p.x, p.y, p.z, (0, -0.97, -0.06), (0.56 * w, 0.50, 0.30))
            arm = sdf.capsule(p.m, p.y, p.z, (0.0, -0.62, -0.10), (0.46 * w, -0.73 - self.slope, -0.10), 0.150)
            down = sdf.capsule(p.m, p.y, p.z, (0.46 * w, -0.73 - self.slope, -0.10), (0.50 * w, -1.10, -0.08), 0.150)
            neck = sdf.capsule(p.x, p.y, p.z, (0, -0.2, -0.08), (0, -0.64, -0.10), self.head.neck)
            d = sdf.union(sdf.union(sdf.union(arm, down, 0.08), chest, 0.14), neck, 0.16)
            p.cache["body"] = sdf.meet(d, FLOOR + 0.02 - p.y, 0.06)
        return p.cache["body"]

    @staticmethod
    def _around_neck(p: Place) -> Tensor:
        """Distance from the axis of the neck; [N]."""
        return sdf.length(p.x, p.z + 0.09)

    def _over(self, p: Place, thick: float, top: float = -0.47) -> Tensor:
        """The body made thicker, open at the neck above a plane through y = `top`; [N]."""
        d = sdf.meet(self.body(p) - thick, FLOOR - p.y, 0.07)
        return sdf.meet(d, (p.y - top + 0.22 * (p.z + 0.09)) * 0.97, 0.03)

    def _opening(self, p: Place, wide: float, deep: float) -> Tensor:
        """2-D distance to the V of an open front, from the neck down to y = -`deep`; only in front; [N]."""
        v = (p.m - wide * (p.y + deep) / (deep - 0.40)) * 0.9
        return torch.maximum(v, -0.06 - p.z)

    def _neckline(self, p: Place) -> Tensor:
        """The round opening of a t-shirt; [N]."""
        neck = self.head.neck
        return sdf.ellipsoid(p.x, p.y, p.z, (0, -0.455, 0.02), (neck + 0.075, 0.185, neck + 0.11))

    def garment(self, p: Place) -> Tensor:
        """Signed distance to the main garment; [N]."""
        kind, neck = self.kind, self.head.neck
        r = self._around_neck(p)
        if kind == "t-shirt":
            return sdf.meet(self._over(p, 0.028), -self._neckline(p), 0.03)
        if kind == "shirt":
            return self._over(p, 0.030, -0.43)
        if kind in ("suit and tie", "leather jacket"):
            opening = self._opening(p, 0.21, 0.84) if kind == "suit and tie" else self._opening(p, 0.19, 0.90)
            return sdf.meet(self._over(p, 0.055, -0.42), -opening, 0.03)
        if kind == "hoodie":
            d = self._over(p, 0.055)
            hood = sdf.ring(p.x, (p.z + 0.14) * 0.95, p.y + 0.44 + 0.35 * (p.z + 0.12), neck + 0.110, 0.085) * 0.92
            back = sdf.ellipsoid(p.x, p.y, p.z, (0, -0.47, -0.34), (0.25, 0.17, 0.12))
            return sdf.union(d, sdf.union(hood, back, 0.08), 0.05)
        if kind == "sweater":
            ribs = 0.004 * torch.sin(torch.atan2(p.x, p.z + 0.09) * 22) * sdf.inside(r - neck - 0.14, 0.1)
            d = self._over(p, 0.050, -0.38)
            roll = sdf.ring(p.x, p.z + 0.085, (p.y + 0.395 + 0.15 * (p.z + 0.08)) * 0.80, neck + 0.028, 0.062)
            stand = sdf.capsule(p.x, p.y, p.z, (0, -0.41, -0.085), (0, -0.50, -0.09), neck + 0.045)
            return (sdf.union(d, sdf.union(roll, stand, 0.02), 0.06) - ribs) * 0.93
        line = -0.665 + 0.35 * (p.m - 0.13).abs() - 0.12 * sdf.inside(p.z + 0.02, 0.3)
        d = sdf.meet(self._over(p, 0.026), p.y - line, 0.03)
        strap = torch.maximum((p.m - 0.215 - 0.10 * (p.y + 0.55)).abs() - 0.032, self.body(p) - 0.024)
        return torch.minimum(d, sdf.meet(strap, FLOOR - p.y, 0.03) * 0.97)

    def trim(self, p: Place) -> Tensor:
        """Signed distance to collars, shirt fronts, ties, strings; [N]."""
        kind, neck = self.kind, self.head.neck
        r = self._around_neck(p)
        if kind == "t-shirt":
            return sdf.meet(self._neckline(p).abs() - 0.020, self._over(p, 0.030).abs() - 0.016, 0.02)
        if kind == "shirt":
            return self._collar(p)
        if kind == "suit and tie":
            return torch.minimum(self._suit_front(p), self._lapels(p, 0.21, 0.84))
        if kind == "leather jacket":
            stand = (r - neck - 0.070 - 0.25 * (p.y + 0.43)).abs() - 0.022
            collar = sdf.meet(stand, (p.y + 0.43 + 0.30 * p.z).abs() - 0.085, 0.03)
            collar = torch.maximum(collar, -self._opening(p, 0.21, 0.90) - 0.01) * 0.9
            inner = self._over(p, 0.022, -0.46)
            return torch.minimum(torch.minimum(collar, self._lapels(p, 0.19, 0.90)), inner)
        if kind == "hoodie":
            x = p.m - 0.085 - 0.03 * (p.y + 0.55)
            string = torch.maximum(torch.maximum(x.abs() - 0.015, self._over(p, 0.080)), (p.y + 0.63).abs() - 0.12)
            knot = torch.maximum(sdf.length(x, p.y + 0.735) - 0.026, self._over(p, 0.090))
            return torch.maximum(torch.minimum(string, knot), -0.02 - p.z) * 0.95
        return torch.full_like(p.x, 9.0)

    def _collar(self, p: Place) -> Tensor:
        """A stand around the neck whose two flaps fall open in front."""
        neck = self.head.neck
        r = self._around_neck(p)
        flare = neck + 0.024 - 0.25 * (p.y + 0.41)
        front = ((p.z + 0.09) / r.clamp_min(0.05)).clamp_min(0)
        band = (p.y + 0.455 + 0.075 * front ** 3).abs() - 0.075 - 0.030 * front ** 4
        d = sdf.meet((r - flare).abs() - 0.020, band, 0.02) * 0.85
        slit = torch.maximum(p.m - 0.010 + 0.40 * (p.y + 0.50), -p.z) * 0.9
        inner, outer = -0.43 - 1.36 * (p.m - 0.005) - p.y, -0.60 + 2.27 * (p.m - 0.125) - p.y
        flap = torch.maximum(torch.maximum(inner * 0.59, outer * 0.40), torch.maximum(p.y + 0.40, -0.02 - p.z))
        flap = sdf.meet(flap, self._over(p, 0.062, -0.38), 0.012)
        return torch.minimum(sdf.meet(d, -slit, 0.012), flap)

    def _lapels(self, p: Place, wide: float, deep: float) -> Tensor:
        """Two raised strips beside the V, with a notch."""
        edge = self._opening(p, wide, deep)
        notch = 0.075 + 0.045 * ((p.y + 0.60).abs() < 0.085).to(p.y.dtype) * ((p.y + 0.685) / 0.17).clamp(0, 1)
        rows = (p.y + deep / 2 + 0.26).abs() - (deep / 2 - 0.20)
        strip = torch.maximum((edge - 0.5 * notch).abs() - 0.5 * notch, rows)
        strip = torch.maximum(strip, -0.04 - p.z)
        return sdf.meet(strip, self._over(p, 0.078), 0.02) * 0.85

    def _suit_front(self, p: Place) -> Tensor:
        """White shirt, its collar, and the tie."""
        shirt = self._over(p, 0.026, -0.43)
        return torch.minimum(torch.minimum(shirt, self._collar(p)), self._tie(p))

    def _tie(self, p: Place) -> Tensor:
        down = (-0.530 - p.y).clamp_min(0)
        half = 0.034 + 0.11 * down
        knot = sdf.ellipsoid(p.x, p.y, p.z, (0, -0.530, self.head.neck + 0.005), (0.055, 0.050, 0.050))
        blade = torch.maximum((p.m - half) * 0.95, self._over(p, 0.052))
        blade = torch.maximum(blade, torch.maximum(p.y + 0.530, -p.z))
        return torch.minimum(knot, blade)

    def garment_color(self, p: Place) -> Tensor:
        """Colour of the main garment: seams, buttons, ribs, zips; [N, 3]."""
        rgb, kind = self.rgb, self.kind
        color = rgb["cloth"].expand(p.x.shape[0], 3)
        front = (p.z > -0.02).to(color.dtype)
        if kind == "shirt":
            color = sdf.mix(color, rgb["deep"], sdf.inside((p.m - 0.045).abs() - 0.006, 0.010) * 0.7 * front)
            rows = (p.y + 0.64) / 0.095
            button = sdf.length(p.x, (rows - rows.round()) * 0.095) - 0.019
            return sdf.mix(color, rgb["button"], sdf.inside(button, 0.010) * front)
        if kind == "leather jacket":
            edge = self._opening(p, 0.19, 0.90)
            color = sdf.mix(color, rgb["silver"], sdf.inside((edge - 0.014).abs() - 0.013, 0.008) * front)
            seam = ((p.m - 0.40 * self.wide - 0.15 * (p.y + 0.7)).abs() - 0.008)
            return sdf.mix(color, rgb["deep"], sdf.inside(seam, 0.012) * 0.8)
        if kind == "sweater":
            around = torch.sin(torch.atan2(p.x, p.z + 0.09) * 22)
            knit = 0.5 + 0.5 * torch.where(p.y < -0.46, torch.sin(62 * p.x), -around)
            return sdf.mix(color, rgb["deep"], 0.28 * knit)
        if kind == "t-shirt":
            seam = (p.m - 0.44 * self.wide - 0.2 * (p.y + 0.7)).abs() - 0.006
            return sdf.mix(color, rgb["deep"], sdf.inside(seam, 0.012) * 0.6)
        if kind == "hoodie":
            well = sdf.inside(sdf.length(p.x, p.z + 0.1) - self.head.neck - 0.09, 0.05)
            return sdf.mix(color, rgb["deep"], well * 0.45 * (p.y > -0.56).to(color.dtype))
        return color

    def trim_color(self, p: Place) -> Tensor:
        """Colour of the trim; [N, 3]."""
        rgb, kind = self.rgb, self.kind
        size = (p.x.shape[0], 3)
        if kind == "suit and tie":
            color = rgb["white"].expand(size)
            tie = rgb["tie"] * (0.90 + 0.10 * torch.sign(torch.sin(48 * (p.x + p.y))))[:, None]
            color = sdf.mix(color, tie, sdf.inside(self._tie(p) - 0.003, 0.004))
            return sdf.mix(color, rgb["edge"], sdf.inside(self._lapels(p, 0.21, 0.84) - 0.003, 0.004))
        if kind == "leather jacket":
            inner = self._over(p, 0.022, -0.46)
            return sdf.mix(rgb["edge"].expand(size), rgb["under"], sdf.inside(inner - 0.003, 0.004))
        if kind == "shirt":
            return rgb["edge"].expand(size)
        if kind == "hoodie":
            return rgb["button"].expand(size)
        return rgb["deep"].expand(size)
