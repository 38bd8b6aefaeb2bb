"""Make an avatar: `python -m rodin_model.generate "a bearded man with curly hair" --output-dir avatar`."""

from __future__ import annotations

import argparse
import contextlib
import errno
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rodin_model.model_index import find_model
from rodin_model.outputs import Views, staged_folder, write_avatar
from rodin_model.prompts import check_prompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from rodin_model.pipeline import RodinPipeline
    from rodin_model.triplane import Avatar

#: Pixels of a picture along each side, unless the user says otherwise.
SIZE = 256

_EPILOG = """examples:
  python -m rodin_model.generate "a bearded man with curly hair in a black leather jacket" --output-dir avatar
  python -m rodin_model.generate --image portrait.jpg --output-dir from-a-portrait
  python -m rodin_model.generate --count 4 --output-dir surprises
  python -m rodin_model.generate "an old woman" --edit "blonde hair" --edit "glasses" --output-dir edited
  python -m rodin_model.generate --avatar avatar/avatar.safetensors --edit "black hair -> red hair" --output-dir red"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage text."""
        raise ValueError(message)


def whole(low: int, high: int) -> Any:
    """An argparse type: a whole number from `low` to `high`."""
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"needs a whole number from {low} to {high}; got {text!r:.40}")
        return value
    return parse


