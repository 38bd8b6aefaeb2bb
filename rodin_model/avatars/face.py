"""The colours of skin, eyes and brows: complexion, lips, make-up, stubble and the lines that age draws."""

from __future__ import annotations

import torch
from torch import Tensor

from rodin_model.avatars import palette, sdf
from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.head import Head
from rodin_model.avatars.palette import RGB
from rodin_model.avatars.sdf import Place


def hair_rgb(a: Attributes) -> RGB:
    """The colour of the hair with its continuous variation."""
    return palette.bend(palette.HAIR[a.hair_color], 0.006 * a.number("hair_hue"), 0.05 * a.number("hair_value"))


def brow_rgb(a: Attributes) -> RGB:
    """Brows: the hair's colour made visible on this skin, grayer with age."""
    hair = palette.blend(hair_rgb(a), palette.from_hex("4a2810"), 0.42)
    if a.age == "elderly":
        hair = palette.blend(hair, (0.80, 0.80, 0.80), 0.75)
    return hair


def skin_rgb(a: Attributes) -> RGB:
    """The complexion with its continuous variation."""
    return palette.bend(palette.SKIN[a.skin_tone], 0.004 * a.number("skin_hue"), 0.025 * a.number("skin_value"))


def beard_mask(p: Place, head: Head) -> Tensor:
    """2-D distance to the region where a beard grows: jaw, chin and upper lip, not the cheeks; [N]."""
    edge = head.mouth_y + 0.045 + 0.46 * (p.m - 0.17).clamp_min(0) - 0.30 * (0.10 - p.m).clamp_min(0)
    sides = 0.02 - p.z
    return torch.maximum(torch.maximum(p.y - edge, sides), -0.33 - p.y) * 0.9


