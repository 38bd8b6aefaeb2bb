"""What a result must say about where it comes from: device, versions, date and command."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def device_name(device: torch.device) -> str:
    """The device in words: the GPU's name, or the processor's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The processor's name, and the widest vectors that PyTorch uses on it."""
    name = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", facts.read_text(encoding="utf-8"), re.M)
        name = found.group(1) if found else name
    return f"{' '.join(name.split())} ({torch.backends.cpu.get_cpu_capability()})"


def slug(name: str) -> str:
    """A device's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def described(device: torch.device, arguments: list[str]) -> dict[str, Any]:
    """Everything that the results file says about the run."""
    name = device_name(device)
    facts: dict[str, Any] = {
        "device": name, "kind": device.type, "slug": slug(name),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command(arguments), "versions": versions(), "system": platform.system(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "commit": commit(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"memory": properties.total_memory, "multiprocessors": properties.multi_processor_count,
                  "capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda,
                  "hip": torch.version.hip, "driver": driver()}
    return facts


def command(arguments: list[str]) -> str:
    """The command as another machine would give it: where results went is nobody's business."""
    kept = list(arguments)
    if "--output" in kept:
        place = kept.index("--output")
        del kept[place:place + 2]
    return " ".join(["python -m benchmarks", *(word for word in kept if not word.startswith("--output="))])


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, those that are installed."""
    found = {"python": sys.version.split()[0]}
    for package in ("torch", "triton", "rodin", "diffusers", "nerfacc", "lightplane"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the working tree, with a plus if tracked files differ; None outside of one."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def driver() -> str | None:
    """Version of the GPU's driver, if its tool is there."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
