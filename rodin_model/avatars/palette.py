"""Colours of the avatars, as sRGB triples in 0..1, and how the continuous parameters bend them."""

from __future__ import annotations

import colorsys

RGB = tuple[float, float, float]


def from_hex(code: str) -> RGB:
    """A colour from six hexadecimal digits."""
    return (int(code[0:2], 16) / 255, int(code[2:4], 16) / 255, int(code[4:6], 16) / 255)


def _table(**codes: str) -> dict[str, RGB]:
    return {name.replace("_", " "): from_hex(code) for name, code in codes.items()}


SKIN = _table(pale="ffe3d6", fair="f7c8a6", olive="dba676", brown="b87a4c", dark_brown="85512f", black="55321f")
HAIR = _table(black="1f1c22", dark_brown="4a2c1c", light_brown="9a6a3e", blonde="f0cc74", red="c4481c", gray="9a9ba0",
              white="f1efec", blue="2f6fe0", pink="f77fb4", purple="8a45c9", green="38a860")
EYE = _table(brown="6b3a18", blue="3a8cf0", green="38a04c", gray="8c9aa6", hazel="b0801f")
CLOTH = _table(black="26262b", white="f2f1ee", gray="8e9299", navy="22305e", blue="3a7be0", red="d93636",
               green="35a05a", yellow="f5cb3c", orange="f28a30", purple="8648c0", pink="f590b8", brown="80522e")
#: One accessory colour for each half step of `accessory_color`; neighbours are blended.
ACCESSORY = tuple(from_hex(code) for code in ("2a2a30", "27438a", "2b8fb8", "2fa36b", "e8b23a", "e86f2c", "cf3542",
                                              "b0417f", "6a3f2a"))
GOLD, SILVER, WHITE, INK = from_hex("f3c24c"), from_hex("d4d8de"), from_hex("fbfaf7"), from_hex("191418")


def bend(color: RGB, hue: float = 0.0, value: float = 0.0, saturation: float = 0.0) -> RGB:
    """`color` with hue turned by `hue` (fraction of a circle), value and saturation scaled by 1 + the numbers."""
    h, s, v = colorsys.rgb_to_hsv(*color)
    r, g, b = colorsys.hsv_to_rgb((h + hue) % 1.0, min(1.0, s * (1 + saturation)), min(1.0, v * (1 + value)))
    return (r, g, b)


def blend(a: RGB, b: RGB, weight: float) -> RGB:
    """Linear mixture, `a` at 0 and `b` at 1."""
    return (a[0] + (b[0] - a[0]) * weight, a[1] + (b[1] - a[1]) * weight, a[2] + (b[2] - a[2]) * weight)


def dark(color: RGB, factor: float) -> RGB:
    """`color` times `factor`."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)


def luminance(color: RGB) -> float:
    """Perceived brightness in 0..1."""
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def accessory(number: float) -> RGB:
    """The accessory colour for a number in [-2, 2]."""
    place = (min(max(number, -2.0), 2.0) + 2.0) * 2.0
    low = min(int(place), len(ACCESSORY) - 2)
    return blend(ACCESSORY[low], ACCESSORY[low + 1], place - low)
