"""Check that a folder holds what `python -m rodin_model.generate` promises: whole files that carry the mark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from rodin_model.triplane import Avatar

MARK = b"trainedAlgorithmicMedia"


def check(folder: Path) -> list[str]:
    """What is wrong with the folder: one sentence for each fault, none if all is well."""
    faults = []
    front, tables = folder / "front.png", sorted(folder.glob("turntable.*"))
    if len(tables) != 1:
        return [f"expected one turntable in {folder}; found {[p.name for p in folder.glob('*')]}"]
    for path in (front, tables[0]):
        with Image.open(path) as picture:
            picture.load()
            if path != front and getattr(picture, "n_frames", 1) < 8:
                faults.append(f"{path.name} does not move")
            darkest, brightest = picture.convert("L").getextrema()
            if brightest - darkest < 64:
                faults.append(f"{path.name} shows nothing")
        if MARK not in path.read_bytes():
            faults.append(f"{path.name} does not say that a machine made it")
    avatar = Avatar.load(folder / "avatar.safetensors")
    if not bool(avatar.planes.isfinite().all()):
        faults.append("the planes are not finite")
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or not settings:
        faults.append("settings.json is empty")
    return faults


if __name__ == "__main__":
    found = check(Path(sys.argv[1]))
    print("\n".join(found) or f"{sys.argv[1]}: complete and marked")
    sys.exit(bool(found))
