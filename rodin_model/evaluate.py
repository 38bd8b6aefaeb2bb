"""`python -m rodin_model.evaluate`: figures and contact sheets of a model, on avatars and captions it never saw.

The judge is the attribute reader, a network trained on true pictures alone. Beside every figure stand its ceiling,
what the reader gets right on true pictures of the same avatars, and its floor, what chance would give.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from rodin_model import checkpoints, sheets
from rodin_model.avatars.attributes import CHOICES, Attributes, sample_attributes
from rodin_model.avatars.captions import caption_with_labels
from rodin_model.evaluation import scores
from rodin_model.evaluation.edits import EDITS, count_edits
from rodin_model.evaluation.fits import measure_fits
from rodin_model.evaluation.frechet import frechet_distance
from rodin_model.evaluation.neighbours import FILE, Neighbours, features, nearest_other, true_fronts
from rodin_model.pipeline import RodinPipeline
from rodin_model.provenance import Mark
from rodin_model.reader import SHIPPED, AttributeReader
from rodin_model.triplane import Avatar

#: Avatar i of seed s is drawn from the number s million + i; held-out avatars are those of seed 1.
TRAINING_SEED, HELD_OUT_SEED, PER_SEED = 0, 1, 1_000_000
#: Degrees that portraits are turned by, to either side.
SIDES = (30, 60)
PHRASINGS = Path(__file__).parent / "evaluation" / "phrasings.json"


@dataclass(frozen=True)
class Options:
    """How much is measured, and how the model is sampled (None: as its index recommends)."""

    count: int = 64
    noise: int = 16
    fits: int = 4
    edited: int = 8
    phrasings: int | None = None
    size: int = 256
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0


@dataclass
class Section:
    """One part of the report: its lines, its figures as data, and its sheets by file name."""

    text: str
    metrics: dict[str, Any]
    pictures: dict[str, Image] = field(default_factory=dict)
    fronts: Tensor = field(default_factory=lambda: torch.zeros(0))


class Sampler:
    """The pipeline as the evaluation uses it: many avatars, each from its own seed, seen from the front."""

    batch = 16

    def __init__(self, pipe: RodinPipeline, options: Options) -> None:
        self.pipe, self.options = pipe, options
        pipe.set_progress_bar_config(disable=True)

    def look(self, avatar: Avatar) -> Tensor:
        """The front picture [3, S, S] of an avatar, in [0, 1]."""
        return avatar.turntable(1, self.options.size)[0].permute(2, 0, 1).cpu().clamp(0, 1)

    def edits(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Front pictures before [N, 3, S, S] and after each edit [N, E, 3, S, S] of avatars made from words."""
        before, after = [], []
        for row in tqdm(range(len(prompts)), desc="edits", disable=None):
            avatar, = self._avatars(range(row, row + 1), prompts, ())
            before.append(self.look(avatar))
            after.append(torch.stack([self.look(self.pipe.edit(avatar, text)) for text in texts]))
        return torch.stack(before), torch.stack(after)

    def fronts(self, what: str, *, prompts: Sequence[str] = (), portraits: Sequence[Tensor] | Tensor = (),
               count: int = 0) -> Tensor:
        """Front pictures [N, 3, S, S] of avatars made from words, from portraits [3, H, W], or from noise."""
        pictures = []
        with tqdm(total=len(prompts) or len(portraits) or count, desc=what, disable=None) as progress:
            for first in range(0, progress.total, self.batch):
                rows = range(first, min(first + self.batch, progress.total))
                for avatar in self._avatars(rows, prompts, portraits):
                    pictures.append(self.look(avatar))
                progress.update(len(rows))
        return torch.stack(pictures)

    def _avatars(self, rows: range, prompts: Sequence[str], portraits: Sequence[Tensor] | Tensor) -> list[Avatar]:
        seed = self.options.seed * 1_000_003
        settings: dict[str, Any] = {"num_inference_steps": self.options.num_inference_steps,
                                    "guidance_scale": self.options.guidance_scale,
                                    "generator": [torch.Generator().manual_seed(seed + row) for row in rows]}
        if len(prompts):
            return self.pipe([prompts[row] for row in rows], **settings).avatars  # type: ignore[union-attr]
        if len(portraits):
            return self.pipe(image=[portraits[row] for row in rows], **settings).avatars  # type: ignore[union-attr]
        return self.pipe(num_avatars_per_prompt=len(rows), **settings).avatars  # type: ignore[union-attr]


