"""Portraits to avatars: from the front and from the side, as plain pictures of held-out avatars."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rodin_model.avatars.attributes import CHOICES, Attributes
from rodin_model.evaluation import scores
from rodin_model.evaluation.neighbours import true_fronts
from rodin_model.evaluation.sampler import Sampler, Section, pairs
from rodin_model.evaluation.visibility import wanted_of
from rodin_model.reader import AttributeReader

#: Degrees that portraits are turned by, to either side.
SIDES = (30, 60)


def evaluate_portraits(sampler: Sampler, reader: AttributeReader, avatars: Sequence[Attributes],
                       truth: Tensor) -> Section:
    """True front pictures of held-out avatars to avatars: does the result have the attributes of the portrait?"""
    fronts = sampler.fronts("from portraits", portraits=truth)
    wanted = [wanted_of(a) for a in avatars]
    shares = scores.frequencies()
    shown, ceiling = (scores.count(reader.read(p), wanted, shares) for p in (fronts, truth))
    title = f"Portrait to avatar ({len(avatars)} held-out avatars)"
    page = pairs(truth, fronts, ("portrait", "avatar"), title)
    return Section(scores.table(title, shown, ceiling),
                   {"result": scores.plain(shown), "reader": scores.plain(ceiling)}, {"portraits.png": page},
                   scores.rows("portrait from the front", shown, ceiling))


def evaluate_sides(sampler: Sampler, reader: AttributeReader, avatars: Sequence[Attributes],
                   truth: Tensor) -> Section:
    """Portraits from the side, left and right in turn, read from the front of what becomes of them."""
    lines, metrics, shares, rows = ["Portrait from the side to avatar"], {}, scores.frequencies(), []
    wanted = [wanted_of(a) for a in avatars]
    ceiling = scores.count(reader.read(truth), wanted, shares)
    for yaw in SIDES:
        looks = torch.stack([true_fronts([a], sampler.options.size, yaw=yaw if i % 2 else -yaw)[0]
                             for i, a in enumerate(avatars)])
        shown = scores.count(reader.read(sampler.fronts(f"from {yaw} degrees", portraits=looks)), wanted, shares)
        metrics[str(yaw)] = scores.plain(shown)
        main, whole = scores.pooled(shown), scores.pooled(shown, CHOICES)
        lines.append(f"  {yaw} degrees, {len(avatars)} avatars: these {len(scores.MAIN)} {main.rate:.1%} "
                     f"(chance {main.chance:.1%}), all {whole.rate:.1%} (chance {whole.chance:.1%})")
        rows += scores.rows(f"portrait from {yaw} degrees aside", shown, ceiling)
    return Section("\n".join(lines), metrics, rows=rows)
