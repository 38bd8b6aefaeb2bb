"""Launch parameters as data: what `rodin_kernels.tune` found on a device, read back when a kernel is launched.

One JSON file a device, `<device>.json`, in the user's folder (`$RODIN_KERNELS_CONFIGS`, else
`$XDG_CACHE_HOME/rodin_kernels`, else `~/.cache/rodin_kernels`) or in this package:

    {"schema": 1, "device": "NVIDIA H200", "entries": [
        {"operator": "sample_triplane", "kernel": "forward", "shape": {"channels": 32, "bits": 16},
         "config": {"points": 64, "num_warps": 4}}]}

A kernel asks with `choose` (or with `tuned_rule`, for rules with tiles) and gets the
config of the nearest tuned shape, or its default. Nothing is timed at run time, and a file can do no more than choose
among values that the kernel allows.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

#: What a launch parameter may be.
Value = int | str
Config = dict[str, Value]
#: Format of the files.
SCHEMA = 1
#: Files larger than this are refused: a device has some hundred shapes.
MAX_BYTES = 1 << 22

_log = logging.getLogger("rodin_kernels")
_told: set[tuple[str, str, str]] = set()
_forced: dict[tuple[str, str], Config] = {}
_listeners: list[Callable[[Question], None]] = []
_known: dict[tuple[Any, ...], Config] = {}
_version = 0


class Question(NamedTuple):
    """What a kernel asked: who, for which shape, its default, and the values that each parameter may take."""

    operator: str
    kernel: str
    shape: tuple[tuple[str, int], ...]
    default: tuple[tuple[str, Value], ...]
    space: tuple[tuple[str, tuple[Value, ...]], ...]


def choose(operator: str, kernel: str, shape: Mapping[str, int], default: Mapping[str, Value],
           device: torch.device | str, *, space: Mapping[str, Sequence[Value]] | None = None) -> Config:
    """The launch parameters of a kernel for a shape: tuned ones of the nearest shape on this device, or `default`.

        distance = sum over the shape's names of |log2((a + 1) / (b + 1))|, infinite for another number of bits

    Args:
        operator: such as "rollout_conv". kernel: its kernel, such as "own_plane".
        shape: what the best parameters depend on, whole numbers >= 0, such as channels, bits of the dtype.
        default: parameters for a device that nobody tuned; the answer has the same names and types.
        device: where the kernel will run.
        space: the values that a parameter may take; a missing name stands for `allowed(name, default)`.

    Returns:
        A new dictionary. Asking costs a look-up; files are read once a process. When the nearest tuned shape is another
        than the one asked for, that is logged once a kernel.

    Raises:
        ValueError: `forced` asks for a parameter that the kernel does not have, or for a value that it does not allow.
    """
    quick = (operator, kernel, *shape.values(), *default.values(), device)
    if not _listeners and not _forced and quick in _known:
        return dict(_known[quick])
    limits = space or {}
    question = Question(
        operator, kernel, tuple(sorted(shape.items())), tuple(sorted(default.items())),
        tuple((name, tuple(limits.get(name) or allowed(name, value))) for name, value in sorted(default.items())),
    )
    for listener in _listeners:
        listener(question)
    if (forced := _forced.get((operator, kernel))) is not None:
        return _forced_answer(forced, question)
    _known[quick] = dict(_answer(question, device_key(device)))
    return dict(_known[quick])


def tuned_rule(operator: str, kernel: str, shape: Mapping[str, int], rule: Mapping[str, Any],
               device: torch.device | str, *, least: Sequence[int] = ()) -> dict[str, Any]:
    """A shipped rule with what was tuned on this device in place of its "tile" (a list), "warps" and "stages".

    The tile's sizes are asked for, and kept in files, as "tile0", "tile1" and so on, and are never below `least`; all
    else in the rule stays.
    """
    tile = list(rule.get("tile", ()))
    default = {name: rule[name] for name in ("warps", "stages") if name in rule}
    default |= {f"tile{i}": value for i, value in enumerate(tile)}
    space = {f"tile{i}": tuple(v for v in allowed("tile", tile[i]) if int(v) >= low) for i, low in enumerate(least)}
    found = choose(operator, kernel, shape, default, device, space=space)
    sizes = [found.pop(f"tile{i}") for i in range(len(tile))]
    return {**rule, **found, **({"tile": sizes} if tile else {})}


def allowed(name: str, default: Value) -> tuple[Value, ...]:
    """The values that a parameter may take where its kernel does not say: neighbours of the default.

    Warps (`num_warps`, `warps`): 1 to 16; stages (`num_stages`, `stages`): 1 to 6; other powers of two: a quarter to
    four times; all else stays as it is.
    """
    if isinstance(default, str | bool):
        return (default,)
    if name.endswith("warps"):
        return (1, 2, 4, 8, 16)
    if name.endswith("stages"):
        return (1, 2, 3, 4, 5, 6)
    if default >= 8 and default & (default - 1) == 0:
        return tuple(default * 2**i // 4 for i in range(5))
    return (default,)


@contextmanager
def forced(operator: str, kernel: str, config: Mapping[str, Value]) -> Iterator[None]:
    """Inside, the kernel runs with these parameters instead of shipped or tuned ones; what is not named stays.

    The kernel refuses, by a ValueError at its next launch, names that it does not know and values that it does not
    allow. For the tuner, for tests, and for callers who know better than the files.
    """
    key, before = (operator, kernel), _forced.get((operator, kernel))
    _forced[key] = dict(config)
    try:
        yield
    finally:
        del _forced[key]
        if before is not None:
            _forced[key] = before


@contextmanager
def overheard() -> Iterator[list[Question]]:
    """Inside, every question that a kernel asks is added to the list, each once."""
    heard: list[Question] = []

    def listen(question: Question) -> None:
        if question not in heard:
            heard.append(question)

    _listeners.append(listen)
    try:
        yield heard
    finally:
        _listeners.remove(listen)


def _forced_answer(config: Config, question: Question) -> Config:
    """The default with what is forced in it, after a check of names and values."""
    space = dict(question.space)
    for name, value in config.items():
        if value not in space.get(name, ()):
            known = f"{name} is one of {list(space[name])}" if name in space else f"parameters are {list(space)}"
            raise ValueError(f"{question.operator}: forced {name}={value!r} for {question.kernel}; its {known}")
    return {**dict(question.default), **config}


def device_key(device: torch.device | str) -> str:
    """The name under which a device's file is kept: "nvidia-h200"; "cpu" for the interpreter."""
    place = torch.device(device)
    return _slug(torch.cuda.get_device_name(place)) if place.type == "cuda" else place.type


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def user_folder() -> Path:
    """Where the tuner writes, and where its files are looked for first."""
    if chosen := os.environ.get("RODIN_KERNELS_CONFIGS"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rodin_kernels"


def find(key: str) -> Path | None:
    """The file of a device: the user's, else the package's, else None."""
    places = (user_folder() / f"{key}.json", Path(__file__).parent / f"{key}.json")
    return next((path for path in places if path.is_file()), None)


@lru_cache(maxsize=4096)
def _answer(question: Question, key: str) -> tuple[tuple[str, Value], ...]:
    best, distance = None, math.inf
    for entry in _entries(key):
        if (entry["operator"], entry["kernel"]) == (question.operator, question.kernel):
            away = _distance(dict(question.shape), entry["shape"])
            fine = away < distance and _fits(entry["config"], question)
            best, distance = (entry, away) if fine else (best, distance)
    if best is None:
        return question.default
    name = (key, question.operator, question.kernel)
    if distance > 0 and name not in _told:
        _told.add(name)
        _log.warning("%s: %s was not tuned for %s on this device; the nearest shape %s is used (python -m "
                     "rodin_kernels.tune)", question.operator, question.kernel, dict(question.shape), best["shape"])
    return tuple({**dict(question.default), **best["config"]}.items())


def _distance(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Infinite for shapes with other names or another number of bits, whose best parameters have nothing in common."""
    if set(a) != set(b) or a.get("bits") != b.get("bits"):
        return math.inf
    return sum(abs(math.log2((a[name] + 1) / (b[name] + 1))) for name in a)


def _fits(config: Mapping[str, Value], question: Question) -> bool:
    """Every value is one that the kernel allows; told once a kernel where not."""
    space = dict(question.space)
    bad = {name: value for name, value in config.items() if value not in space.get(name, ())}
    name = ("unusable", question.operator, question.kernel)
    if bad and name not in _told:
        _told.add(name)
        _log.warning("%s: %s does not allow the tuned %s; its default is used", question.operator, question.kernel, bad)
    return not bad


@lru_cache(maxsize=16)
def _entries(key: str) -> tuple[dict[str, Any], ...]:
    """A device's entries; a file that is not what it should be counts as none, and is told."""
    path = find(key)
    if path is None:
        return ()
    try:
        return tuple(load(path))
    except (OSError, ValueError) as error:
        _log.warning("%s is ignored: %s", path.name, error)
        return ()


def version() -> int | None:
    """A number that changes with the answers of `choose`; None while they are forced or overheard."""
    return None if _forced or _listeners else _version


def forget() -> None:
    """Read files again, and tell again what was told."""
    global _version
    _version += 1
    _known.clear()
    _answer.cache_clear()
    _entries.cache_clear()
    _told.clear()


def load(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, checked.

    Raises:
        OSError: it cannot be read. ValueError: it is no such file; the message names the first thing that is wrong.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("entries"), list):
        raise ValueError(f'needs {{"schema": {SCHEMA}, "entries": [...]}}')
    for index, entry in enumerate(data["entries"]):
        _check_entry(f"entries[{index}]", entry)
    return list(data["entries"])


def _check_entry(where: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object")
    for name in ("operator", "kernel"):
        if not isinstance(entry.get(name), str):
            raise ValueError(f"{where}.{name} must be a text")
    for name, kinds in (("shape", (int,)), ("config", (int, str))):
        table = entry.get(name)
        if not isinstance(table, dict):
            raise ValueError(f"{where}.{name} must be an object")
        for key, value in table.items():
            if not isinstance(value, kinds) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
                raise ValueError(f"{where}.{name}.{key} is {value!r:.60}")
