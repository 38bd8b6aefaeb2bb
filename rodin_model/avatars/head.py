"""The head under everything else: skull, face, nose, ears, eyes, brows, mouth and neck, in box coordinates.

The chin is near y = -0.27, the crown near y = 0.68, the face looks along +z. `Head` turns words and numbers into
lengths once; its methods are signed distances and colours at a `Place`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rodin_model.avatars import sdf
from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.sdf import Place, Vector

#: face shape: width, height, jaw width, chin drop, cheek size, jaw corners
_FACES = {"oval": (1.0, 1.0, 1.0, 0.0, 0.0, 0.0), "round": (1.07, 0.94, 1.16, 0.02, 0.035, 0.0),
          "square": (1.02, 1.0, 1.10, 0.0, -0.01, 1.0), "long": (0.93, 1.04, 0.96, -0.045, -0.015, 0.0),
          "heart": (1.06, 0.99, 0.80, -0.03, 0.015, 0.0)}
#: expression: brow raise, brow tilt (inner end up), mouth curve and width, upper and lower gap, upper and lower lid
_EXPRESSIONS = {"neutral": (0.0, 0.0, 0.018, 1.0, 0.0, 0.0, 1.0, 1.0),
                "smiling": (0.008, 0.0, 0.058, 1.22, 0.0, 0.0, 0.96, 0.80),
                "laughing": (0.020, 0.0, 0.055, 1.30, 0.0, 0.100, 0.86, 0.55),
                "surprised": (0.050, 0.05, 0.0, 0.52, 0.048, 0.060, 1.25, 1.15),
                "sad": (0.006, 0.36, -0.062, 0.92, 0.0, 0.0, 0.80, 1.0),
                "angry": (-0.016, -0.42, -0.034, 0.96, 0.0, 0.0, 0.74, 0.85)}
#: nose: tip radius, how far it stands out, wing radius, wing distance from the middle
_NOSES = {"average": (0.056, 0.056, 0.038, 0.048), "small": (0.040, 0.034, 0.026, 0.034),
          "large": (0.070, 0.082, 0.050, 0.060), "broad": (0.060, 0.044, 0.052, 0.082),
          "pointed": (0.034, 0.112, 0.028, 0.032)}
#: eyes: upper and lower opening, roundness of the outline, upward tilt of the outer corner
_EYES = {"round": (0.082, 0.070, 0.50, 0.0), "almond": (0.068, 0.046, 0.80, 0.16), "narrow": (0.044, 0.032, 0.70, 0.06)}
_LIPS = {"average": (0.024, 0.034), "thin": (0.011, 0.015), "full": (0.038, 0.052)}


class Head:
    """Lengths and signed distances of one head.

    Public lengths that hair, clothes and accessories fit themselves to: `eye` (x, y, z, half width), `ear` (x, y, z,
    scale), `mouth_y`, `nose_y`, `width`, `height`, `depth`.
    """

    def __init__(self, a: Attributes) -> None:
        n = a.number
        man, woman = float(a.gender == "man"), float(a.gender == "woman")
        self.young, self.middle, self.old = (float(a.age == age) for age in ("young", "middle-aged", "elderly"))
        wide, tall, jaw, chin, cheek, self.corners = _FACES[a.face_shape]
        self.width, self.height = wide * (1 + 0.03 * n("head_width")), tall * (1 + 0.02 * n("head_height"))
        self.depth = 1 + 0.03 * n("head_depth")
        self.jaw = jaw * (1 + 0.04 * n("jaw_width") + 0.05 * man - 0.04 * woman + 0.03 * self.old) * self.width
        self.jaw_height = 1 + 0.03 * n("jaw_height")
        self.chin_y = -0.215 + chin - 0.012 * n("chin") + 0.01 * self.young
        self.chin_size = 1 + 0.08 * n("chin") + 0.12 * man - 0.1 * woman - 0.15 * float(a.face_shape == "heart")
        self.cheek = 0.122 + cheek + 0.008 * n("cheeks") + 0.008 * self.young
        self.neck = 0.148 * (1 + 0.05 * n("neck_width") + 0.14 * man - 0.08 * woman)
        self._place_eyes(a, woman)
        self._place_mouth(a, woman)
        self._place_nose_and_ears(a)

    def _place_eyes(self, a: Attributes, woman: float) -> None:
        """Eyes and brows, with what the expression does to them."""
        n, strength = a.number, 1 + 0.15 * a.number("expression_strength")
        raised, tilt, _, _, _, _, upper, lower = _EXPRESSIONS[a.expression]
        size = 1 + 0.05 * n("eye_size") + 0.05 * woman + 0.04 * self.young - 0.05 * self.old
        top, bottom, self.roundness, self.eye_tilt = _EYES[a.eye_shape]
        x, y, half = 0.168 * (1 + 0.04 * n("eye_spacing")), 0.125 + 0.010 * n("eye_height"), 0.108 * size
        self.lid_up = top * size * (1 + (upper - 1) * strength) * (0.94 if self.old else 1.0)
        self.lid_down = bottom * size * (1 + (lower - 1) * strength)
        self.eye: tuple[float, float, float, float] = (x, y, self.surface((x, y, 2.0), (0, 0, -1))[2], half)
        thick = 1 + 0.14 * n("brow_thickness") + (0.28 if a.gender == "man" else 0.0) - 0.14 * woman
        self.brow_half, self.brow_thick = 0.108, 0.0190 * thick
        self.brow_y = y + 0.074 + 0.72 * max(self.lid_up, 0.07) + 0.008 * n("brow_height") + raised * strength
        self.brow_tilt = tilt * strength + 0.05 * n("brow_tilt")
        self.brow_arch = 0.026 + (0.012 if a.expression == "surprised" else 0.0)

    def _place_mouth(self, a: Attributes, woman: float) -> None:
        """Lips and opening, with what the expression does to them."""
        n, strength = a.number, 1 + 0.15 * a.number("expression_strength")
        _, _, curve, width, up, down, _, _ = _EXPRESSIONS[a.expression]
        self.mouth_y = -0.108 + 0.008 * n("mouth_height") - 0.30 * up
        self.mouth_half = 0.112 * (1 + 0.06 * n("mouth_width") - 0.04 * woman) * width
        self.mouth_curve, self.gap_up, self.gap_down = curve * strength, up * strength, down * strength
        up_lip, low_lip = _LIPS[a.lips]
        age = 0.82 if self.old else 1.0
        self.lip_up, self.lip_down = up_lip * age, low_lip * age

    def _place_nose_and_ears(self, a: Attributes) -> None:
        """Nose and ears sit on the surface, whatever the head's size."""
        n, old = a.number, 1 + 0.10 * self.old
        tip, out, wing, apart = _NOSES[a.nose]
        self.nose_y = 0.012 - 0.012 * n("nose_length")
        front = self.surface((0, self.nose_y, 2.0), (0, 0, -1))[2]
        wide = 1 + 0.08 * n("nose_width")
        self.tip, self.wing, self.wing_x = tip * old, wing * wide * old, apart * wide
        self.tip_z = front + out * (1 + 0.08 * n("nose_length")) * old
        self.bridge = 0.030 * (1 + 0.16 * n("nose_bridge"))
        self.front = front
        self.ear: tuple[float, float, float, float] = (
            self.surface((2.0, 0.09, -0.04), (-1, 0, 0))[0], 0.09, -0.04, old * (1 + 0.07 * n("ear_size")))

    def base(self, p: Place) -> Tensor:
        """Skull, jaw, chin and cheeks, without what sits on them; [N]."""
        if "base" not in p.cache:
            x, y, z, m, w = p.x, p.y, p.z, p.m, self.width
            top = 0.31 + 0.375 * (self.height - 1) * 0.55
            skull = sdf.ellipsoid(x, y, z, (0, top, -0.05), (0.395 * w, 0.375 * self.height, 0.43 * self.depth))
            jaw = sdf.ellipsoid(x, y, z, (0, 0.05, 0.06), (0.33 * self.jaw, 0.315 * self.jaw_height, 0.31 * self.depth))
            d = sdf.union(skull, jaw, 0.22)
            chin = sdf.ellipsoid(x, y, z, (0, self.chin_y, 0.225), (0.11 * self.chin_size, 0.085, 0.10))
            d = sdf.union(d, chin, 0.13)
            d = sdf.union(d, sdf.sphere(m, y, z, (0.185 * w, 0.02, 0.235), self.cheek), 0.15)
            if self.corners or self.old:
                drop = (0.215 * self.jaw, -0.135, 0.09) if self.corners else (0.165 * w, -0.15, 0.185)
                d = sdf.union(d, sdf.sphere(m, y, z, drop, 0.115 if self.corners else 0.085), 0.12)
            p.cache["base"] = d
        return p.cache["base"]

    def surface(self, start: Vector, direction: Vector) -> Vector:
        """Where a ray from outside first meets `base`."""
        t = torch.linspace(0.0, 3.0, 1501)
        x, y, z = (s + d * t for s, d in zip(start, direction, strict=True))
        hit = int((self.base(Place(x, y, z)) < 0).to(torch.int8).argmax())
        return float(x[hit]), float(y[hit]), float(z[hit])

    def eye_frame(self, p: Place) -> tuple[Tensor, Tensor]:
        """(u, v) [N] around the middle of the nearer eye: u outwards, v up, turned so that the outer corner rises."""
        u, v = p.m - self.eye[0], p.y - self.eye[1]
        return u, v - self.eye_tilt * u

    def lids(self, u: Tensor, v: Tensor) -> Tensor:
        """2-D distance to the eye's opening, negative inside; [N]."""
        profile = (1 - (u / self.eye[3]) ** 2).clamp_min(1e-3) ** self.roundness
        beside = u.abs() - self.eye[3]
        return torch.maximum(torch.maximum(v - self.lid_up * profile, -self.lid_down * profile - v), beside) * 0.75

    def mouth(self, p: Place) -> tuple[Tensor, Tensor, Tensor]:
        """2-D distances to the mouth's opening and to the lips around it, and the height over the mouth line; [N]."""
        across = (p.m / self.mouth_half).clamp_max(1.3) ** 2
        profile = (1 - across).clamp_min(0)
        soft = torch.sqrt(profile + 1e-4)
        line = self.mouth_y + self.mouth_curve * (across - 0.4)
        above = p.y - line
        beside = p.m - self.mouth_half
        gap = torch.maximum(torch.maximum(above - self.gap_up * soft, -self.gap_down * soft - above), beside)
        lips = torch.maximum(above - self.gap_up * soft - self.lip_up * soft,
                             -above - self.gap_down * soft - self.lip_down * soft)
        return gap * 0.7, torch.maximum(lips, beside) * 0.8, above

    def lidded(self, p: Place) -> Tensor:
        """`base` with the swelling of the lids; [N]."""
        if "lidded" not in p.cache:
            ex, ey, ez, half = self.eye
            lid = sdf.ellipsoid(p.m, p.y, p.z, (ex, ey, ez - 0.020), (half * 1.25, half * 1.10, 0.050))
            p.cache["lidded"] = sdf.union(self.base(p), lid, 0.05)
        return p.cache["lidded"]

    def skin(self, p: Place) -> Tensor:
        """Signed distance to head and neck with nose, ears, lids and lips; [N]."""
        x, y, z, m = p.x, p.y, p.z, p.m
        ey = self.eye[1]
        d = self.lidded(p)
        nose = sdf.capsule(x, y, z, (0, ey + 0.02, self.front - 0.02), (0, self.nose_y, self.tip_z - self.tip),
                           self.bridge, self.tip)
        wing = sdf.sphere(m, y, z, (self.wing_x, self.nose_y - 0.012, self.front + 0.004), self.wing)
        d = sdf.union(d, sdf.union(nose, wing, 0.03), 0.05)
        qx, qy, qz, size = self.ear
        ear = sdf.ellipsoid(m, y - 0.25 * (z - qz), z, (qx + 0.012, qy, qz), (0.050 * size, 0.108 * size, 0.072 * size))
        hollow = sdf.ellipsoid(m, y, z, (qx + 0.062 * size, qy + 0.01, qz + 0.02), (0.028, 0.058 * size, 0.036))
        d = sdf.union(d, sdf.meet(ear, -hollow, 0.03), 0.035)
        d = sdf.union(d, sdf.capsule(x, y, z, (0, -0.12, -0.08), (0, -0.52, -0.10), self.neck), 0.07)
        front = 0.1 - z
        gap, lips, _ = self.mouth(p)
        d = d - 0.014 * torch.where(front < 0, sdf.inside(lips + 0.012, 0.05), torch.zeros_like(d))
        if self.gap_down > 0:
            d = sdf.meet(d, -torch.maximum(torch.maximum(gap + 0.003, -0.028 - self.base(p)), front), 0.012)
        u, v = self.eye_frame(p)
        hole = torch.maximum(torch.maximum(self.lids(u, v), -0.03 - self.base(p)), front)
        return sdf.meet(d, -hole, 0.012)

    def eyes(self, p: Place) -> Tensor:
        """Signed distance to the eyeballs, just behind the lids; [N]."""
        ex, ey, ez, half = self.eye
        return sdf.ellipsoid(p.m, p.y, p.z, (ex, ey, ez - 0.030), (half * 1.22, half * 1.06, 0.050))

    def brows(self, p: Place) -> Tensor:
        """Signed distance to the brows, a raised strip that follows the forehead; [N]."""
        u = (p.m - self.eye[0] - 0.008) / self.brow_half
        middle = self.brow_y - self.brow_tilt * self.brow_half * u + self.brow_arch * (0.4 - u * u)
        thick = self.brow_thick * (1.05 - 0.35 * u.clamp(-1, 1))
        strip = torch.maximum(((p.y - middle).abs() - thick) * 0.80, (u.abs() - 1) * self.brow_half)
        return sdf.meet(torch.maximum(strip, 0.1 - p.z), self.lidded(p) - 0.022, 0.020)
