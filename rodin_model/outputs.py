"""What a run leaves behind: everything it promised, in one step, or nothing at all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rodin_model import files

if TYPE_CHECKING:
    from torch import Tensor

    from rodin_model.provenance import Mark
    from rodin_model.refiner import Refiner
    from rodin_model.triplane import Avatar

#: Names that a run writes into its folder, and that `overwrite` may therefore replace; all others are the user's.
OUTPUT_NAME = re.compile(r"front\.png|turntable\.(webp|gif|png)|avatar\.safetensors|mesh\.(glb|obj|ply)|settings\.json|"
                         r"sheet\.png|\d{3}|edit-\d+")
#: Metadata that stays out of files unless the user asks for it: it may say more than the picture shows.
PRIVATE = ("prompt", "edits")


@dataclass(frozen=True)
class Views:
    """How an avatar is shown: pixels, views of the turntable and its format, format of the mesh (None: no mesh), and
    the refiner that the pictures go through (None: they are shown as rendered)."""

    size: int = 256
    count: int = 24
    turntable: str = "webp"
    mesh: str | None = None
    refiner: Refiner | None = None


def outputs_in(folder: Path) -> list[str]:
    """Names in `folder` that an earlier run wrote."""
    return sorted(path.name for path in folder.iterdir() if OUTPUT_NAME.fullmatch(path.name))


@contextlib.contextmanager
def staged_folder(target: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A hidden folder whose content moves into `target` when the block ends, and vanishes if the block fails.

    Other files in `target` stay. Raises FileExistsError if outputs of an earlier run are there and `overwrite` is
    False, NotADirectoryError if `target` is a file, OSError if nothing can be written there.
    """
    target = Path(target)
    if target.is_dir() and not overwrite and (found := outputs_in(target)):
        raise FileExistsError(f"{target} already holds {', '.join(found[:4])}; add --overwrite to replace them")
    place = target if target.exists() else target.parent
    made = _make_folders(place)
    stage = place / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        try:
            stage.mkdir()
        except OSError as error:  # the hidden name would mean nothing to the user
            raise OSError(error.errno, error.strerror, str(target)) from error
        yield stage
        if place == target:
            _replace_outputs(stage, target)
        else:
            os.rename(stage, target)
        files.sync_folder(place)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    shutil.rmtree(stage, ignore_errors=True)


def write_avatar(folder: Path, avatar: Avatar, views: Views, mark: Mark, settings: dict[str, Any],
                 progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Write front.png, turntable, avatar.safetensors, the mesh if wanted, and settings.json; returns the front view.

    The front is the turntable's first view: rgb [size, size, 3] in [0, 1]. Files carry `mark`; what was asked for is in
    the avatar's file only if the mark has settings.
    """
    from rodin_model.portraits import to_picture
    from rodin_model.provenance import animation_bytes, picture_bytes
    from rodin_model.triplane import UNSEEN

    rgb = avatar.turntable(views.count, views.size, progress=progress, stop_below=UNSEEN, refine=views.refiner)
    pictures = [to_picture(frame) for frame in rgb]
    files.write_bytes(folder / "front.png", picture_bytes(pictures[0], mark))
    files.write_bytes(folder / f"turntable.{views.turntable}", animation_bytes(pictures, mark, views.turntable))
    metadata = {name: value for name, value in avatar.metadata.items() if mark.settings is not None
                or name not in PRIVATE}
    dataclasses.replace(avatar, metadata=metadata).save(folder / "avatar.safetensors")
    if views.mesh is not None:
        from rodin_model import mesh

        mesh.export(avatar, folder / f"mesh.{views.mesh}", mark=mark)
    files.write_json(folder / "settings.json", settings)
    return rgb[0]


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` with its parents; returns those that were missing, the innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; the output needs a folder")
    for path in reversed(missing):
        path.mkdir()
    return missing


def _replace_outputs(stage: Path, target: Path) -> None:
    """Swap the old outputs in `target` for those in `stage`, a folder inside it; back again if a step fails."""
    old = target / f"{stage.name}.old"
    old.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        steps = [(target / name, old / name) for name in outputs_in(target)]
        steps += [(path, target / path.name) for path in sorted(stage.iterdir())]
        for source, destination in steps:
            os.rename(source, destination)
            moved.append((source, destination))
    except BaseException:
        for source, destination in reversed(moved):
            os.rename(destination, source)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
