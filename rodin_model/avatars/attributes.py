"""What an avatar is: one record of words, and continuous numbers for everything that words leave open.

The words are what captions say and what an attribute reader can check; the numbers (`SHAPE`) make the geometry
continuous, so that no two avatars are alike. Everything follows from one integer seed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Every attribute that has a name, and the names that it can take. The order is part of the data format.
CHOICES: dict[str, tuple[str, ...]] = {
    "gender": ("woman", "man", "person"),
    "age": ("young", "middle-aged", "elderly"),
    "skin_tone": ("pale", "fair", "olive", "brown", "dark brown", "black"),
    "face_shape": ("oval", "round", "square", "long", "heart"),
    "eye_color": ("brown", "blue", "green", "gray", "hazel"),
    "eye_shape": ("round", "almond", "narrow"),
    "nose": ("average", "small", "large", "broad", "pointed"),
    "lips": ("average", "thin", "full"),
    "expression": ("neutral", "smiling", "laughing", "surprised", "sad", "angry"),
    "hair_style": ("bald", "buzz cut", "short", "side part", "curly", "afro", "bob", "long straight", "long wavy",
                   "ponytail", "bun", "mohawk"),
    "hair_color": ("black", "dark brown", "light brown", "blonde", "red", "gray", "white", "blue", "pink", "purple",
                   "green"),
    "facial_hair": ("none", "stubble", "moustache", "goatee", "short beard", "full beard"),
    "glasses": ("none", "glasses", "sunglasses"),
    "hat": ("none", "cap", "beanie", "fedora"),
    "earrings": ("none", "studs", "hoops"),
    "headphones": ("none", "headphones"),
    "makeup": ("none", "lipstick", "bold"),
    "clothing": ("t-shirt", "shirt", "suit and tie", "hoodie", "leather jacket", "sweater", "dress"),
    "clothing_color": ("black", "white", "gray", "navy", "blue", "red", "green", "yellow", "orange", "purple", "pink",
                       "brown"),
}

#: Names of the continuous parameters; each is a truncated normal in [-2, 2], 0 for the average avatar.
SHAPE: tuple[str, ...] = (
    "head_width", "head_height", "head_depth", "jaw_width", "jaw_height", "chin", "cheeks", "brow_height", "brow_tilt",
    "brow_thickness", "eye_spacing", "eye_size", "eye_height", "nose_length", "nose_width", "nose_bridge",
    "mouth_width", "mouth_height", "ear_size", "neck_width", "shoulder_width", "shoulder_slope", "hair_volume",
    "hair_length", "hair_line", "hair_phase", "beard_length", "expression_strength", "skin_hue", "skin_value",
    "hair_hue", "hair_value", "cloth_hue", "cloth_value", "accessory_size", "accessory_color",
)

#: Length of `Attributes.vector`.
VECTOR_SIZE = sum(map(len, CHOICES.values())) + len(SHAPE)


@dataclass(frozen=True)
class Attributes:
    """One avatar: a name from `CHOICES` for each attribute, a number in [-2, 2] for each of `SHAPE`."""

    gender: str
    age: str
    skin_tone: str
    face_shape: str
    eye_color: str
    eye_shape: str
    nose: str
    lips: str
    expression: str
    hair_style: str
    hair_color: str
    facial_hair: str
    glasses: str
    hat: str
    earrings: str
    headphones: str
    makeup: str
    clothing: str
    clothing_color: str
    shape: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, names in CHOICES.items():
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}; got {getattr(self, name)!r}")
        if len(self.shape) != len(SHAPE):
            raise ValueError(f"shape needs {len(SHAPE)} numbers, one for each of SHAPE; got {len(self.shape)}")

    def number(self, name: str) -> float:
        """The continuous parameter called `name`, in [-2, 2]."""
        return self.shape[SHAPE.index(name)]

    def label(self, name: str) -> int:
        """The position of this avatar's value among `CHOICES[name]`."""
        return CHOICES[name].index(getattr(self, name))

    def vector(self) -> tuple[float, ...]:
        """All of it as `VECTOR_SIZE` numbers: a one-hot code of each name in the order of CHOICES, then the numbers."""
        words = (float(index == self.label(name)) for name, names in CHOICES.items() for index in range(len(names)))
        return (*words, *self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {**{name: getattr(self, name) for name in CHOICES}, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Attributes:
        """The inverse of `to_dict`; unknown or missing names are a ValueError."""
        expected = {*CHOICES, "shape"}
        if set(data) != expected:
            raise ValueError(f"attributes need exactly {sorted(expected)}; got {sorted(data)}")
        return cls(**{name: data[name] for name in CHOICES}, shape=tuple(float(v) for v in data["shape"]))

    def replace(self, **changes: Any) -> Attributes:
        """The same avatar with some words changed: the numbers, and so the person, stay."""
        return dataclasses.replace(self, **changes)


#: Relative frequencies, in the order of CHOICES; what is not listed here is drawn evenly.
_WEIGHTS: dict[str, tuple[float, ...]] = {
    "gender": (0.45, 0.45, 0.10),
    "expression": (0.25, 0.25, 0.15, 0.12, 0.11, 0.12),
    "glasses": (0.60, 0.25, 0.15),
    "hat": (0.73, 0.09, 0.09, 0.09),
    "earrings": (0.6, 0.2, 0.2),
    "headphones": (0.88, 0.12),
    "makeup": (0.6, 0.2, 0.2),
    "hair_color": (0.13, 0.11, 0.11, 0.12, 0.11, 0.11, 0.10, 0.06, 0.05, 0.05, 0.05),
    "facial_hair": (0.25, 0.15, 0.15, 0.15, 0.15, 0.15),
}


def sample_attributes(seed: int, **fixed: str) -> Attributes:
    """Draw one avatar from an integer seed; the same seed gives the same avatar on every machine.

    Attributes are drawn independently, with three ties that words themselves carry: only masculine (and sometimes
    neutral) avatars grow facial hair, make-up and dresses are rarer on masculine ones, and headphones exclude hats.
    `fixed` sets attributes by name (`hair_style="mohawk"`); all others stay what the seed gave.
    """
    for name in fixed:
        if name not in CHOICES:
            raise ValueError(f"unknown attribute {name!r}; there are {', '.join(CHOICES)}")
    rng = np.random.default_rng([0x0D1, seed])
    words = {}
    for name, names in CHOICES.items():
        weights = np.array(_WEIGHTS.get(name, (1.0,) * len(names)))
        words[name] = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    keep_beard, keep_makeup, keep_dress, spare = rng.random(4)
    gender = fixed.get("gender", words["gender"])
    if gender == "woman" or (gender == "person" and keep_beard < 0.6):
        words["facial_hair"] = "none"
    if gender == "man" and keep_makeup < 0.85:
        words["makeup"] = "none"
    if gender == "man" and words["clothing"] == "dress" and keep_dress < 0.9:
        words["clothing"] = CHOICES["clothing"][int(spare * 6)]
    if words["headphones"] != "none":
        words["hat"] = "none"
    shape = tuple(round(float(v), 4) for v in np.clip(rng.normal(size=len(SHAPE)), -2.0, 2.0))
    return Attributes(**{**words, **fixed}, shape=shape)
