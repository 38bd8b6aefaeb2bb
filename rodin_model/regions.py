"""Where words point: the attributes that an edit names, and the part of the box that they may change.

All avatars stand in the same place, so one set of soft boxes serves them all. Words that name nothing known, and
attributes that change a head as a whole (age, gender, skin, shape), may change everything.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from rodin_model.avatars.captions import SENSES

Region = Callable[[Tensor], Tensor]
#: Width of the soft edges, in the units of the box [-1, 1]^3.
EDGE = 0.05


def box(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> Region:
    """1 inside, 0 outside, over soft edges; x is the distance from the middle, since heads have two sides."""
    def inside(points: Tensor) -> Tensor:
        values = torch.stack([points[..., 0].abs(), points[..., 1], points[..., 2]], -1)
        low, high = (torch.tensor(bound).to(points) for bound in zip(x, y, z, strict=True))
        gap = torch.minimum(values - low, high - values).amin(-1)
        return (gap / EDGE + 0.5).clamp(0, 1)
    return inside


def face(points: Tensor) -> Tensor:
    """The front of the head that hair leaves free: an ellipsoid, soft at its edge."""
    center, radii = (torch.tensor(v).to(points) for v in ((0.0, -0.02, 0.47), (0.36, 0.40, 0.42)))
    away = ((points - center) / radii).norm(dim=-1)
    return ((1 - away) * float(radii.min()) / EDGE + 0.5).clamp(0, 1)


def hair(points: Tensor) -> Tensor:
    """All around the face, down to the shoulders."""
    return box((-2.0, 2.0), (-0.62, 2.0), (-2.0, 2.0))(points) * (1 - face(points))


def without(whole: Region, *parts: Region) -> Region:
    """`whole` where none of `parts` is."""
    def inside(points: Tensor) -> Tensor:
        return whole(points) * (1 - torch.stack([part(points) for part in parts]).amax(0))
    return inside


#: The tip of the nose with its wings, and the bridge between the eyes.
TIP, BRIDGE = box((-2.0, 0.11), (-0.05, 0.05), (0.20, 2.0)), box((-2.0, 0.045), (0.05, 0.16), (0.20, 2.0))
MOUTH = without(box((-2.0, 0.22), (-0.27, -0.02), (0.12, 2.0)), TIP)
EYES = without(box((-2.0, 0.34), (0.02, 0.30), (0.10, 2.0)), TIP, BRIDGE)
BROWS = box((-2.0, 0.34), (0.21, 0.36), (0.10, 2.0))
CLOTHES = box((-2.0, 2.0), (-2.0, -0.30), (-2.0, 2.0))

#: What each attribute may change; those that are absent may change everything.
REGIONS: dict[str, tuple[Region, ...]] = {
    "hair_style": (hair,), "hair_color": (hair, BROWS),
    "expression": (MOUTH, EYES, BROWS), "lips": (MOUTH,), "makeup": (MOUTH, EYES),
    "eye_color": (EYES,), "eye_shape": (EYES,), "nose": (box((-2.0, 0.16), (-0.10, 0.16), (0.20, 2.0)),),
    "facial_hair": (box((-2.0, 0.42), (-0.50, 0.06), (-0.10, 2.0)),),
    "glasses": (without(box((-2.0, 0.52), (0.0, 0.30), (-0.10, 2.0)), TIP),),
    "hat": (box((-2.0, 2.0), (0.22, 2.0), (-2.0, 2.0)),),
    "earrings": (box((0.24, 0.60), (-0.30, 0.12), (-0.22, 0.22)),),
    "headphones": (box((0.24, 2.0), (-0.16, 2.0), (-0.30, 0.30)), box((-2.0, 2.0), (0.52, 2.0), (-0.30, 0.30))),
    "clothing": (CLOTHES,), "clothing_color": (CLOTHES,),
}


#: Expressions that need eyes and brows.
FROWNS = {"surprised", "sad", "angry"}
#: Where that is which is worn on the hair: a hat above its edge, a band and two cups.
WORN: dict[str, tuple[Region, ...]] = {
    "hat": (box((-2.0, 2.0), (0.38, 2.0), (-2.0, 2.0)),),
    "headphones": (box((-2.0, 2.0), (0.22, 2.0), (-0.10, 0.02)), box((0.42, 2.0), (-0.02, 0.28), (-0.18, 0.10))),
}
#: Nouns that a colour word before them belongs to; clothes are known by their own words.
_OWNERS = {"hair_color": r"hair|haired|locks|curls|strands|tresses|mane", "eye_color": r"eyes|eyed|irises"}


@functools.cache
def _tints(name: str) -> re.Pattern[str]:
    """The plain colour words of an attribute, as whole words."""
    words = sorted({word for meaning in SENSES[name] for word in meaning.tint}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b")


@functools.cache
def _phrases() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Every phrase of the lexicon but bare colour words, as a pattern over whole words, and what it names."""
    found: list[tuple[str, str]] = []
    for name, senses in SENSES.items():
        for meaning in senses:
            for phrase in (*meaning.adj, *meaning.np, *meaning.wear, *meaning.state):
                words = " ".join(re.sub(r"\{[cp]\}", " ", phrase).split()).lower()
                words = re.sub(r"^(?:a|an|the) ", "", words)
                if words and not _tints("clothing_color").fullmatch(words):
                    found.append((words, name))
    return tuple((re.compile(rf"\b{re.escape(words)}\b"), name) for words, name in dict.fromkeys(found))


