"""Edits in words: is what was asked for there afterwards, and is everything else still what it was?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rodin_model import sheets
from rodin_model.avatars.attributes import Attributes
from rodin_model.avatars.captions import caption_with_labels
from rodin_model.evaluation.neighbours import true_fronts
from rodin_model.evaluation.sampler import Row, Sampler, Section, channels_last
from rodin_model.evaluation.scores import Count
from rodin_model.reader import AttributeReader

#: Words of an edit, and which values of which attribute they ask for; a true avatar takes the first.
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


def evaluate_edits(sampler: Sampler, reader: AttributeReader, avatars: Sequence[Attributes],
                   truth: Tensor) -> Section:
    """Avatars from captions, edited in words, beside true avatars whose words were changed alike.

    What the reader names otherwise on the true pair is its own doubt about the picture: the ceiling of both figures.
    """
    prompts = [caption_with_labels(a, np.random.default_rng([0xE7A1, i]))[0] for i, a in enumerate(avatars)]
    before, after = edited(sampler, prompts, list(EDITS))
    was, true_was = reader.read(before), reader.read(truth)
    lines, metrics, rows = [f"Edits of {len(avatars)} avatars"], {}, []
    pools = [Count() for _ in range(4)]
    for index, (text, asked) in enumerate(EDITS.items()):
        changed = [a.replace(**{name: values[0] for name, values in asked.items()}) for a in avatars]
        counts = [*count_edits(was, reader.read(after[:, index]), asked),
                  *count_edits(true_was, reader.read(true_fronts(changed, sampler.options.size, text)), asked)]
        pools = [pool + count for pool, count in zip(pools, counts, strict=True)]
        metrics[text] = _figures(*counts)
        lines.append(f"  {text:16s} reached {counts[0].shown} of {counts[0].named}, others kept {counts[1].rate:.1%}")
        # all may wear sunglasses already
        if counts[0].named:
            rows.append(_row(f"edit \"{text}\": target reached", counts[0], counts[2]))
    metrics["all"] = _figures(*pools)
    lines.append(f"  {'all':16s} reached {pools[0].rate:.1%} (true pictures {pools[2].rate:.1%}), "
                 f"others kept {pools[1].rate:.1%} (true pictures {pools[3].rate:.1%})")
    rows += [_row("edits: target reached", pools[0], pools[2]), _row("edits: all else kept", pools[1], pools[3])]
    looks = channels_last(torch.cat([before[:, None], after], 1).flatten(0, 1))
    labels = ["before", *EDITS] * len(before)
    page = sheets.sheet(list(looks), 1 + len(EDITS), labels, cell=192, title=lines[0], lines=1)
    return Section("\n".join(lines), metrics, {"edits.png": page}, rows)


def edited(sampler: Sampler, prompts: Sequence[str], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Front pictures before [N, 3, S, S] and after each edit [N, E, 3, S, S] of avatars made from words."""
    before, after = [], []
    for row in tqdm(range(len(prompts)), desc="edits", disable=None):
        avatar, = sampler.avatars(range(row, row + 1), prompts)
        before.append(sampler.look(avatar))
        after.append(torch.stack([sampler.look(sampler.pipe.edit(avatar, text)) for text in texts]))
    return torch.stack(before), torch.stack(after)


def _figures(target: Count, others: Count, true_target: Count, true_others: Count) -> dict[str, Any]:
    """As data for JSON, which knows no NaN: None where every avatar was like that before."""
    return {"asked": target.named, "reached": _rate(target), "others_kept": _rate(others),
            "reader_reached": _rate(true_target), "reader_others_kept": _rate(true_others)}


def _rate(count: Count) -> float | None:
    return count.rate if count.named else None


def _row(what: str, count: Count, truth: Count) -> Row:
    return Row(what, count.named, _rate(count), None, _rate(truth))
