"""The data set: shards of avatars with pictures, depths, cameras and points, made from seeds and read lazily.

    python -m rodin_model.avatars.dataset --output data/train --count 1200 --seed 0
    python -m rodin_model.avatars.dataset --output data/train --count 4000 --views 6 --device cuda --workers 12

On a GPU most of an avatar's time is the host's: use nearly as many workers as there are cores.
Avatar i of seed S is `sample_attributes(S * 1_000_000 + i)`, so a shard does not depend on how many workers made it,
and a run that was stopped goes on where it was: shards that exist are kept, and none is ever half written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rodin_model.avatars.attributes import Attributes, sample_attributes
from rodin_model.avatars.geometry import AvatarField
from rodin_model.avatars.pictures import Picture, render_views
from rodin_model.avatars.points import sample_points
from rodin_model.cameras import Camera, portrait_cameras, sample_cameras
from rodin_model.checkpoints import save_tensors

#: Avatars in one file, and the step between the seeds of two data sets.
SHARD, SEED_STEP = 16, 1_000_000
FORMAT = "rodin-avatars-1"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a shard."""

    seed: int = 0
    count: int = 16
    views: int = 8
    size: int = 128
    uniform: int = 12_000
    surface: int = 40_000
    max_yaw: int = 180


def imagined_avatars(seed: int, count: int) -> list[Attributes]:
    """What the first `count` avatars of data set `seed` are; their pictures and points need not exist."""
    return [sample_attributes(seed * SEED_STEP + number) for number in range(count)]


def avatar_cameras(identity: int, views: int, size: int, max_yaw: int = 180) -> list[Camera]:
    """The cameras of one avatar: the front (yaw 0, pitch 5 degrees), then seeded ones all around.

    With `max_yaw` below 180 these are cameras of portraits, no further aside than so many degrees.
    """
    draw = sample_cameras if max_yaw >= 180 else partial(portrait_cameras, max_yaw=max_yaw)
    return [Camera.orbit(0.0, 5.0, size), *draw(max(views - 1, 0), identity, size)][:views]