def scale(text: str) -> float:
    """An argparse type: a guidance scale."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"needs a number from 0 to 100; got {text!r:.40}")
    return value


def parser() -> argparse.ArgumentParser:
    """All options; `main` explains errors in one line."""
    p = _Parser(prog="python -m rodin_model.generate", epilog=_EPILOG, formatter_class=argparse.RawTextHelpFormatter,
                description="Make a 3D head avatar from words, from a portrait, or (with neither) from noise.")
    p.add_argument("prompt", nargs="?", help="what the avatar looks like, in your own words")
    p.add_argument("--image", metavar="FILE", type=Path, help="a portrait instead of words: JPEG, PNG or WebP")
    p.add_argument("--crop", metavar=("LEFT", "TOP", "SIDE"), nargs=3, type=int,
                   help="the square of the portrait with the head, in pixels; default: its middle")
    p.add_argument("--match", choices=("auto", "always", "never"), default="auto",
                   help="bring the avatar closer to the portrait: auto, if the first drawing resembles it already,\n"
                        "as with drawings and not with photographs")
    p.add_argument("--avatar", metavar="FILE", type=Path, help="an avatar.safetensors instead of words, to be edited")
    p.add_argument("--edit", metavar="TEXT", action="append", default=[],
                   help='then change it, for instance "blonde hair" or, with what it was before,\n'
                        '"black hair -> blonde hair"; if given again, on top of the last')
    p.add_argument("--edit-strength", metavar="X", type=scale,
                   help="1: as far as the words go; default: as far as it takes")
    p.add_argument("--output-dir", metavar="DIR", type=Path, default=Path("avatar"), help="default: avatar")
    p.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in the output folder")
    p.add_argument("--seed", metavar="N", type=whole(0, 2**62), help="same seed, same avatar; default: a new one")
    p.add_argument("--count", metavar="N", type=whole(1, 1000), default=1, help="how many, with seeds N, N + 1, ...")
    p.add_argument("--size", metavar="PX", type=whole(16, 2048),
                   help="of the pictures; default: 256, or 512 with --refine")
    p.add_argument("--refine", action="store_true",
                   help="render fewer pixels and let the model's refiner draw the others: cleaner pictures,\n"
                        "but details may change from view to view")
    p.add_argument("--views", metavar="N", type=whole(1, 360), default=24, help="of the turntable; default: 24")
    p.add_argument("--turntable", choices=("webp", "gif", "png"), default="webp", help="its format; default: webp")
    p.add_argument("--mesh", choices=("glb", "obj", "ply"), help="also write a mesh; needs pip install 'rodin[mesh]'")
    p.add_argument("--model", metavar="DIR", help="a model's folder or hub id; default: the one in the package")
    p.add_argument("--steps", metavar="N", type=whole(1, 1000), help="of the base diffusion; default: the model's")
    p.add_argument("--guidance", metavar="X", type=scale, help="how literally words are taken; default: the model's")
    p.add_argument("--candidates", metavar="N", type=whole(1, 64),
                   help="make so many from words or a portrait and keep the one that fits best; default: the model's")
    p.add_argument("--embed-settings", action="store_true", help="write prompt, seed and settings into the files, too")
    p.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; default: a GPU if there is one")
    p.add_argument("--quiet", action="store_true", help="no progress, no report")
    return p


def read_options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Image | None]:
    """Options and portrait, checked as far as is possible without loading anything heavy; errors as `main` lists."""
    options = parser().parse_args(arguments)
    if options.prompt is not None:
        if options.image is not None:
            raise ValueError("give a prompt or --image, not both")
        options.prompt = check_prompt(options.prompt)
    if options.avatar is not None:
        check_avatar(options)
    options.edit = [edit_words(text) for text in options.edit]
    if options.size is None:
        options.size = SIZE * (2 if options.refine else 1)
    if options.seed is None:
        options.seed = secrets.randbelow(2**31)
    if options.image is None:
        if options.crop is not None:
            raise ValueError("--crop needs --image")
        if options.match == "always":
            raise ValueError("--match needs --image")
        return options, None
    from rodin_model.portraits import cropped, read_portrait

    portrait = read_portrait(options.image)
    return options, portrait if options.crop is None else cropped(portrait, *options.crop)


def edit_words(text: str) -> tuple[str | None, str]:
    """(what it was or None, what it becomes) of "blonde hair" or "black hair -> blonde hair"; ValueError if empty."""
    before, arrow, after = text.partition("->")
    return (check_prompt(before, "--edit"), check_prompt(after, "--edit")) if arrow else (None,
                                                                                         check_prompt(text, "--edit"))


def check_avatar(options: argparse.Namespace) -> None:
    """ValueError or FileNotFoundError unless --avatar stands alone, is a file and has an edit to come."""
    if options.prompt is not None or options.image is not None:
        raise ValueError("give --avatar or a prompt or --image, not two of them")
    if not options.edit or options.count != 1:
        raise ValueError("--avatar needs --edit, and makes no more than one")
    if not options.avatar.is_file():
        raise FileNotFoundError(f"there is no file {options.avatar}")


class Run:
    """One run of the command: the model, the clock, and what has been made so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seconds: dict[str, float] = {}
        with self.timed("load"):
            self.pipe = self._load()
        self.views = Views(options.size, options.views, options.turntable, options.mesh,
                           self.pipe.required_refiner() if options.refine else None)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's time to `seconds[stage]`."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 2)

    def _load(self) -> RodinPipeline:
        import torch

        from rodin_model.pipeline import RodinPipeline

        name = self.options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"this machine has no device {name!r}") from error
        pipe = RodinPipeline.from_pretrained(self.options.model, device=name)
        pipe.set_progress_bar_config(disable=self.options.quiet)
        return pipe

    def make(self, portrait: Image | None, seed: int) -> list[Avatar]:
        """The avatar of one seed, then its edits, each on top of the one before."""
        import torch

        from rodin_model.triplane import Avatar

        asked = {"num_inference_steps": self.options.steps, "guidance_scale": self.options.guidance}
        with self.timed("diffusion"):
            if self.options.avatar is not None:
                made = [Avatar.load(self.options.avatar, self.pipe.device)]
            else:
                made = [self.pipe(self.options.prompt, portrait, generator=torch.Generator().manual_seed(seed),
                                  candidates=self.options.candidates,
                                  match_portrait={"always": True, "never": False}.get(self.options.match),
                                  **asked).avatars[0]]  # type: ignore[union-attr]
            for source, text in self.options.edit:
                made.append(self.pipe.edit(made[-1], text, source=source, strength=self.options.edit_strength,
                                           **asked))
        return made

    def settings(self, avatar: Avatar, seed: int, edits: int) -> dict[str, Any]:
        """Everything that is needed to make this avatar again, as JSON data."""
        from rodin_model.provenance import SOURCE_TYPE, software

        names = ("num_inference_steps", "guidance_scale", "guidance_stop", "upsampler_steps", "matched")
        image, file = self.options.image, self.options.avatar
        return {"prompt": self.options.prompt, "image": image.name if image is not None else None,
                **({"avatar": file.name, "edit_strength": self.options.edit_strength} if file is not None else {}),
                "edits": [_told(edit) for edit in self.options.edit[:edits]], "seed": seed,
                **{name: avatar.metadata.get(name) for name in names},
                "candidates": self.options.candidates or self.pipe.index.candidates,
                "model": self.pipe.index.name, "software": software(), "device": str(self.pipe.device),
                "size": self.options.size, "views": self.options.views, "refine": self.options.refine,
                "digital_source_type": SOURCE_TYPE}

    def write(self, folder: Path, avatar: Avatar, seed: int, edits: int = 0) -> Tensor:
        """All files of one avatar into `folder`; returns its front view."""
        from tqdm import tqdm

        from rodin_model.provenance import Mark

        folder.mkdir(exist_ok=True)
        settings = self.settings(avatar, seed, edits)
        mark = Mark(self.pipe.index.name, settings if self.options.embed_settings else None)
        with self.timed("pictures"), tqdm(total=self.views.count, desc="turntable", leave=False,
                                          disable=self.options.quiet) as bar:
            return write_avatar(folder, avatar, self.views, mark, settings, lambda done, total: bar.update())

    def everything(self, stage: Path, portrait: Image | None) -> None:
        """All avatars with their edits; a sheet where there are several."""
        fronts, labels = [], []
        for index in range(self.options.count):
            seed = self.options.seed + index
            place = stage / f"{index:03d}" if self.options.count > 1 else stage
            for edits, avatar in enumerate(self.make(portrait, seed)):
                where = place / f"edit-{edits}" if edits else place
                fronts.append(self.write(where, avatar, seed, edits))
                start = f"seed {seed}" if self.options.avatar is None else self.options.avatar.name
                labels.append(_told(self.options.edit[edits - 1]) if edits else start)
        if len(fronts) > 1:
            from rodin_model.provenance import Mark
            from rodin_model.sheets import save_sheet, sheet

            # what the words were is said by labels, which are part of the picture the user asked for
            columns = len(self.options.edit) + 1 if self.options.edit else min(4, len(fronts))
            save_sheet(stage / "sheet.png", sheet(fronts, columns, labels), Mark(self.pipe.index.name))