def held_out(count: int) -> list[Attributes]:
    """The first held-out avatars: no stage of training has seen them."""
    return [sample_attributes(HELD_OUT_SEED * PER_SEED + i) for i in range(count)]


def evaluate_text(sampler: Sampler, reader: AttributeReader, avatars: Sequence[Attributes], truth: Tensor) -> Section:
    """Captions of held-out avatars to avatars: does the picture show what the caption names?"""
    drawn = [caption_with_labels(a, np.random.default_rng([0xE7A1, i])) for i, a in enumerate(avatars)]
    texts, wanted = [text for text, _ in drawn], [labels for _, labels in drawn]
    fronts = sampler.fronts("from words", prompts=texts)
    shares = scores.frequencies()
    shown, ceiling = (scores.count(reader.read(p), wanted, shares) for p in (fronts, truth))
    title = f"Words to avatar ({len(texts)} captions of held-out avatars)"
    page = sheets.sheet(list(channels_last(fronts[:16])), 4, texts[:16], cell=256, title=title, lines=5)
    return Section(scores.table(title, shown, ceiling),
                   {"result": scores.plain(shown), "reader": scores.plain(ceiling)}, {"text.png": page}, fronts)


def evaluate_portraits(sampler: Sampler, reader: AttributeReader, avatars: Sequence[Attributes],
                       truth: Tensor) -> Section:
    """True front pictures of held-out avatars to avatars: does the result have the attributes of the portrait?"""
    fronts = sampler.fronts("from portraits", portraits=truth)
    wanted = [scores.wanted_of(a) for a in avatars]
    shares = scores.frequencies()
    shown, ceiling = (scores.count(reader.read(p), wanted, shares) for p in (fronts, truth))
    title = f"Portrait to avatar ({len(avatars)} held-out avatars)"
    page = pairs(truth, fronts, ("portrait", "avatar"), title)
    return Section(scores.table(title, shown, ceiling),
                   {"result": scores.plain(shown), "reader": scores.plain(ceiling)}, {"portraits.png": page})


def evaluate_sides(sampler: Sampler, reader: AttributeReader, avatars: Sequence[Attributes]) -> Section:
    """Portraits from the side, left and right in turn, read from the front of what becomes of them."""
    lines, metrics, shares = ["Portrait from the side to avatar"], {}, scores.frequencies()
    for yaw in SIDES:
        looks = torch.stack([true_fronts([a], sampler.options.size, yaw=yaw if i % 2 else -yaw)[0]
                             for i, a in enumerate(avatars)])
        shown = scores.count(reader.read(sampler.fronts(f"from {yaw} degrees", portraits=looks)),
                             [scores.wanted_of(a) for a in avatars], shares)
        metrics[str(yaw)] = scores.plain(shown)
        main, whole = scores.pooled(shown), scores.pooled(shown, CHOICES)
        lines.append(f"  {yaw} degrees, {len(avatars)} avatars: these {len(scores.MAIN)} {main.rate:.1%} "
                     f"(chance {main.chance:.1%}), all {whole.rate:.1%} (chance {whole.chance:.1%})")
    return Section("\n".join(lines), metrics)


