"""Files that are whole or absent.

Every write goes to a hidden name in the same folder, is flushed to the disk and then takes its final name in one
step, so a killed process or a full disk leaves the old file or none, never half of a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

#: Largest JSON file that is read, in bytes: settings are small, and a big one is a mistake or an attack.
MAX_JSON_BYTES = 16 * 1024 * 1024


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a hidden binary file beside `path` that takes its name when the block ends, and vanishes if the block fails.

    Missing parent folders are made. Raises OSError as the file system does (full disk, no permission).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder's list of names to the disk, so that a rename survives a power cut (no-op on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write plain data as indented JSON in the order given, whole or not at all; NaN and infinity are a ValueError."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file of at most `MAX_JSON_BYTES`; ValueError names the file if it is larger or no JSON."""
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size} bytes; a JSON file may have at most {MAX_JSON_BYTES}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def replace_between(page: Path, begin: str, end: str, text: str, head: str, before: str) -> None:
    """Put `text` between two markers of a page; without markers, after `head` and before the line `before`.

    Raises:
        ValueError: one marker is there without the other.
    """
    whole = page.read_text(encoding="utf-8") if page.is_file() else ""
    body = f"{begin}\n{text}\n{end}"
    if (begin in whole) != (end in whole):
        raise ValueError(f"{page.name} holds one of the markers {begin} and {end} without the other")
    if begin in whole:
        start, stop = whole.index(begin), whole.index(end) + len(end)
        whole = whole[:start] + body + whole[stop:]
    else:
        place = whole.index(before) if before and before in whole else len(whole)
        whole = f"{whole[:place].rstrip()}\n\n{head}{body}\n\n{whole[place:]}".lstrip("\n").rstrip("\n") + "\n"
    write_bytes(page, whole.encode())