def make_avatar(identity: int, recipe: Recipe, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of one avatar, as they are stored but without the leading avatar axis.

    `images` uint8 [V, H, W, 4]: RGB premultiplied by alpha (add (1 - alpha) times the background), alpha;
    `depth` float16 [V, H, W] along the unit ray, 0 where there is nothing; `cam2world` float32 [V, 4, 4] (OpenCV);
    `intrinsics` float32 [V, 4]: fx, fy, cx, cy in pixels; `points` float16 [N, 3], `distance` float16 [N] and `color`
    uint8 [N, 3]: the first `uniform` points fill the box, the others lie near the surface.
    """
    field = AvatarField(sample_attributes(identity), device)
    tensors = _seen(field, avatar_cameras(identity, recipe.views, recipe.size, recipe.max_yaw), recipe.size)
    points, distance, color = sample_points(field, recipe.uniform, recipe.surface, seed=identity)
    return {**tensors, "points": points.half(), "distance": distance.half(), "color": _bytes(color)}


def _seen(field: AvatarField, cameras: list[Camera], size: int) -> dict[str, Tensor]:
    """The tensors of the pictures; without cameras, empty ones."""
    if not cameras:
        return {"images": torch.zeros(0, size, size, 4, dtype=torch.uint8),
                "depth": torch.zeros(0, size, size, dtype=torch.float16),
                "cam2world": torch.zeros(0, 4, 4), "intrinsics": torch.zeros(0, 4)}
    pictures = render_views(field, cameras, background=0.0)
    return {"images": torch.stack([_rgba(picture) for picture in pictures]),
            "depth": torch.stack([picture.depth for picture in pictures]).half(),
            "cam2world": torch.stack([camera.cam2world for camera in cameras]),
            "intrinsics": torch.stack([camera.intrinsics() for camera in cameras])}


def _bytes(values: Tensor) -> Tensor:
    return (values * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _rgba(picture: Picture) -> Tensor:
    return _bytes(torch.cat([picture.rgb, picture.alpha[..., None]], -1))


def shard_path(folder: str | Path, index: int) -> Path:
    """Where shard `index` lies."""
    return Path(folder) / f"shard-{index:05d}.safetensors"


def shard_paths(folder: str | Path) -> list[Path]:
    """The shards of a data set in their order; FileNotFoundError where there is none."""
    paths = sorted(Path(folder).glob("shard-*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"there is no shard-*.safetensors in {folder}; "
                                "make some with python -m rodin_model.avatars.dataset")
    return paths


def write_shard(folder: str | Path, index: int, recipe: Recipe, device: torch.device | str = "cpu") -> Path:
    """Make and write avatars `index * SHARD` and following as one file; returns its path."""
    numbers = range(index * SHARD, min((index + 1) * SHARD, recipe.count))
    identities = [recipe.seed * SEED_STEP + number for number in numbers]
    avatars = [make_avatar(identity, recipe, device) for identity in identities]
    tensors = {name: torch.stack([avatar[name].cpu() for avatar in avatars]) for name in avatars[0]}
    attributes = json.dumps([sample_attributes(identity).to_dict() for identity in identities])
    path = shard_path(folder, index)
    save_tensors(path, tensors, {"format": FORMAT, "recipe": _recipe_text(recipe), "attributes": attributes})
    return path


def _recipe_text(recipe: Recipe) -> str:
    """What must agree for a shard to be kept; the count may grow between runs."""
    parts = {"seed": recipe.seed, "views": recipe.views, "size": recipe.size, "uniform": recipe.uniform,
             "surface": recipe.surface}
    # all around is how every older data set was made, which does not say so
    return json.dumps(parts | ({"max_yaw": recipe.max_yaw} if recipe.max_yaw < 180 else {}), sort_keys=True)


def missing_shards(folder: str | Path, recipe: Recipe, first: int = 0) -> list[int]:
    """Indices from `first` on whose file is absent or holds fewer avatars than wanted now.

    Raises ValueError if a file was made from another recipe, so that two data sets never mix.
    """
    missing = []
    for index in range(first, -(-recipe.count // SHARD)):
        path = shard_path(folder, index)
        wanted = min(SHARD, recipe.count - index * SHARD)
        if not path.is_file():
            missing.append(index)
            continue
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("recipe") != _recipe_text(recipe):
                raise ValueError(f"{path} was made with other settings ({metadata.get('recipe')}); "
                                 "choose another folder or delete it")
            if file.get_slice("images").get_shape()[0] < wanted:
                missing.append(index)
    return missing


class AvatarDataset:
    """Avatars from a folder of shards, read one at a time; `len(data)` avatars, numbered across the shards."""

    def __init__(self, folder: str | Path) -> None:
        self._where: list[tuple[Path, int]] = []
        self._attributes: list[Attributes] = []
        for path in shard_paths(folder):
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} is not a shard of avatars (format {metadata.get('format')!r})")
            records = json.loads(metadata["attributes"])
            self._where += [(path, row) for row in range(len(records))]
            self._attributes += [Attributes.from_dict(record) for record in records]

    def __len__(self) -> int:
        return len(self._where)

    def attributes(self, i: int) -> Attributes:
        """Words and numbers of avatar `i`."""
        return self._attributes[i]

    def read(self, i: int, name: str) -> Tensor:
        """The stored tensor `name` of avatar `i`; see `make_avatar` for names, shapes and dtypes."""
        path, row = self._where[i]
        with safe_open(path, framework="pt") as file:
            return file.get_slice(name)[row]

    def images(self, i: int, *, background: float | None = 1.0) -> Tensor:
        """Pictures of avatar `i` as float [V, H, W, 3] in 0..1 on a gray `background`; None gives [V, H, W, 4]
        with RGB premultiplied by alpha."""
        rgba = self.read(i, "images").float() / 255
        if background is None:
            return rgba
        return (rgba[..., :3] + (1 - rgba[..., 3:]) * background).clamp(0, 1)

    def depth(self, i: int) -> Tensor:
        """Distances along the unit rays, float32 [V, H, W], 0 where there is nothing."""
        return self.read(i, "depth").float()

    def cameras(self, i: int) -> list[Camera]:
        """The cameras of the pictures of avatar `i`."""
        height, width = self._picture_size(i)
        intrinsics = self.read(i, "intrinsics").tolist()
        return [Camera(matrix, fx, fy, cx, cy, width, height)
                for matrix, (fx, fy, cx, cy) in zip(self.read(i, "cam2world"), intrinsics, strict=True)]

    def _picture_size(self, i: int) -> tuple[int, int]:
        with safe_open(self._where[i][0], framework="pt") as file:
            _, _, height, width, _ = file.get_slice("images").get_shape()
        return height, width

    def points(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Points [N, 3], signed distances [N] and colours [N, 3] in 0..1 of avatar `i`, all float32."""
        return self.read(i, "points").float(), self.read(i, "distance").float(), self.read(i, "color").float() / 255


def _work(job: tuple[str, int, Recipe, str]) -> int:
    """One shard in a worker process, on one thread, so that the bytes do not depend on the machine's load."""
    torch.set_num_threads(1)
    folder, index, recipe, device = job
    write_shard(folder, index, recipe, device)
    return index


def build(folder: str | Path, recipe: Recipe, *, workers: int = 1, first: int = 0, device: str = "cpu",
          progress: bool = True) -> list[int]:
    """Write all shards that are missing with `workers` processes; returns their indices."""
    from tqdm import tqdm

    Path(folder).mkdir(parents=True, exist_ok=True)
    todo = missing_shards(folder, recipe, first)
    jobs = [(str(folder), index, recipe, device) for index in todo]
    with tqdm(total=len(jobs), unit="shard", disable=not progress) as bar:
        if workers == 1:
            threads = torch.get_num_threads()
            try:
                for job in jobs:
                    _work(job)
                    bar.update()
            finally:
                torch.set_num_threads(threads)
        elif jobs:
            with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
                for _ in pool.imap_unordered(_work, jobs):
                    bar.update()
    return todo


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0, or 2 after one line about what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.avatars.dataset",
                                     description="Make shards of procedural avatars from a seed.")
    parser.add_argument("--output", required=True, help="folder of the shards; made if it is absent")
    parser.add_argument("--count", type=int, required=True, help="number of avatars")
    parser.add_argument("--seed", type=int, default=0, help="0 is the training set, 1 the held-out set")
    parser.add_argument("--views", type=int, default=8,
                        help="pictures of an avatar, the first from the front; 0 for points alone")
    parser.add_argument("--max-yaw", type=int, default=180,
                        help="degrees that cameras stand aside at most; below 180 these are cameras of portraits")
    parser.add_argument("--size", type=int, default=128, help="width and height of the pictures in pixels")
    parser.add_argument("--uniform", type=int, default=12_000,
                        help="points in the whole box; 0 here and for --surface for pictures alone")
    parser.add_argument("--surface", type=int, default=40_000, help="points near the surface")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--first-shard", type=int, default=0, help="leave out the shards before this one")
    parser.add_argument("--device", default="cpu", help="torch device, such as cuda")
    options = parser.parse_args(arguments)
    try:
        for name in ("count", "size", "workers", "max_yaw"):
            if getattr(options, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}")
        for name in ("seed", "views", "uniform", "surface", "first_shard"):
            if getattr(options, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative; got {getattr(options, name)}")
        recipe = Recipe(options.seed, options.count, options.views, options.size, options.uniform, options.surface,
                        options.max_yaw)
        made = build(options.output, recipe, workers=options.workers, first=options.first_shard, device=options.device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(made)} shards written to {options.output}, {options.count} avatars in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