def evaluate_edits(sampler: Sampler, reader: AttributeReader, avatars: Sequence[Attributes]) -> Section:
    """Avatars from captions, edited in words: is the target reached, and is all else what it was?"""
    prompts = [caption_with_labels(a, np.random.default_rng([0xE7A1, i]))[0] for i, a in enumerate(avatars)]
    before, after = sampler.edits(prompts, list(EDITS))
    was, lines, metrics = reader.read(before), [f"Edits of {len(avatars)} avatars"], {}
    reached, kept = scores.Count(), scores.Count()
    for index, (text, asked) in enumerate(EDITS.items()):
        target, others = count_edits(was, reader.read(after[:, index]), asked)
        reached, kept = reached + target, kept + others
        metrics[text] = edit_figures(target, others)
        lines.append(f"  {text:16s} reached {target.shown} of {target.named}, others kept {others.rate:.1%}")
    metrics["all"] = edit_figures(reached, kept)
    lines.append(f"  {'all':16s} reached {reached.rate:.1%}, others kept {kept.rate:.1%}")
    rows = channels_last(torch.cat([before[:, None], after], 1).flatten(0, 1))
    page = sheets.sheet(list(rows), 1 + len(EDITS), ["before", *EDITS] * len(before), cell=192, title=lines[0], lines=1)
    return Section("\n".join(lines), metrics, {"edits.png": page})


def edit_figures(target: scores.Count, others: scores.Count) -> dict[str, Any]:
    """As data for JSON, which knows no NaN: None where every avatar was like that before."""
    return {"asked": target.named, "reached": target.rate if target.named else None, "others_kept": others.rate}


def evaluate_distance(reader: AttributeReader, fronts: Tensor, truth: Tensor, others: Tensor) -> Section:
    """Frechet distance of pictures made from captions to true ones, beside that of as many other true ones."""
    made, true, rest = (features(reader, p) for p in (fronts, truth, others))
    result, floor = frechet_distance(made, true), frechet_distance(rest, true)
    line = f"Frechet distance to {len(truth)} true pictures: {result:.3f}; of {len(others)} other true ones {floor:.3f}"
    return Section(line, {"result": result, "truth": floor})


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
    return Section("\n".join(lines), {"result": scores.plain(shown)}, {"phrasings.png": page})


def evaluate_noise(sampler: Sampler, reader: AttributeReader, truth: Tensor, known: Neighbours) -> Section:
    """Avatars from noise: as far from each other, and from the nearest training avatar, as new true avatars are?"""
    count, size = sampler.options.noise, sampler.options.size
    fronts = sampler.fronts("from noise", count=count)
    made, new = (features(reader, p) for p in (fronts, truth))
    (distance, nearest), (yardstick, _) = known.nearest(made), known.nearest(new)
    others, new_others = nearest_other(made), nearest_other(new[:count])
    metrics = {"to_training": median(distance), "held_out_to_training": median(yardstick),
               "smallest_to_training": float(distance.min()), "held_out_smallest_to_training": float(yardstick.min()),
               "to_each_other": median(others), "held_out_to_each_other": median(new_others)}
    title = f"Noise to avatar ({count} avatars, nearest among {len(known.seeds)} training avatars)"
    lines = [f"{title}\n  distance of what the reader sees      result   true held-out avatars"]
    for what, name in (("to the nearest in training, median", "to_training"),
                       ("to the nearest in training, smallest", "smallest_to_training"),
                       ("to the nearest of each other, median", "to_each_other")):
        lines.append(f"  {what:36s}  {metrics[name]:6.2f}   {metrics['held_out_' + name]:6.2f}")
    page = pairs(fronts, true_fronts(nearest, size, "their neighbours"), ("from noise", "nearest in training"), title)
    return Section("\n".join(lines), metrics, {"noise.png": page})


