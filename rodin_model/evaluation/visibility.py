"""What a true picture cannot show is asked of nobody: neither of the model nor of the reader on true pictures.

The rules follow from the attributes alone, and each says what covers what; `tests/model/test_visibility.py` draws pairs
of true pictures that differ in one such value and finds them alike. What is merely small or hard to tell stays asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.captions import visible_attributes

#: Styles whose sides are the same shell of hair: a hat hides the tuft, the parting and the crest that tell them apart.
SAME_SIDES = (("short", "side part"), ("buzz cut", "mohawk"))


def alike(attributes: Attributes, name: str) -> tuple[str, ...]:
    """The values of the attribute `name` that give this avatar's picture, its own first; none if it cannot be seen.

    Not to be seen at all are eyes behind sunglasses and the colour of hair where there is none (`visible_attributes`).
    """
    if name not in visible_attributes(attributes):
        return ()
    own = getattr(attributes, name)
    if name == "hair_style" and attributes.hat != "none":
        return next(((own, *(v for v in same if v != own)) for same in SAME_SIDES if own in same), (own,))
    return (own,)


def wanted_of(attributes: Attributes) -> dict[str, tuple[str, ...]]:
    """What a portrait asks for: of every attribute that can be seen, the values that would look like this."""
    return {name: values for name in visible_attributes(attributes) if (values := alike(attributes, name))}


def excuse(attributes: Attributes, labels: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """What a caption of this avatar asks for, `labels`, with the values added that would look the same on it."""
    return {name: (*accepted, *(v for v in alike(attributes, name) if v not in accepted))
            for name, accepted in labels.items()}