def _told(edit: tuple[str | None, str]) -> str:
    source, text = edit
    return text if source is None else f"{source} -> {text}"


def generate(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says; raises ValueError, OSError or ImportError for what `main` reports in one line."""
    start = time.perf_counter()
    options, portrait = read_options(arguments)
    options.model = find_model(options.model)
    with staged_folder(options.output_dir, overwrite=options.overwrite) as stage:
        run = Run(options)
        run.everything(stage, portrait)
        written = sorted((path.relative_to(stage), path.stat().st_size) for path in stage.rglob("*") if path.is_file())
    if not options.quiet:
        for path, size in written:
            print(f"{options.output_dir / path}  {size / 1000:,.0f} kB")
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in run.seconds.items())
        print(f"seed {options.seed}, {run.pipe.index.name} on {run.pipe.device}: "
              f"{time.perf_counter() - start:.1f} s ({stages})")


def explain(error: BaseException) -> str:
    """An error as one line for a person."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "the disk is full; nothing was written"
        return f"{(error.strerror or str(error)).lower()}{where}"
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 if all is written; 2 and one line on stderr if something cannot be done; 130 after Ctrl-C."""
    def terminate(*_: Any) -> NoReturn:
        raise SystemExit(143)

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        signal.signal(signal.SIGTERM, terminate)
    try:
        generate(arguments)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
