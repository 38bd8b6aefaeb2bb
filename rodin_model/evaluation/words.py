"""Words to avatars: captions of held-out avatars, phrasings that no template made, and many avatars of one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from rodin_model import checkpoints, sheets
from rodin_model.avatars.attributes import Attributes, sample_attributes
from rodin_model.avatars.captions import caption_with_labels
from rodin_model.evaluation import scores
from rodin_model.evaluation.neighbours import features, nearest_other, true_fronts
from rodin_model.evaluation.sampler import HELD_OUT_SEED, PER_SEED, Row, Sampler, Section, channels_last
from rodin_model.evaluation.visibility import excuse
from rodin_model.reader import AttributeReader

PHRASINGS = Path(__file__).parent / "phrasings.json"
#: One sentence for many avatars, and what its words ask for.
SENTENCE = "A bearded man with curly hair posing in a black leather jacket"
ASKED: dict[str, tuple[str, ...]] = {
    "gender": ("man",), "facial_hair": ("goatee", "short beard", "full beard"), "hair_style": ("curly",),
    "clothing": ("leather jacket",), "clothing_color": ("black",)}


def evaluate_text(sampler: Sampler, reader: AttributeReader, avatars: Sequence[Attributes], truth: Tensor,
                  ) -> tuple[Section, Tensor]:
    """Captions of held-out avatars to avatars: is what they name shown? With the front pictures."""
    drawn = [caption_with_labels(a, np.random.default_rng([0xE7A1, i])) for i, a in enumerate(avatars)]
    texts = [text for text, _ in drawn]
    wanted = [excuse(a, labels) for a, (_, labels) in zip(avatars, drawn, strict=True)]
    fronts = sampler.fronts("from words", prompts=texts)
    shares = scores.frequencies()
    shown, ceiling = (scores.count(reader.read(p), wanted, shares) for p in (fronts, truth))
    title = f"Words to avatar ({len(texts)} captions of held-out avatars)"
    page = sheets.sheet(list(channels_last(fronts[:16])), 4, texts[:16], cell=256, title=title, lines=5)
    section = Section(scores.table(title, shown, ceiling),
                      {"result": scores.plain(shown), "reader": scores.plain(ceiling)}, {"text.png": page},
                      scores.rows("words to avatar", shown, ceiling))
    return section, fronts


def evaluate_phrasings(sampler: Sampler, reader: AttributeReader) -> Section:
    """Descriptions written by hand, outside the caption generator: is what they mean understood?"""
    entries = checkpoints.read_json(PHRASINGS)[:sampler.options.phrasings]
    texts, wanted = [entry["text"] for entry in entries], [entry["accepts"] for entry in entries]
    fronts = sampler.fronts("hand-written", prompts=texts)
    words = reader.read(fronts)
    shown = scores.count(words, wanted, scores.frequencies())
    lines = [scores.table(f"Hand-written descriptions ({len(texts)}, none ever trained on)", shown)]
    for text, seen, request in zip(texts, words, wanted, strict=True):
        missed = [f"{name} {seen[name]!r}" for name, accepted in request.items() if seen[name] not in accepted]
        lines.append(f"  {len(request) - len(missed)}/{len(request)}  {text}" + ("; shows " if missed else "")
                     + ", ".join(missed))
    page = sheets.sheet(list(channels_last(fronts)), 6, texts, cell=192, title="Hand-written descriptions", lines=4)
    return Section("\n".join(lines), {"result": scores.plain(shown)}, {"phrasings.png": page},
                   scores.rows("hand-written phrasings to avatar", shown))


def evaluate_alike(sampler: Sampler, reader: AttributeReader) -> Section:
    """Many avatars of one sentence: does each show all of it, and are they as different as true ones would be?

    True ones are procedural avatars with the same words and other numbers, in whatever the sentence leaves open.
    """
    count = sampler.options.alike
    fronts = sampler.fronts("of one sentence", prompts=[SENTENCE] * count)
    true = true_fronts([_namesake(i) for i in range(count)], sampler.options.size, "of the same words")
    words, shares = reader.read(fronts), scores.frequencies()
    shown, ceiling = (scores.count(w, [ASKED] * count, shares) for w in (words, reader.read(true)))
    whole = [sum(all(w[name] in values for name, values in ASKED.items()) for w in several)
             for several in (words, reader.read(true))]
    apart = [float(nearest_other(features(reader, p)).median()) for p in (fronts, true)]
    lines = [f"{count} avatars of \"{SENTENCE}\"", *(f"  {name:16s} {shown[name].shown} of {count}" for name in ASKED),
             f"  all of these in {whole[0]} of {count} (true ones, as the reader sees them: {whole[1]})",
             f"  distance to the most alike, median: {apart[0]:.2f} (true ones {apart[1]:.2f})"]
    metrics = {"sentence": SENTENCE, "result": scores.plain(shown), "reader": scores.plain(ceiling),
               "whole": whole[0] / count, "whole_reader": whole[1] / count, "apart": apart[0], "apart_true": apart[1]}
    page = sheets.sheet(list(channels_last(fronts)), 4, cell=192, title=SENTENCE)
    named = [Row(f"one sentence, many avatars: {name.replace('_', ' ')}", count, shown[name].rate, shown[name].chance,
                 ceiling[name].rate) for name in ASKED]
    rows = [*named, Row("one sentence: all of these at once", count, whole[0] / count, None, whole[1] / count),
            Row("one sentence: distance to the most alike", count, apart[0], None, apart[1], "{:.2f}")]
    return Section("\n".join(lines), metrics, {"sentence.png": page}, rows)


def _namesake(number: int) -> Attributes:
    """A held-out avatar that the sentence describes; where it accepts several values, they take turns."""
    fixed = {name: values[number % len(values)] for name, values in ASKED.items()}
    return sample_attributes(HELD_OUT_SEED * PER_SEED + number, **fixed, hat="none")
