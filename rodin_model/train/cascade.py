"""`python -m rodin_model.train.cascade`: the whole model from nothing, every stage as soon as what it needs is there.

    python -m rodin_model.train.cascade --output runs/mini --device cuda --minutes 6

makes avatars, fits their planes, trains towers, prior, diffusions, upsampler, refiner and judge, and puts the model
together in `<output>/model` (the refiner, which is optional, stays apart). Each stage is one of the commands of
`rodin_model.train` in a process of its own, with a log in `<output>/logs`; stages that do not need each other share the
device. `--minutes` bounds the training stages by the clock, each by its share; the making of data comes on top. The
same command goes on where it stopped: what is finished is not made again. With `--onward` towers, prior and base
diffusion stay those of `--start`, and all of the minutes go to the upsampler and its details.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rodin_model.files import write_bytes

#: Shares of `--minutes`. The longest way through the stages adds up to 1.
SHARES = {"amortize": 0.24, "towers": 0.20, "reader": 0.60, "prior": 0.30, "principal": 0.14, "base": 0.09,
          "coarse-upsampler": 0.26, "upsampler": 0.09, "face": 0.11, "head": 0.14, "together": 0.11, "likeness": 0.08,
          "pairs": 0.14, "refiner": 0.20}
#: The same with `--onward`.
ONWARD = {"amortize": 0.08, "upsampler": 0.12, "face": 0.17, "head": 0.22, "together": 0.24, "likeness": 0.17}


@dataclass(frozen=True)
class Stage:
    """One command, `python -m <module> <arguments>`, that starts when the stages in `after` have succeeded."""

    name: str
    module: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What the stages share: where they write, what they begin with, how much of everything."""

    output: Path
    start: Path
    device: str
    minutes: float
    avatars: int
    imagined: int
    captioned: int
    workers: int
    precision: str
    onward: bool = False

    def stages(self) -> list[Stage]:
        """All stages, each after those that it needs."""
        return self._onward() if self.onward else self._anew()

    def _anew(self) -> list[Stage]:
        """The whole model."""
        out, start = self.output, self.start
        towers, pairs = out / "towers", out / "pairs"
        return [
            self._data(6),
            self._trained("prior", "prior", ("--towers", str(start / "towers"), "--words", str(self.captioned),
                                             "--workers", str(self.workers), "--batch", "1024"), ("data",)),
            self._trained("reader", "reader", ("--data", str(out / "data"), "--remember", str(out / "data"), "--batch",
                                               "384", "--learning-rate", "3e-3", "--average", "0.999"), ("data",)),
            self._trained("towers", "towers",
                          ("--around", "--data", str(out / "data"), "--start", str(start / "towers"), "--image-batch",
                           "256", "--front-share", "0.3", "--learning-rate", "1e-3", "--workers", str(self.workers)),
                          ("data",)),
            self._amortized("--imagined", str(self.imagined)),
            self._latents(towers, ("towers",), "--views", "6", "--captions", "6", "--full", "0.7",
                          "--imagined", str(self.imagined)),
            self._trained("principal", "principal", (*self._known(), "--text-share", "0.4", "--pictured", "0.4",
                                                     "--batch", "4096", "--ema", "0.9995", "--precision", "fp32"),
                          ("amortize", "latents")),
            self._trained("base", "base", (*self._known(), "--text-share", "0.4", "--batch", "192",
                                           "--principal", str(out / "principal" / "model"),
                                           "--precision", self.precision), ("principal",)),
            self._upsampler("coarse-upsampler", ("amortize", "latents"), "--average", str(start / "upsampler")),
            self._repaired("upsampler", ("base", "coarse-upsampler"), out / "base" / "model",
                           out / "coarse-upsampler" / "model"),
            *self._details(out / "base" / "model"),
            *self._alike(towers, out / "prior", out / "base" / "model", ("towers", "prior")),
            self._assembled("draft", "coarse-upsampler"),
            self._assembled("model", "likeness"),
            Stage("pairs", "rodin_model.train.pairs",
                  ("--coarse", str(out / "planes"), "--model", str(out / "draft"), "--output", str(pairs),
                   "--views", "3", "--size", "256", "--avatars", str(min(240, self.avatars)), "--device", self.device,
                   "--minutes", f"{self.minutes * SHARES['pairs']:.3f}"), ("draft",)),
            self._trained("refiner", "refine", ("--pairs", str(pairs), "--towers", str(towers), "--batch", "24",
                                                "--patch", "96"), ("pairs",)),
        ]

    def _onward(self) -> list[Stage]:
        """What comes after the base diffusion, with the base diffusion of `start`; full captions, as its prior's."""
        base = self.start / "base"
        return [
            self._data(3),
            self._amortized("--within", str(base)),
            self._latents(self.start / "towers", ("data",), "--views", "3", "--captions", "4", "--full", "1"),
            self._repaired("upsampler", ("amortize", "latents"), base, self.start / "upsampler"),
            *self._details(base),
            *self._alike(self.start / "towers", self.start / "prior", base, ("data",)),
            self._assembled("model", "likeness"),
        ]

    def _data(self, views: int) -> Stage:
        return Stage("data", "rodin_model.avatars.dataset",
                     ("--output", str(self.output / "data"), "--count", str(self.avatars), "--seed", "0",
                      "--views", str(views), "--device", self.device, "--workers", str(self.workers)))

    def _avatars(self) -> tuple[str, ...]:
        """The data set, and what reads planes as it shows them."""
        return "--data", str(self.output / "data"), "--decoder", str(self.start / "decoder")

    def _known(self) -> tuple[str, ...]:
        """What is known of the avatars, to train diffusions on."""
        return "--coarse", str(self.output / "planes"), "--latents", str(self.output / "latents.safetensors")

    def _amortized(self, *more: str) -> Stage:
        return self._trained("amortize", "amortize",
                             (*self._avatars(), "--planes", str(self.output / "planes"), "--batch", "128",
                              "--width", "1024", *more), ("data",))

    def _latents(self, towers: Path, after: tuple[str, ...], *more: str, name: str = "latents") -> Stage:
        return Stage(name, "rodin_model.train.latents",
                     ("--data", str(self.output / "data"), "--towers", str(towers),
                      "--output", str(self.output / f"{name}.safetensors"), "--device", self.device,
                      "--workers", str(self.workers), *more), after)

    def _upsampler(self, name: str, after: tuple[str, ...], *more: str) -> Stage:
        return self._trained(name, "upsample",
                             (*self._known(), *self._avatars(), "--batch", "24", "--points", "8192", "--rays", "768",
                              "--image-weight", "40", "--precision", self.precision, *more), after)

    def _repaired(self, name: str, after: tuple[str, ...], base: Path, trained: Path) -> Stage:
        """The upsampler, on from a trained one, told what `base` makes of coarse planes."""
        return self._upsampler(name, after, "--learning-rate", "2e-4", "--base", str(base), "--init", str(trained))

    def _details(self, base: Path) -> list[Stage]:
        """The face, then the whole head, each on what is drawn before it; then all of the upsampler together."""
        stages, before = [], "upsampler"
        for number, (name, batch, variants, points) in enumerate((("face", 256, 2, 768), ("head", 64, 1, 1536)), 1):
            stages.append(self._trained(
                name, "detail", ("--number", str(number), *self._known(), *self._avatars(), "--base", str(base),
                                 "--init", str(self.output / before / "model"), "--batch", str(batch),
                                 "--variants", str(variants), "--points", str(points), "--kept", "2048",
                                 "--precision", self.precision), (before,)))
            before = name
        return [*stages, self._repaired("together", (before,), base, self.output / before / "model")]

    def _alike(self, towers: Path, prior: Path, base: Path, after: tuple[str, ...]) -> list[Stage]:
        """All details once more, judged by the picture tower; captions' z are those that the prior draws in use."""
        spoken = self._latents(towers, after, "--views", "3", "--captions", "4", "--full", "1", "--prior", str(prior),
                               name="spoken-latents")
        return [spoken, self._trained(
            "likeness", "likeness", (*self._avatars(), "--latents", str(self.output / "spoken-latents.safetensors"),
                                     "--towers", str(towers),
                                     "--base", str(base), "--init", str(self.output / "together" / "model"), "--batch",
                                     "16", "--precision", self.precision), ("together", "spoken-latents"))]

    def _assembled(self, name: str, upsampler: str) -> Stage:
        """A whole model with one of the upsamplers; the draft is what the refiner learns to repair."""
        out = self.output
        made = {"towers": out / "towers", "prior": out / "prior", "base": out / "base" / "model"}
        parts = {name: self.start / name if self.onward else folder for name, folder in made.items()}
        parts |= {"decoder": self.start / "decoder", "upsampler": out / upsampler / "model"}
        folders = (word for part, folder in parts.items() for word in (f"--{part}", str(folder)))
        return Stage(name, "rodin_model.train.assemble",
                     (*folders, "--output", str(self.output / name), "--text-prior", "--steps", "20",
                      "--guidance", "1.5", "--guidance-stop", "0.4", "--prior-scale", "2", "--upsampler-steps", "1"),
                     (upsampler,) if self.onward else ("prior", "base", upsampler))

    def _trained(self, name: str, verb: str, arguments: tuple[str, ...], after: tuple[str, ...]) -> Stage:
        """A training stage: as many steps as its share of the minutes allows."""
        share = (ONWARD if self.onward else SHARES)[name]
        bounds = ("--steps", "1000000", "--minutes", f"{self.minutes * share:.3f}", "--device", self.device)
        rarely = () if verb == "prior" else ("--save-every", "20000")
        output = ("--output", str(self.output / name))
        return Stage(name, f"rodin_model.train.{verb}", (*output, *arguments, *bounds, *rarely), after)