def named_attributes(text: str) -> frozenset[str]:
    """The attributes whose words occur in `text`, as captions use them; empty if it knows none of the words.

    Phrases inside longer ones of another attribute do not count. Colour words count for the hair, the eyes or the
    clothes that are named with them.
    """
    told = " ".join(re.findall(r"[a-z'-]+", text.lower()))
    plain = " ".join(_tints("clothing_color").sub(" ", _tints("hair_color").sub(" ", told)).split())
    names = _named(told) | _named(plain)
    for color, owner in _OWNERS.items():
        if re.search(rf"\b(?:{owner})\b", told) and _tints(color).search(told):
            names.add(color)
    if "clothing" in names and _tints("clothing_color").search(told):
        names.add("clothing_color")
    return frozenset(names)


def _named(text: str) -> set[str]:
    spans = sorted(((m.start(), m.end(), name) for pattern, name in _phrases() for m in pattern.finditer(text)),
                   key=lambda span: span[0] - span[1])
    kept: list[tuple[int, int, str]] = []
    for start, end, name in spans:
        if all(end <= a or start >= b or name == other for a, b, other in kept):
            kept.append((start, end, name))
    return {name for _, _, name in kept}


def everywhere(names: Iterable[str]) -> bool:
    """Whether an edit of these attributes may change everything: it names none, or one of the head as a whole."""
    names = set(names)
    return not names or not names <= set(REGIONS)


def region(names: Iterable[str], points: Tensor, shown: Mapping[str, str] | None = None,
           asked: Mapping[str, str] | None = None) -> Tensor:
    """How far an edit of these attributes may change `points` [..., 3] of the box: [...] in [0, 1].

    `shown` says what the avatar looks like before, and `asked` what it is to look like, as far as that is known: a
    beard takes the colour of the hair, hats and headphones that are worn on it stay what they are, and a smile is the
    mouth's.
    """
    names, shown, asked = set(names), shown or {}, asked or {}
    if everywhere(names):
        return torch.ones_like(points[..., 0])
    if "hair_color" in names and shown.get("facial_hair", "none") != "none":
        names |= {"facial_hair"}
    moods = {given["expression"] for given in (shown, asked) if "expression" in given}
    parts = [part for name in names for part in REGIONS[name]
             if name != "expression" or part is MOUTH or not moods or moods & FROWNS]
    if names & {"hair_style", "hair_color"}:
        worn = [part for name in set(WORN) - names if shown.get(name, "none") != "none" for part in WORN[name]]
        parts = [without(part, *worn) for part in parts] if worn else parts
    return torch.stack([part(points) for part in parts]).amax(0)
