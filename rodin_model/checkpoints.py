"""Tensors on the disk: safetensors files, the parts of a model, and training states that can be resumed.

Every file is whole or absent (`rodin_model.files`), nothing here runs code from a file, and the same content gives the
same bytes on every machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rodin_model.files import atomic_file, read_json, sync_folder, write_bytes, write_json

__all__ = [
    "atomic_file", "check_shapes", "load_component", "load_state", "load_tensors", "read_config", "read_json",
    "save_component", "save_state", "save_tensors", "sync_folder", "tensor_shapes", "write_bytes", "write_json",
]

_DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
                torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
                torch.bool: "BOOL"}


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor],
                 metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors (any strides, any device) as one safetensors file; equal content gives equal bytes.

    The header is sorted by name, which the safetensors package's own writer does not promise for the metadata.
    Raises TypeError for names or metadata that are not text and for dtypes that the format lacks.
    """
    metadata = dict(metadata or {})
    for key, value in [*metadata.items(), *((name, "") for name in tensors)]:
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"names and metadata must be text; got {key!r}: {type(value).__name__}")
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE_NAMES or tensor.is_meta or tensor.layout != torch.strided:
            raise TypeError(f"tensor {name!r} ({tensor.dtype}, {tensor.device}, {tensor.layout}) cannot be stored")
    # widest elements first, so that every tensor starts at a multiple of its element size
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def load_tensors(path: str | os.PathLike[str], device: str | torch.device = "cpu",
                 shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors by name, and its metadata.

    With `shapes`, names and shapes must be exactly these; that is checked in the header, before anything is
    allocated. Raises FileNotFoundError, or ValueError that names the file if it is damaged or does not match.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            if shapes is not None:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                check_shapes(found, shapes, str(path))
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], what: str) -> None:
    """ValueError naming `what` and the first difference unless names and shapes agree."""
    for name in wanted:
        if name not in found:
            raise ValueError(f"{what} lacks the tensor {name!r} of shape {tuple(wanted[name])}")
        if tuple(found[name]) != tuple(wanted[name]):
            raise ValueError(f"{what}: tensor {name!r} has shape {tuple(found[name])}; needed is {tuple(wanted[name])}")
    for name in found:
        if name not in wanted:
            raise ValueError(f"{what} holds a tensor {name!r} that the model does not have")


def save_component(folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor], *,
                   dtype: torch.dtype | None = None, max_bytes: int = 14_000_000) -> None:
    """Write one part of a model: its tensors in files of at most `max_bytes` each, then `config.json`.

    One file is `model.safetensors`, several are `model-00001-of-00003.safetensors` and so on. With `dtype`,
    floating-point tensors are stored in it (float16 halves the shipped model).
    """
    folder = Path(folder)
    stored = {name: t.to(dtype) if dtype is not None and t.is_floating_point() else t for name, t in tensors.items()}
    shards: list[dict[str, Tensor]] = [{}]
    room = max_bytes
    for name, tensor in stored.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= size
    names = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_tensors(folder / name, shard)
    write_json(folder / "config.json", dict(config))
    for old in folder.glob("model*.safetensors"):
        if old.name not in names:
            old.unlink()


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The `config.json` of one part of a model; FileNotFoundError or ValueError name what is wrong."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(config).__name__}")
    return config


def load_component(folder: str | os.PathLike[str], module: torch.nn.Module) -> None:
    """Fill `module` in place from the files that `save_component` wrote, in the module's own dtypes and on its device.

    Names and shapes are compared with the headers before any tensor is read. Raises FileNotFoundError if files
    are missing, ValueError naming the file or the tensor if something does not fit.
    """
    folder = Path(folder)
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"there is no model.safetensors in {folder}")
    if len(files) > 1 or files[0].name != "model.safetensors":
        expected = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
        if [file.name for file in files] != expected:
            raise FileNotFoundError(f"files of the model in {folder} are missing or do not belong together: "
                                    f"{', '.join(file.name for file in files)}")
    wanted = module.state_dict()
    where: dict[str, Path] = {}
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        for name, shape in tensor_shapes(path).items():
            where[name], found[name] = path, shape
    check_shapes(found, {name: tuple(t.shape) for name, t in wanted.items()}, str(folder))
    with torch.no_grad():
        for path in files:
            for name, tensor in load_tensors(path)[0].items():
                wanted[name].copy_(tensor)


def tensor_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, read from its header alone."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def save_state(folder: str | os.PathLike[str], step: int, tensors: Mapping[str, Tensor],
               extra: Mapping[str, Any] | None = None, *, keep: int = 2) -> None:
    """Save a training state that `load_state` finds again: tensors, and JSON data `extra` beside them.

    The state is one file; `manifest.json`, written last, lists the `keep` newest states, and older ones go. The
    call can be killed anywhere: the newest state that the manifest lists is whole.
    """
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"step must be an integer of at least 0; got {step!r}")
    if keep < 1:
        raise ValueError(f"keep must be at least 1; got {keep}")
    folder = Path(folder)
    name = f"state-{step:09d}.safetensors"
    text = json.dumps(dict(extra or {}), sort_keys=True, allow_nan=False)
    save_tensors(folder / name, tensors, {"step": str(step), "extra": text})
    listed = [entry for entry in _listed_states(folder) if entry["file"] != name]
    listed.append({"step": step, "file": name, "bytes": (folder / name).stat().st_size})
    listed = sorted(listed, key=lambda entry: entry["step"])[-keep:]
    write_json(folder / "manifest.json", {"states": listed})
    for old in folder.glob("state-*.safetensors"):
        if old.name not in {entry["file"] for entry in listed}:
            old.unlink()


def load_state(folder: str | os.PathLike[str], device: str | torch.device = "cpu",
               ) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest complete state in `folder`: (step, tensors, extra), or None where there is none yet."""
    folder = Path(folder)
    for entry in reversed(_listed_states(folder)):
        path = folder / entry["file"]
        if path.is_file() and path.stat().st_size == entry["bytes"]:
            tensors, metadata = load_tensors(path, device)
            return entry["step"], tensors, json.loads(metadata["extra"])
    return None


def _listed_states(folder: Path) -> list[dict[str, Any]]:
    """The manifest's entries by rising step; anything that does not look like one is a ValueError."""
    path = folder / "manifest.json"
    if not path.is_file():
        return []
    manifest = read_json(path)
    entries = manifest.get("states") if isinstance(manifest, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list under 'states'")
    for entry in entries:
        whole = isinstance(entry, dict) and isinstance(entry.get("step"), int) and isinstance(entry.get("bytes"), int)
        if not whole or entry.get("file") != f"state-{entry['step']:09d}.safetensors":
            raise ValueError(f"{path} has an entry that is no training state: {entry!r}")
    return sorted(entries, key=lambda entry: entry["step"])