def run(stages: Sequence[Stage], folder: Path) -> dict[str, str]:
    """Run all stages, each when those before it have ended well; returns, by name, how each ended.

    "done", "done before", "left out" (something that it needs failed) or "exit status N". What a stage needs and is not
    among `stages` is taken as there. A finished stage leaves an empty file in `folder`/done. Interrupted, it ends what
    it started.
    """
    names = {stage.name for stage in stages}
    ended: dict[str, str] = {s.name: "done before" for s in stages if (folder / "done" / s.name).is_file()}
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    try:
        while len(ended) < len(stages):
            for stage in stages:
                if stage.name not in ended and stage.name not in running:
                    needs = [ended.get(name, "") for name in stage.after if name in names]
                    if any(how and not how.startswith("done") for how in needs):
                        ended[stage.name] = "left out"
                    elif all(needs):
                        running[stage.name] = (_start(stage, folder), time.monotonic())
            for name, (process, began) in list(running.items()):
                status = process.poll()
                if status is not None:
                    del running[name]
                    ended[name] = "done" if status == 0 else f"exit status {status}"
                    print(f"{name}: {ended[name]} after {time.monotonic() - began:.0f} s", flush=True)
                    if status == 0:
                        write_bytes(folder / "done" / name, b"")
            time.sleep(0.2)
    finally:
        for process, _ in running.values():
            os.killpg(process.pid, signal.SIGTERM)
    return ended


