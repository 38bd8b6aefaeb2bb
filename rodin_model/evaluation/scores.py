"""Counting: how often a picture shows what was asked for, attribute by attribute, and what chance would give.

What was asked for is a set of accepted values for each attribute that was named ("a bearded man" accepts three kinds
of beard). Chance is the share of randomly drawn avatars that would fulfil the same words, which is harder to beat than
a uniform guess: most avatars wear no hat.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rodin_model.avatars.attributes import CHOICES, sample_attributes
from rodin_model.evaluation.sampler import Row

#: The attributes over which the headline figure is taken.
MAIN = ("hair_style", "hair_color", "facial_hair", "glasses", "hat", "skin_tone", "clothing")

Words = Mapping[str, str]
Wanted = Mapping[str, Sequence[str]]


@dataclass
class Count:
    """Of `named` times that an attribute was asked for, how often it was shown, and how often chance would show it."""

    named: int = 0
    shown: int = 0
    by_chance: float = 0.0

    @property
    def rate(self) -> float:
        """The share shown, NaN if nothing was asked for."""
        return self.shown / self.named if self.named else float("nan")

    @property
    def chance(self) -> float:
        """The share that chance would show, NaN if nothing was asked for."""
        return self.by_chance / self.named if self.named else float("nan")

    def __add__(self, other: Count) -> Count:
        return Count(self.named + other.named, self.shown + other.shown, self.by_chance + other.by_chance)


@functools.cache
def frequencies(avatars: int = 4096, seed: int = 0) -> dict[str, dict[str, float]]:
    """How often each value occurs among randomly drawn avatars: {attribute: {value: share}}."""
    drawn = [sample_attributes(seed * 1_000_000 + i) for i in range(avatars)]
    return {name: {value: sum(getattr(a, name) == value for a in drawn) / avatars for value in values}
            for name, values in CHOICES.items()}


def count(shown: Sequence[Words], wanted: Sequence[Wanted],
          shares: Mapping[str, Mapping[str, float]]) -> dict[str, Count]:
    """One `Count` for each attribute over pairs of what a picture shows and what was asked for.

    ValueError unless there is one of the other for each.
    """
    if len(shown) != len(wanted):
        raise ValueError(f"every request needs one picture; got {len(shown)} pictures for {len(wanted)} requests")
    counts = {name: Count() for name in CHOICES}
    for words, request in zip(shown, wanted, strict=True):
        for name, accepted in request.items():
            counts[name] += Count(1, int(words[name] in accepted), sum(shares[name][value] for value in accepted))
    return counts


def pooled(counts: Mapping[str, Count], names: Iterable[str] = MAIN) -> Count:
    """All requests for some attributes taken together."""
    total = Count()
    for name in names:
        total += counts[name]
    return total


def with_pools(counts: Mapping[str, Count]) -> dict[str, Count]:
    """The counts of what was asked for: first the main attributes, their pool, then the others, and all together."""
    others = [name for name in CHOICES if name not in MAIN]
    if not counts:
        return {}
    ordered = {**{name: counts[name] for name in MAIN}, f"these {len(MAIN)}": pooled(counts),
               **{name: counts[name] for name in others}, "all": pooled(counts, CHOICES)}
    return {name: row for name, row in ordered.items() if row.named}


def table(title: str, shown: Mapping[str, Count], truth: Mapping[str, Count] | None = None) -> str:
    """A table for people: attribute, how often asked for, chance, the reader on true pictures, and the result."""
    reader = with_pools(truth) if truth else {}
    lines = [title, f"  {'attribute':16s} asked  chance  true pictures  result"]
    for name, row in with_pools(shown).items():
        ceiling = f"{reader[name].rate:13.1%}" if name in reader else " " * 13
        lines.append(f"  {name:16s} {row.named:5d}  {row.chance:6.1%}  {ceiling}  {row.rate:6.1%}")
    return "\n".join(lines)


def plain(counts: Mapping[str, Count]) -> dict[str, dict[str, float]]:
    """The same as data for JSON, with the pooled figures; attributes that nobody asked for are left out."""
    return {name: {"asked": row.named, "shown": row.rate, "chance": row.chance}
            for name, row in with_pools(counts).items()}


def rows(what: str, shown: Mapping[str, Count], truth: Mapping[str, Count] | None = None) -> list[Row]:
    """The two pooled figures as rows of the table: the main attributes, and all."""
    result, reader = with_pools(shown), with_pools(truth or {})
    return [Row(f"{what}: {label}", result[name].named, result[name].rate, result[name].chance,
                reader[name].rate if name in reader else None)
            for name, label in ((f"these {len(MAIN)}", f"{len(MAIN)} headline attributes"), ("all", "all attributes"))
            if name in result]
