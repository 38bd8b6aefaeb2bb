"""`python -m rodin_model.evaluate`: figures and contact sheets of a model, on avatars and captions it never saw.

The judge is the attribute reader, a network trained on true pictures alone. Beside every figure stand its ceiling,
what the reader gets right on true pictures of the same avatars, and its floor, what chance would give.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rodin_model import checkpoints, sheets
from rodin_model.evaluation import consistency, table
from rodin_model.evaluation.costs import evaluate_costs
from rodin_model.evaluation.edits import evaluate_edits
from rodin_model.evaluation.faces import evaluate_portraits, evaluate_sides
from rodin_model.evaluation.fits import measure_fits
from rodin_model.evaluation.freedom import evaluate_distance, evaluate_noise
from rodin_model.evaluation.neighbours import FILE, Neighbours, true_fronts
from rodin_model.evaluation.sampler import (
    HELD_OUT_SEED,
    PER_SEED,
    TRAINING_SEED,
    Options,
    Row,
    Sampler,
    Section,
    held_out,
)
from rodin_model.evaluation.words import evaluate_alike, evaluate_phrasings, evaluate_text
from rodin_model.pipeline import RodinPipeline
from rodin_model.provenance import Mark
from rodin_model.reader import SHIPPED, AttributeReader

#: The file of figures that the command writes.
RESULTS = "evaluation.json"


class Evaluation:
    """Everything that the parts of the report share, made when the first part asks for it."""

    def __init__(self, given: argparse.Namespace, options: Options) -> None:
        self.given, self.options = given, options
        self.reader = AttributeReader.load(given.reader)
        self.pipe = RodinPipeline.from_pretrained(given.model, device=given.device)
        self.sampler = Sampler(self.pipe, options)
        self.avatars = held_out(options.count)

    @cached_property
    def truth(self) -> Tensor:
        """True front pictures of the held-out avatars."""
        return true_fronts(self.avatars, self.options.size)

    @cached_property
    def known(self) -> Neighbours:
        """The training avatars, as the reader sees them."""
        return neighbours(self.given.reader, self.reader, self.given.training or (32 if self.given.quick else None))

    @cached_property
    def worded(self) -> tuple[Section, Tensor]:
        """What captions gave, and its pictures, which the Frechet distance needs too."""
        return evaluate_text(self.sampler, self.reader, self.avatars, self.truth)

    def fit(self) -> Section:
        """Fits of planes to held-out avatars."""
        text, metrics, pictures = measure_fits(self.pipe, self.options.fits, HELD_OUT_SEED, self.given.fitted_data,
                                               self.given.fitted_planes)
        rows = [Row(f"fit of held-out avatars: {name.upper()} on unseen views", metrics["avatars"], metrics[name],
                    unit=unit) for name, unit in (("psnr", "{:.1f} dB"), ("ssim", "{:.3f}"))]
        return Section(text, metrics, pictures, rows)

    def text(self) -> Section:
        """Captions to avatars."""
        return self.worded[0]

    def portrait(self) -> Section:
        """Portraits from the front."""
        return evaluate_portraits(self.sampler, self.reader, self.avatars, self.truth)

    def sides(self) -> Section:
        """Portraits from the side, of half as many avatars."""
        half = -(-self.options.count // 2)
        return evaluate_sides(self.sampler, self.reader, self.avatars[:half], self.truth[:half])

    def edits(self) -> Section:
        """Edits in words."""
        count = min(self.options.edited, self.options.count)
        return evaluate_edits(self.sampler, self.reader, self.avatars[:count], self.truth[:count])

    def sentence(self) -> Section:
        """Many avatars of one sentence."""
        return evaluate_alike(self.sampler, self.reader)

    def phrasings(self) -> Section:
        """Descriptions written by hand."""
        return evaluate_phrasings(self.sampler, self.reader)

    def noise(self) -> Section:
        """Avatars that nobody described."""
        return evaluate_noise(self.sampler, self.reader, self.truth, self.known)

    def distance(self) -> Section:
        """The Frechet distance to true pictures."""
        others = true_fronts(held_out(self.options.count, self.options.count), self.options.size, "other true pictures")
        return evaluate_distance(self.reader, self.worded[1], self.truth, others)

    def views(self) -> Section:
        """Whether pictures of one avatar agree from view to view, beside true ones; also refined, if the model can."""
        count, refiner = min(4, self.options.edited, self.options.count), self.pipe.refiner
        avatars = self.sampler.avatars(range(count))
        found = {"result": [consistency.avatar_consistency(a) for a in avatars],
                 "truth": [consistency.true_consistency(a) for a in self.avatars[:count]]}
        if refiner is not None:
            found["refined"] = [consistency.avatar_consistency(a, refiner) for a in avatars]
        means = {name: consistency.mean(several) for name, several in found.items()}
        floor, what = means["truth"].difference, "difference between neighbouring views"
        text = (f"Views of {count} avatars from noise, {consistency.STEP:g} degrees apart\n  mean difference of what "
                f"both show {means['result'].difference:.4f}, of true pictures {floor:.4f}")
        rows = [Row(what, count, means["result"].difference, None, floor, "{:.4f}")]
        if refiner is not None:
            text += f", of refined ones {means['refined'].difference:.4f}"
            rows.append(Row(f"{what}, refined", count, means["refined"].difference, None, floor, "{:.4f}"))
        return Section(text, {name: dataclasses.asdict(mean) for name, mean in means.items()}, rows=rows)

    def costs(self) -> Section:
        """Seconds and memory."""
        return evaluate_costs(self.given.model, self.given.device, *((2,) if self.given.quick else ()))


#: The parts of the report in order: names for `--only`, and methods of `Evaluation`.
PARTS = ("fit", "text", "portrait", "sides", "edits", "sentence", "phrasings", "noise", "distance", "views", "costs")


def wanted(only: str | None, options: Options) -> list[str]:
    """The parts to run: those named, else all that `options` do not empty. ValueError for a name that is none."""
    if only is not None:
        names = [name.strip() for name in only.split(",")]
        if unknown := [name for name in names if name not in PARTS]:
            raise ValueError(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
        return [name for name in PARTS if name in names]
    empty = {"fit": not options.fits, "edits": not options.edited, "sentence": not options.alike,
             "distance": options.count < 2}
    return [name for name in PARTS if not empty.get(name, False)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.evaluate",
                                     description="Figures and contact sheets of a model, on avatars it never saw.")
    parser.add_argument("--model", help="a folder or a hub id; the shipped model if left out")
    parser.add_argument("--reader", type=Path, help="folder of the attribute reader; the shipped one if left out")
    parser.add_argument("--output-dir", type=Path, required=True, help=f"folder for {RESULTS} and the sheets")
    parser.add_argument("--only", help=f"some parts, parted by commas: {', '.join(PARTS)}; what {RESULTS} holds of the "
                                       "others stays")
    parser.add_argument("--count", type=int, default=Options.count, help="captions, and portraits")
    parser.add_argument("--noise", type=int, default=Options.noise, help="avatars from noise")
    parser.add_argument("--fits", type=int, default=Options.fits, help="held-out avatars to fit; 0: none")
    parser.add_argument("--edited", type=int, default=Options.edited, help="avatars to edit")
    parser.add_argument("--alike", type=int, default=Options.alike, help="avatars of one sentence")
    parser.add_argument("--fitted-data", type=Path, help="a held-out data set to fit, instead of drawing one")
    parser.add_argument("--fitted-planes", type=Path, help="planes that were fitted to --fitted-data, to measure")
    parser.add_argument("--training", type=int, help="look for neighbours among so many training avatars, drawn anew")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--guidance", type=float, help="strength of the guidance")
    parser.add_argument("--candidates", type=int, help="avatars to choose from for every request")
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--quick", action="store_true", help="a few avatars of everything: a check, no measurement")
    parser.add_argument("--write-readme", action="store_true",
                        help=f"put the table of {RESULTS} into the README; with --only none, nothing is run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def options_of(given: argparse.Namespace) -> Options:
    """How much the command line asks for; ValueError if that is too little to measure."""
    options = Options(given.count, given.noise, given.fits, given.edited, given.alike, None, 256, given.steps,
                      given.guidance, given.candidates, given.seed)
    if given.quick:
        options = replace(options, count=min(8, given.count), noise=min(4, given.noise), fits=min(1, given.fits),
                          edited=min(2, given.edited), alike=min(3, given.alike), phrasings=4)
    if options.count < 1 or options.noise < 2 or options.alike == 1:
        raise ValueError(f"--count must be at least 1, --noise and --alike at least 2; got {given.count}, "
                         f"{given.noise} and {given.alike}")
    return options


def run(given: argparse.Namespace, report: dict[str, Any], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure the parts that were asked for, one after the other, and keep each as soon as it is there."""
    options = options_of(given)
    names = wanted(given.only, options)
    evaluation = Evaluation(given, options)
    report = {**report, "model": evaluation.pipe.index.name, "date": time.strftime("%Y-%m-%d"),
              "options": dataclasses.asdict(options)}
    for name in names:
        began = time.time()
        section = getattr(evaluation, name)()
        say(section.text + "\n")
        for file, page in section.pictures.items():
            sheets.save_sheet(given.output_dir / file, page, Mark(evaluation.pipe.index.name))
        parts = {**report.get("parts", {}),
                 name: {"metrics": section.metrics, "rows": [dataclasses.asdict(row) for row in section.rows],
                        "seconds": round(time.time() - began, 1)}}
        report["parts"] = {part: parts[part] for part in PARTS if part in parts}
        checkpoints.write_json(given.output_dir / RESULTS, report)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, save; 2 and one line of explanation if something that is needed is missing or wrong."""
    given = parse(arguments)
    try:
        given.output_dir.mkdir(parents=True, exist_ok=True)
        kept = given.output_dir / RESULTS
        report = checkpoints.read_json(kept) if given.only and kept.is_file() else {}
        if given.only != "none":
            report = run(given, report)
        if given.write_readme:
            table.write(report)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{RESULTS} and sheets are in {given.output_dir}" + ("; the README is written" * given.write_readme))
    return 0


def neighbours(folder: Path | None, reader: AttributeReader, drawn: int | None) -> Neighbours:
    """The training avatars beside the reader, or the first `drawn` of them drawn anew."""
    if drawn is None and ((folder or SHIPPED) / FILE).is_file():
        return Neighbours.load(folder)
    return Neighbours.of(reader, [TRAINING_SEED * PER_SEED + i for i in range(drawn or 256)])


if __name__ == "__main__":
    sys.exit(main())