def _start(stage: Stage, folder: Path) -> subprocess.Popen[bytes]:
    """The stage's process, with all that it starts in a group of its own."""
    with (folder / "logs" / f"{stage.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", stage.module, *stage.arguments], stdout=log,
                                stderr=subprocess.STDOUT, start_new_session=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 1 where a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.cascade", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder for data, stages, logs and the model")
    parser.add_argument("--start", type=Path, default=Path(__file__).parents[1] / "pretrained",
                        help="model whose decoder, word tower and first picture tower are taken (the shipped one)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all training stages together")
    parser.add_argument("--avatars", type=int, default=8000, help="with pictures and points")
    parser.add_argument("--imagined", type=int, default=20000, help="known by their attributes alone")
    parser.add_argument("--captioned", type=int, default=40000, help="avatars whose captions teach the latent prior")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--onward", action="store_true",
                        help="keep towers, prior and base diffusion of --start; train the upsampler and its details")
    parser.add_argument("--only", help="run these stages alone, names with commas between")
    args = parser.parse_args(arguments)
    plan = Plan(args.output, args.start, args.device, args.minutes, args.avatars, args.imagined, args.captioned,
                args.workers, args.precision, args.onward)
    stages = plan.stages()
    try:
        if args.minutes <= 0:
            raise ValueError(f"--minutes must be positive; got {args.minutes}")
        wanted = args.only.split(",") if args.only else [stage.name for stage in stages]
        if unknown := set(wanted) - {stage.name for stage in stages}:
            raise ValueError(f"--only: there is no stage {', '.join(sorted(unknown))}; there are "
                             f"{', '.join(stage.name for stage in stages)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ended = run([stage for stage in stages if stage.name in wanted], args.output)
    failed = {name: how for name, how in ended.items() if not how.startswith("done")}
    for name, how in failed.items():
        print(f"{name}: {how}; see {args.output / 'logs' / f'{name}.log'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
