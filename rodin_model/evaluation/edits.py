"""Edits in words: is what was asked for there afterwards, and is everything else still what it was?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rodin_model.evaluation.scores import Count

#: Words of an edit, and which values of which attribute they ask for.
EDITS: dict[str, dict[str, tuple[str, ...]]] = {
    "blonde hair": {"hair_color": ("blonde",)},
    "short hair": {"hair_style": ("short", "side part", "buzz cut")},
    "smiling face": {"expression": ("smiling", "laughing")},
    "sunglasses": {"glasses": ("sunglasses",)},
}
#: What an edit changes by its nature, beside what it names: bald heads have no colour, eyes hide behind dark glasses.
GOES_WITH = {"hair_style": ("hair_color",), "hair_color": ("facial_hair",), "glasses": ("eye_color", "eye_shape")}

Words = Mapping[str, str]


def count_edits(before: Sequence[Words], after: Sequence[Words],
                asked: Mapping[str, Sequence[str]]) -> tuple[Count, Count]:
    """(target reached, others kept) over pairs of what a picture showed before and shows after one edit.

    Pictures that showed the target before are left out of the first; an attribute is kept if its value is the same.
    """
    target, kept = Count(), Count()
    free = {*asked, *(other for name in asked for other in GOES_WITH.get(name, ()))}
    for old, new in zip(before, after, strict=True):
        for name, values in asked.items():
            if old[name] not in values:
                target += Count(1, int(new[name] in values))
        for name in old:
            if name not in free:
                kept += Count(1, int(old[name] == new[name]))
    return target, kept