def pairs(first: Tensor, second: Tensor, names: tuple[str, str], title: str) -> Image:
    """A sheet of up to 16 pairs of pictures [N, 3, H, W], side by side, four pairs a row."""
    both = [p for pair in zip(channels_last(first[:16]), channels_last(second[:16]), strict=True) for p in pair]
    return sheets.sheet(both, min(8, len(both)), list(names) * (len(both) // 2), cell=192, title=title, lines=1)


def median(values: Tensor) -> float:
    """The middle value."""
    return float(values.median())


def channels_last(pictures: Tensor) -> Tensor:
    """[N, 3, H, W] as [N, H, W, 3]."""
    return pictures.permute(0, 2, 3, 1)


def evaluate(pipe: RodinPipeline, reader: AttributeReader, known: Neighbours, options: Options, *,
             data: Path | None = None, planes: Path | None = None) -> dict[str, Section]:
    """All sections of the report, in order; `data` and `planes` as `measure_fits` takes them."""
    sampler, avatars, report = Sampler(pipe, options), held_out(options.count), {}
    if options.fits or planes is not None:
        report["fit"] = Section(*measure_fits(pipe, options.fits, HELD_OUT_SEED, data, planes))
    truth = true_fronts(avatars, options.size)
    report["text"] = evaluate_text(sampler, reader, avatars, truth)
    report["portrait"] = evaluate_portraits(sampler, reader, avatars, truth)
    report["sides"] = evaluate_sides(sampler, reader, avatars[:-(-options.count // 2)])
    if options.edited:
        report["edits"] = evaluate_edits(sampler, reader, avatars[:options.edited])
    report["phrasings"] = evaluate_phrasings(sampler, reader)
    report["noise"] = evaluate_noise(sampler, reader, truth, known)
    if options.count > 1:
        others = true_fronts(held_out(2 * options.count)[options.count:], options.size, "other true pictures")
        report["distance"] = evaluate_distance(reader, report["text"].fronts, truth, others)
    return report


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.evaluate",
                                     description="Figures and contact sheets of a model, on avatars it never saw.")
    parser.add_argument("--model", help="a folder or a hub id; the shipped model if left out")
    parser.add_argument("--reader", type=Path, help="folder of the attribute reader; the shipped one if left out")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for metrics.json and the sheets")
    parser.add_argument("--count", type=int, default=Options.count, help="captions, and portraits")
    parser.add_argument("--noise", type=int, default=Options.noise, help="avatars from noise")
    parser.add_argument("--fits", type=int, default=Options.fits, help="held-out avatars to fit; 0: none")
    parser.add_argument("--edited", type=int, default=Options.edited, help="avatars to edit")
    parser.add_argument("--fitted-data", type=Path, help="a held-out data set to fit, instead of drawing one")
    parser.add_argument("--fitted-planes", type=Path, help="planes that were fitted to --fitted-data, to measure")
    parser.add_argument("--training", type=int, help="look for neighbours among so many training avatars, drawn anew")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--guidance", type=float, help="strength of the guidance")
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--quick", action="store_true", help="a few avatars of everything: a check, no measurement")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, save; 2 and one line of explanation if something that is needed is missing or wrong."""
    given = parse(arguments)
    options = Options(given.count, given.noise, given.fits, given.edited, None, 256, given.steps, given.guidance,
                      given.seed)
    if given.quick:
        options = replace(options, count=min(8, given.count), noise=min(4, given.noise), fits=min(1, given.fits),
                          edited=min(2, given.edited), phrasings=4)
    try:
        if options.count < 1 or options.noise < 2:
            raise ValueError(f"--count must be at least 1 and --noise at least 2; got {given.count} and {given.noise}")
        given.output_dir.mkdir(parents=True, exist_ok=True)
        reader = AttributeReader.load(given.reader)
        known = neighbours(given.reader, reader, given.training or (32 if given.quick else None))
        pipe = RodinPipeline.from_pretrained(given.model, device=given.device)
        began = time.time()
        report = evaluate(pipe, reader, known, options, data=given.fitted_data, planes=given.fitted_planes)
        for section in report.values():
            print(section.text, end="\n\n")
            for name, page in section.pictures.items():
                sheets.save_sheet(given.output_dir / name, page, Mark(pipe.index.name))
        metrics = {name: section.metrics for name, section in report.items()}
        checkpoints.write_json(given.output_dir / "metrics.json", {"model": pipe.index.name, "options": vars(options),
                                                                   **metrics, "seconds": round(time.time() - began, 1)})
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote metrics.json and sheets into {given.output_dir}")
    return 0


def neighbours(folder: Path | None, reader: AttributeReader, drawn: int | None) -> Neighbours:
    """The training avatars beside the reader, or the first `drawn` of them drawn anew."""
    if drawn is None and ((folder or SHIPPED) / FILE).is_file():
        return Neighbours.load(folder)
    return Neighbours.of(reader, [TRAINING_SEED * PER_SEED + i for i in range(drawn or 256)])


if __name__ == "__main__":
    sys.exit(main())
