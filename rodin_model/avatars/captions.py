"""Captions: what people might write to get this avatar, with a record of what the words say.

Every caption is true. `caption_with_labels` also returns, for every attribute that the caption names, the values that
its words accept: "a bearded man" accepts three kinds of beard. What cannot be seen is never named: the hair colour of
a bald avatar without a beard, the eyes behind sunglasses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from numpy.random import Generator

from rodin_model.avatars.attributes import CHOICES, Attributes
from rodin_model.avatars.lexicon import BODY, Sense
from rodin_model.avatars.subjects import CLOSINGS, NOUNS, OPENINGS
from rodin_model.avatars.wardrobe import WARDROBE

#: The words for every attribute but gender, whose words are nouns.
SENSES = {**BODY, **WARDROBE}
Labels = dict[str, tuple[str, ...]]

#: How readily people name an attribute; what is absent or average is named less.
_SALIENCE = {
    "gender": 8.0, "age": 3.0, "skin_tone": 2.0, "face_shape": 0.7, "eye_color": 1.2, "eye_shape": 0.6, "nose": 0.6,
    "lips": 0.6, "expression": 3.0, "hair_style": 6.0, "hair_color": 5.0, "facial_hair": 4.0, "glasses": 3.5,
    "hat": 3.5, "earrings": 1.5, "headphones": 2.5, "makeup": 1.5, "clothing": 4.0, "clothing_color": 3.5,
}
#: What the attributes that are colours belong to.
_COLORED = {"hair_color": "hair", "eye_color": "eyes", "clothing_color": "clothes"}
_PRONOUNS = {"woman": ("she", "her", "has", "is"), "man": ("he", "his", "has", "is"),
             "": ("they", "their", "have", "are")}


@dataclass(frozen=True)
class _Piece:
    """Words that fit one role of a sentence: "adj", "np", "wear" or "state"."""

    role: str
    text: str


@dataclass
class _Draft:
    """A caption in the making: its pieces, its labels and the pronoun that it has settled on."""

    attributes: Attributes
    rng: Generator
    named: set[str]
    pronoun: str = ""
    pieces: list[_Piece] = field(default_factory=list)
    labels: Labels = field(default_factory=dict)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.random() * len(options))]

    def sense(self, name: str, role: str = "") -> Sense:
        """A sense that is true of the avatar and has words for `role`; senses of a single value come up more often."""
        value = getattr(self.attributes, name)
        fitting = [s for s in SENSES[name] if value in s.accepts and (not role or getattr(s, role))]
        exact = [s for s in fitting if len(s.accepts) == 1]
        loose = [s for s in fitting if len(s.accepts) > 1]
        pool = loose if loose and (not exact or self.chance(0.15)) else exact
        return pool[int(self.rng.random() * len(pool))]

    def label(self, name: str, accepts: tuple[str, ...]) -> None:
        """Record that the words accept these values; two statements about one attribute narrow each other."""
        known = self.labels.get(name, accepts)
        self.labels[name] = tuple(value for value in known if value in accepts)

    def say(self, role: str, text: str, color: str = "") -> None:
        """Add a piece: `{c}` becomes the colour, `{p}` the possessive pronoun."""
        if color and "{c}" not in text:
            text = self.pick((text + " in {c}", "{c} " + text, text + " of {c} colour"))
        if color and "{c}" in text and self.chance(0.06):
            text = text.replace("{c} ", "") + self.pick((", {c} in colour", " in a {c} shade", ", coloured {c}"))
        self.pieces.append(_Piece(role, tidy(text.replace("{c}", color).replace("{p}", _PRONOUNS[self.pronoun][1]))))

    def say_sense(self, name: str, role: str = "", color: str = "") -> None:
        """Add words for one attribute in a role, or in any role that it has."""
        sense = self.sense(name, role)
        role = role or self.pick(sense.roles())
        self.say(role, self.pick(getattr(sense, role)), color)
        self.label(name, sense.accepts)

    def tint(self, name: str) -> str:
        """A colour word for a colour attribute, recorded."""
        sense = self.sense(name, "tint")
        self.label(name, sense.accepts)
        return self.pick(sense.tint)


def phrase(name: str, value: str) -> str:
    """The plainest words for one value of an attribute, such as "a short beard" or "gray hair".

    ValueError for what no words mean alone, as the genders, whose words are nouns.
    """
    found = next((sense for sense in SENSES.get(name, ()) if sense.accepts == (value,)), None)
    if found is None:
        raise ValueError(f"there are no words for {name} {value!r}")
    if name in _COLORED:
        return f"{found.tint[0]} {_COLORED[name]}"
    first = (found.np or found.wear or found.state or found.adj)[0]
    return tidy(first.replace("{c}", " ").replace("{p}", "their"))


def tidy(text: str) -> str:
    """Single spaces, and "a" or "an" as the next letter wants it."""
    words = text.replace(" ,", ",").split()
    for i, word in enumerate(words[:-1]):
        if word in ("a", "an"):
            words[i] = "an" if words[i + 1][0] in "aeiouAEIOU" else "a"
    return " ".join(words)


def visible_attributes(attributes: Attributes) -> tuple[str, ...]:
    """The attributes that a viewer can tell: without eyes behind sunglasses or the hair colour where no hair is."""
    hidden = set()
    if attributes.glasses == "sunglasses":
        hidden |= {"eye_color", "eye_shape"}
    if attributes.hair_style == "bald" and not _shows_beard_color(attributes):
        hidden.add("hair_color")
    return tuple(name for name in CHOICES if name not in hidden)


def _shows_beard_color(attributes: Attributes) -> bool:
    """Stubble is too short to tell, and age grays a beard before the hair."""
    grayed = attributes.age == "elderly" and attributes.hair_color not in ("gray", "white")
    return attributes.facial_hair not in ("none", "stubble") and not grayed


def caption(attributes: Attributes, rng: Generator, *, full: float | None = None) -> str:
    """One caption of the avatar, drawn with `rng`.

    `full` is the share of the visible attributes to name, in [0, 1], at least one; None draws it. Raises ValueError for
    a share outside.
    """
    return caption_with_labels(attributes, rng, full=full)[0]


def caption_with_labels(attributes: Attributes, rng: Generator, *, full: float | None = None) -> tuple[str, Labels]:
    """A caption and what it says: for each attribute that it names, the values that its words accept."""
    if full is not None and not 0.0 <= full <= 1.0:
        raise ValueError(f"full is a share of the attributes, from 0 to 1; got {full}")
    visible = visible_attributes(attributes)
    share = full if full is not None else (1.0 if rng.random() < 0.06 else 0.9 * float(rng.random()) ** 1.7)
    draft = _Draft(attributes, rng, _choose(attributes, visible, max(1, round(share * len(visible))), rng))
    noun = _subject(draft)
    for describe in (_describe_hair, _describe_eyes, _describe_clothes, _describe_rest):
        describe(draft)
    draft.pieces = [draft.pieces[i] for i in rng.permutation(len(draft.pieces))]
    style = float(rng.random())
    if style < 0.42:
        text = _sentence(draft, noun)
    elif style < 0.72:
        text = _comma_list(draft, noun)
    elif style < 0.96:
        text = _sentences(draft, noun)
    else:
        text = _form(draft)
    return _finish(draft, text), draft.labels


def _choose(attributes: Attributes, visible: Sequence[str], count: int, rng: Generator) -> set[str]:
    """`count` attributes by salience: exponential clocks, the first to ring are named."""
    def clock(name: str) -> float:
        plain = getattr(attributes, name) in ("none", "average", "neutral")
        return float(rng.standard_exponential()) / (_SALIENCE[name] * (0.3 if plain else 1.0))
    return set(sorted(visible, key=clock)[:count])


def _subject(draft: _Draft) -> str:
    """The noun, which may carry gender and age; the pronoun follows. Other words for the age join the pieces."""
    attributes, named = draft.attributes, draft.named
    gender = attributes.gender if "gender" in named else ""
    age = attributes.age if "age" in named and draft.chance(0.45 if gender else 0.25) else ""
    if (gender, age) not in NOUNS:
        age = ""
    if gender:
        draft.label("gender", (gender,))
    if gender in ("woman", "man") and draft.chance(0.8):
        draft.pronoun = gender
    if age:
        draft.label("age", (age,))
    elif "age" in named:
        draft.say_sense("age")
    return draft.pick(NOUNS[gender, age])


def _describe_hair(draft: _Draft) -> None:
    bald = draft.attributes.hair_style == "bald"
    style, colored, beard = ("hair_style" in draft.named, "hair_color" in draft.named, "facial_hair" in draft.named)
    if style:
        joined = colored and not bald and draft.chance(0.75)
        role = "np" if joined or draft.chance(0.6) else ""
        draft.say_sense("hair_style", role, draft.tint("hair_color") if joined else "")
    hair_told = "hair_color" in draft.labels
    has_beard = _shows_beard_color(draft.attributes)
    if colored and not hair_told and not bald:
        sense = draft.sense("hair_color")
        if sense.adj and draft.chance(0.4):
            draft.say("adj", draft.pick(sense.adj))
            draft.label("hair_color", sense.accepts)
        else:
            draft.say("np", draft.pick(_COLORED_HAIR), draft.tint("hair_color"))
    if beard or (colored and bald):
        dyed = has_beard and ((bald and colored) or draft.chance(0.35 if colored else 0.1))
        draft.say_sense("facial_hair", "np" if dyed else "", draft.tint("hair_color") if dyed else "")


_COLORED_HAIR = ("{c} hair", "{c} hair", "{c} hair", "{c} locks", "{c} coloured hair", "hair that is {c}",
                 "{c} strands", "hair dyed {c}", "a head of {c} hair", "{c} hair colour", "hair of {c} colour",
                 "{c} hairs")
_COLORED_EYES = ("{c} eyes", "{c} eyes", "eyes that are {c}", "a pair of {c} eyes", "{c} coloured eyes",
                 "eyes of a {c} colour", "bright {c} eyes", "beautiful {c} eyes", "{c} irises")
_COLORED_CLOTHES = ("{c}", "{c} clothes", "{c} clothing", "a {c} outfit", "a {c} top", "something {c}", "{c} attire",
                    "{c} garments", "a {c} garment", "all {c}")


def _describe_eyes(draft: _Draft) -> None:
    shaped, colored = "eye_shape" in draft.named, "eye_color" in draft.named
    if shaped and colored and draft.chance(0.7):
        draft.say_sense("eye_shape", "np", draft.tint("eye_color"))
        return
    if shaped:
        draft.say_sense("eye_shape")
    if colored and draft.chance(0.3):
        draft.say_sense("eye_color", "adj")
    elif colored:
        draft.say("np", draft.pick(_COLORED_EYES), draft.tint("eye_color"))


def _describe_clothes(draft: _Draft) -> None:
    typed, colored = "clothing" in draft.named, "clothing_color" in draft.named
    if typed and colored:
        draft.say_sense("clothing", "wear", draft.tint("clothing_color"))
    elif typed:
        draft.say_sense("clothing")
    elif colored:
        draft.say("wear", draft.pick(_COLORED_CLOTHES), draft.tint("clothing_color"))


def _describe_rest(draft: _Draft) -> None:
    for name in ("skin_tone", "face_shape", "nose", "lips", "expression", "glasses", "hat", "earrings", "headphones",
                 "makeup"):
        if name in draft.named:
            draft.say_sense(name)


def _and(parts: Sequence[str], draft: _Draft) -> str:
    """ "a, b and c", now and then "a and b and c" or "a but b"."""
    if len(parts) < 2:
        return "".join(parts)
    if draft.chance(0.2):
        return draft.pick((" and ", " & ", ", ", " but ", " plus ")).join(parts)
    return ", ".join(parts[:-1]) + draft.pick((" and ", ", and ")) + parts[-1]


def _of(pieces: Iterable[_Piece], role: str) -> list[str]:
    return [piece.text for piece in pieces if piece.role == role]


def _noun_phrase(draft: _Draft, noun: str, adjectives: Sequence[str]) -> str:
    joiner = ", " if draft.chance(0.3) else " "
    return tidy(f"a {joiner.join(adjectives)} {noun}")


def _sentence(draft: _Draft, noun: str, pieces: Sequence[_Piece] | None = None) -> str:
    """ "a bearded man with curly hair, wearing a black leather jacket"."""
    pieces = draft.pieces if pieces is None else pieces
    limit = int(draft.rng.integers(1, 4))
    adjectives = _of(pieces, "adj")
    groups = [f"who {_PRONOUNS['man'][3]} {_and(adjectives[limit:], draft)}"] if adjectives[limit:] else []
    possessions, clothes, states = (_of(pieces, role) for role in ("np", "wear", "state"))
    if possessions:
        groups.append(draft.pick(("with ", "with ", "with ", "who has ", "having ")) + _and(possessions, draft))
    if clothes:
        verb = ("wearing ", "wearing ", "in ", "dressed in ", "sporting ", "posing in ", "who wears ", "clad in ",
                "having on ")
        groups.append(draft.pick(verb) + _and(clothes, draft))
    groups += states
    joiner = ", " if draft.chance(0.4) else " "
    order = draft.rng.permutation(len(groups))
    return joiner.join([_noun_phrase(draft, noun, adjectives[:limit]), *(groups[i] for i in order)])


def _comma_list(draft: _Draft, noun: str) -> str:
    """ "bearded, curls, black leather jacket, man"."""
    bare, verbs = draft.chance(0.5), draft.chance(0.3)
    parts = [("wearing " if verbs and piece.role == "wear" else "") + piece.text for piece in draft.pieces]
    if "gender" in draft.labels or "age" in draft.labels or draft.chance(0.4) or not parts:
        adjective = draft.pieces[0].text if draft.pieces and draft.pieces[0].role == "adj" else ""
        whole = _noun_phrase(draft, noun, [adjective] if adjective else [])
        parts = parts[1:] if adjective else parts
        place = 0 if draft.chance(0.7) else int(draft.rng.integers(0, len(parts) + 1))
        parts.insert(place, whole)
    if bare:
        parts = [part.removeprefix("a ").removeprefix("an ") for part in parts]
    return draft.pick((", ", ", ", ", ", ", ", "; ", " / ", " + ", " ", ". ")).join(parts)


def _sentences(draft: _Draft, noun: str) -> str:
    """ "A man with curls. He is wearing a leather jacket. His face is round."."""
    cut = int(draft.rng.integers(0, len(draft.pieces) + 1))
    subject, _, has, be = _PRONOUNS[draft.pronoun]
    plain = draft.pronoun and noun in NOUNS[draft.pronoun, ""] and draft.pieces
    cut = 0 if plain and draft.chance(0.3) else cut
    texts = [] if plain and cut == 0 else [_sentence(draft, noun, draft.pieces[:cut])]
    rest = draft.pieces[cut:]
    while rest:
        size = int(draft.rng.integers(1, 4))
        role = rest[0].role
        same = [piece for piece in rest if piece.role == role][:size]
        rest = [piece for piece in rest if piece not in same]
        wears = draft.pick((be + " wearing", be + " dressed in", be + " in"))
        verb = {"np": has, "wear": wears, "adj": be, "state": be}[role]
        texts.append(f"{subject} {verb} {_and([piece.text for piece in same], draft)}")
    return draft.pick((". ", ". ", ". ", ", ", " and ", "; ")).join(texts)


def _form(draft: _Draft) -> str:
    """ "hair style: curly, glasses: none": names and values as a form has them, and so exact labels."""
    draft.labels = {name: (getattr(draft.attributes, name),) for name in CHOICES if name in draft.named}
    sign, end = draft.pick((": ", "=", " - ", " ")), draft.pick((", ", "; ", " | "))
    names = list(draft.labels)
    order = draft.rng.permutation(len(names))
    return end.join(f"{names[i].replace('_', ' ')}{sign}{draft.labels[names[i]][0]}" for i in order)


def _misspell(word: str, draft: _Draft) -> str:
    """Swap, drop, double or replace one letter inside the word."""
    at = int(draft.rng.integers(1, len(word) - 1))
    kind = int(draft.rng.integers(0, 4))
    letter = "abcdefghijklmnopqrstuvwxyz"[int(draft.rng.integers(0, 26))]
    before, here, after = word[:at], word[at], word[at + 1:]
    return before + (after[0] + here + after[1:], after, here + here + after, letter + after)[kind]


def _finish(draft: _Draft, text: str) -> str:
    """Openings and closings, the small sins of typing, upper and lower case."""
    if draft.chance(0.35):
        text = f"{draft.pick(OPENINGS)} {text}"
    if draft.chance(0.25):
        text = f"{text}, {draft.pick(CLOSINGS)}" if draft.chance(0.7) else f"{text} {draft.pick(CLOSINGS)}"
    words = text.split(" ")
    if draft.chance(0.12):
        words = [word for word in words if word not in ("a", "an", "the")] or words
    if draft.chance(0.2):
        words = [_misspell(w, draft) if len(w) > 4 and w.isalpha() and draft.chance(0.12) else w for w in words]
    text = " ".join(words)
    case = float(draft.rng.random())
    if case < 0.35:
        text = ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
        return text + ("." if draft.chance(0.5) else "")
    return text.upper() if case < 0.38 else text.title() if case < 0.42 else text
