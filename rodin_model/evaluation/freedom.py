"""Avatars that nobody described: are they new, different from each other, and alike to true ones as a whole?"""

from __future__ import annotations

from torch import Tensor

from rodin_model.evaluation.frechet import frechet_distance
from rodin_model.evaluation.neighbours import Neighbours, features, nearest_other, true_fronts
from rodin_model.evaluation.sampler import Row, Sampler, Section, pairs
from rodin_model.reader import AttributeReader

#: The share of the nearest avatars that is looked at for copies.
NEAREST = 0.05


def evaluate_noise(sampler: Sampler, reader: AttributeReader, truth: Tensor, known: Neighbours) -> Section:
    """Avatars from noise: as far from each other, and from the nearest training avatar, as new true avatars are?"""
    count, size = sampler.options.noise, sampler.options.size
    fronts = sampler.fronts("from noise", count=count)
    made, new = (features(reader, p) for p in (fronts, truth))
    (distance, nearest), (yardstick, _) = known.nearest(made), known.nearest(new)
    others, new_others = nearest_other(made), nearest_other(new[:count])
    metrics = {"to_training": float(distance.median()), "held_out_to_training": float(yardstick.median()),
               "low_to_training": float(distance.quantile(NEAREST)),
               "held_out_low_to_training": float(yardstick.quantile(NEAREST)),
               "smallest_to_training": float(distance.min()), "held_out_smallest_to_training": float(yardstick.min()),
               "to_each_other": float(others.median()), "held_out_to_each_other": float(new_others.median())}
    title = f"Noise to avatar ({count} avatars, nearest among {len(known.seeds)} training avatars)"
    lines = [f"{title}\n  distance of what the reader sees      result   {len(new)} true held-out avatars"]
    rows = []
    for what, name in (("to the nearest in training, median", "to_training"),
                       ("to the nearest in training, 5th percentile", "low_to_training"),
                       ("to the nearest in training, smallest", "smallest_to_training"),
                       ("to the nearest of each other, median", "to_each_other")):
        lines.append(f"  {what:42s}  {metrics[name]:6.2f}   {metrics['held_out_' + name]:6.2f}")
        rows.append(Row(f"from noise: distance {what}", count, metrics[name], None, metrics["held_out_" + name],
                        "{:.2f}"))
    page = pairs(fronts, true_fronts(nearest, size, "their neighbours"), ("from noise", "nearest in training"), title)
    return Section("\n".join(lines), metrics, {"noise.png": page}, rows)


def evaluate_distance(reader: AttributeReader, fronts: Tensor, truth: Tensor, others: Tensor) -> Section:
    """Frechet distance of pictures made from captions to true ones, beside that of as many other true ones.

    The captions are those of `truth`, so a model that follows them is nearer to it than other avatars are; therefore
    the distance to `others` [M, 3, S, S], which share no caption with `fronts`, is the figure, and `truth` the floor's.
    """
    made, true, rest = (features(reader, p) for p in (fronts, truth, others))
    result, floor = frechet_distance(made, rest), frechet_distance(true, rest)
    own = frechet_distance(made, true)
    line = (f"Frechet distance to {len(others)} true pictures: {result:.3f}; of {len(truth)} other true ones "
            f"{floor:.3f} ({result / max(floor, 1e-9):.2f} times it); to those of the same captions {own:.3f}")
    rows = [Row("Frechet distance to true pictures", len(fronts), result, None, floor, "{:.3f}")]
    return Section(line, {"result": result, "truth": floor, "to_own_captions": own, "true_pictures": len(others)},
                   rows=rows)