class Face:
    """Colours of one face; built once, evaluated at the surface."""

    def __init__(self, a: Attributes, head: Head, device: torch.device | str) -> None:
        self.a, self.head = a, head
        skin = skin_rgb(a)
        deep = palette.luminance(skin) < 0.42
        lip = palette.blend((skin[0] * 0.93, skin[1] * 0.60, skin[2] * 0.60), (0.85, 0.38, 0.40), 0.30)
        if a.makeup == "lipstick":
            lip = palette.from_hex("c8102e") if not deep else palette.from_hex("b80f36")
        if a.makeup == "bold":
            lip = palette.from_hex("9c1458")
        shadow = palette.from_hex("7a4fd0") if a.number("accessory_color") > 0 else palette.from_hex("2a86c8")
        eye = palette.EYE[a.eye_color]
        table = {"skin": skin, "lip": lip, "line": (skin[0] * 0.64, skin[1] * 0.47, skin[2] * 0.43),
                 "rose": (skin[0] * 1.0, skin[1] * 0.66, skin[2] * 0.64), "ink": palette.INK,
                 "shadow": palette.blend(shadow, skin, 0.12), "mouth": palette.from_hex("5a1420"),
                 "teeth": palette.from_hex("fdf8f0"), "tongue": palette.from_hex("e2606a"), "eye": eye,
                 "eye_edge": palette.dark(eye, 0.42), "eye_light": palette.blend(eye, (1, 1, 1), 0.35),
                 "white": palette.from_hex("fbf8f5"), "shade": palette.from_hex("b9b4bd"), "brow": brow_rgb(a),
                 "stubble": palette.blend(palette.dark(hair_rgb(a), 0.55), palette.from_hex("2c2628"), 0.5)}
        self.rgb = {name: torch.tensor(value, dtype=torch.float32, device=device) for name, value in table.items()}

    def skin(self, p: Place) -> Tensor:
        """Colour of the skin with everything that is drawn on it; [N, 3]."""
        head, rgb = self.head, self.rgb
        color = rgb["skin"].expand(p.x.shape[0], 3)
        blush = 0.30 + 0.22 * head.young + (0.40 if self.a.makeup == "bold" else 0.0) + (
            0.15 if self.a.expression in ("smiling", "laughing") else 0.0)
        cheeks = torch.exp(-(((p.m - 0.215) / 0.085) ** 2 + ((p.y - 0.0) / 0.060) ** 2))
        tip = torch.exp(-((p.m / 0.05) ** 2 + ((p.y - head.nose_y) / 0.05) ** 2 + ((p.z - head.tip_z) / 0.06) ** 2))
        ears = sdf.inside(0.030 * head.ear[3] + head.ear[0] - p.m, 0.03) * 0.35 * (p.y > -0.15)
        front = (p.z > 0.12).to(color.dtype)
        color = sdf.mix(color, rgb["rose"], (cheeks * blush * front + 0.25 * tip + ears).clamp(0, 0.9))
        if self.a.facial_hair == "stubble":
            grain = 0.62 + 0.30 * torch.sin(95 * p.x + 40 * p.y) * torch.sin(95 * p.y - 30 * p.x)
            color = sdf.mix(color, rgb["stubble"], sdf.inside(beard_mask(p, head), 0.05) * grain * 0.78)
        color = self._age(p, color, front)
        low = p.y - head.nose_y + 0.030 + 0.4 * (head.wing - 0.036)
        nostrils = sdf.length((p.m - 0.55 * head.wing_x) / 1.3, low) - 0.011
        color = sdf.mix(color, rgb["line"], sdf.inside(nostrils, 0.012) * 0.8 * (p.z > head.front - 0.03))
        under = torch.exp(-((p.m / (0.035 + head.wing_x)) ** 2 + ((p.y - head.nose_y + head.tip + 0.010) / 0.020) ** 2))
        across = (p.m - head.wing_x - head.wing) / 0.014
        beside = torch.exp(-(across ** 2 + ((p.y - head.nose_y + 0.008) / 0.030) ** 2))
        color = sdf.mix(color, rgb["line"], (0.28 * under + 0.28 * beside) * front)
        color = self._around_eyes(p, color, front)
        return self._mouth(p, color, front)

    def _age(self, p: Place, color: Tensor, front: Tensor) -> Tensor:
        """Folds beside the mouth, bags under the eyes, crow's feet and furrows of the forehead."""
        head = self.head
        strength = 0.42 * head.middle + 0.75 * head.old
        if not strength:
            return color
        ex, ey, _, half = head.eye
        along = ((head.nose_y - p.y) / 0.12).clamp(0, 1)
        fold = torch.maximum((p.m - 0.085 - head.wing_x * 0.4 - 0.055 * along).abs() - 0.0065 - 0.003 * head.old,
                             (p.y - head.nose_y + 0.045).abs() - 0.055)
        u, v = p.m - ex, p.y - ey
        bags = torch.maximum((sdf.length(u / 1.15, v + 0.01) - half * 0.98).abs() - 0.007, v + head.lid_down + 0.012)
        lines = torch.minimum(fold, bags)
        if head.old:
            rows = (p.y - head.brow_y - 0.060 - 0.10 * p.m * p.m) / 0.042
            furrows = torch.maximum(((rows - rows.round()) * 0.042).abs() - 0.0068, p.m - 0.19 + 0.02 * rows.round())
            furrows = torch.maximum(furrows, torch.maximum(-0.4 - rows, rows - 2.4) * 0.042)
            feet = (v - 0.30 * (u - half) * torch.sign(v)).abs() - 0.006
            feet = torch.minimum(feet, (v.abs() - 0.038 - 0.35 * (u - half)).abs() - 0.006)
            feet = torch.maximum(feet, torch.maximum(half * 1.10 - u, u - half * 1.62))
            lines = torch.minimum(lines, torch.minimum(furrows, feet))
        return sdf.mix(color, self.rgb["line"], sdf.inside(lines, 0.010) * strength * front)

    def _around_eyes(self, p: Place, color: Tensor, front: Tensor) -> Tensor:
        """Lashes along the upper lid, the crease, eye shadow."""
        head, rgb, made_up = self.head, self.rgb, self.a.makeup
        u, v = head.eye_frame(p)
        half = head.eye[3]
        gap = head.lids(u, v)
        upper = (v > -0.2 * head.lid_down).to(color.dtype) * front
        if made_up == "bold":
            lid = torch.maximum(gap - 0.050, torch.maximum(0.3 * u.abs() - v - 0.005, u.abs() - half * 1.04))
            color = sdf.mix(color, rgb["shadow"], sdf.inside(lid, 0.020) * 0.88 * front)
        thick = 0.012 + (0.006 if self.a.gender == "woman" else 0.0)
        thick = thick + 0.005 * (made_up != "none") + 0.003 * (made_up == "bold")
        tip = (u / half - 0.80) / 0.36
        rise = (v - 0.55 * (u - half * 0.9) - 0.004).abs() - 0.018 * (1 - tip)
        wing = torch.maximum(rise, (tip - 0.5).abs() * 0.05 - 0.025)
        lash = torch.maximum(gap - thick * (0.80 + 0.35 * (u / half)), u.abs() - half * 0.99)
        if self.a.gender == "woman" or made_up != "none":
            lash = torch.minimum(lash, wing)
        color = sdf.mix(color, rgb["line"], sdf.inside(gap - 0.006, 0.012) * front * 0.45)
        return sdf.mix(color, rgb["ink"], sdf.inside(lash, 0.008) * upper)

    def _mouth(self, p: Place, color: Tensor, front: Tensor) -> Tensor:
        """Lips, the line between them, teeth, tongue and the dark of an open mouth."""
        head, rgb = self.head, self.rgb
        gap, lips, above = head.mouth(p)
        below = 0.10 * (above < 0) + 0.90
        color = sdf.mix(color, rgb["lip"] * below[:, None], sdf.inside(lips, 0.010) * front)
        if head.gap_down > 0:
            color = sdf.mix(color, rgb["mouth"], sdf.inside(gap, 0.008) * front)
            tongue = sdf.length(p.m / 1.5, p.y - head.mouth_y + head.gap_down + head.mouth_curve * 0.4) - 0.042
            color = sdf.mix(color, rgb["tongue"], sdf.inside(torch.maximum(tongue, gap), 0.010) * front)
            if self.a.expression == "laughing":
                color = sdf.mix(color, rgb["teeth"], sdf.inside(torch.maximum(gap, -above - 0.036), 0.008) * front)
            return color
        line = torch.maximum(above.abs() - 0.0075, p.m - head.mouth_half * 1.03)
        return sdf.mix(color, rgb["line"] * 0.72, sdf.inside(line, 0.008) * front * 0.85)

    def eyes(self, p: Place) -> Tensor:
        """White, iris, pupil, two lights and the shade of the upper lid; [N, 3]."""
        head, rgb = self.head, self.rgb
        ex, ey, _, half = head.eye
        # both eyes carry their lights on the same side of the picture, as one lamp would make them
        local = torch.where(p.x > 0, p.x - ex, p.x + ex)
        v = p.y - ey - 0.004
        iris = 0.060 * half / 0.108
        radius = sdf.length(local, v)
        color = rgb["white"].expand(p.x.shape[0], 3)
        shade = sdf.inside(head.lid_up * 0.62 - v, 0.05)
        color = sdf.mix(color, rgb["shade"], shade * 0.6)
        tint = sdf.mix(rgb["eye"].expand_as(color), rgb["eye_light"], ((-v / iris).clamp(0, 1)) * 0.9)
        tint = sdf.mix(tint, rgb["eye_edge"], sdf.inside(iris * 0.80 - radius, 0.016) * 0.85)
        color = sdf.mix(color, tint, sdf.inside(radius - iris, 0.008))
        color = sdf.mix(color, rgb["ink"], sdf.inside(radius - 0.45 * iris, 0.010))
        light = torch.minimum(sdf.length(local - 0.36 * iris, v - 0.38 * iris) - 0.30 * iris,
                              sdf.length(local + 0.38 * iris, v + 0.42 * iris) - 0.14 * iris)
        return sdf.mix(color, rgb["white"], sdf.inside(light, 0.008))

    def brows(self, p: Place) -> Tensor:
        """Colour of the brows; [N, 3]."""
        return self.rgb["brow"].expand(p.x.shape[0], 3) * (0.94 + 0.06 * torch.sin(160 * p.m + 90 * p.y))[:, None]
