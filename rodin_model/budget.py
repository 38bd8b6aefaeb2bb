"""Settings in a folder may ask for no more memory than the tensors beside them fill."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from rodin_model.checkpoints import tensor_shapes

T = TypeVar("T")


class _Budget(TorchFunctionMode):
    """While a part is built, it may ask for no more memory than its files fill, and some for buffers."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        shapes = [shape for path in folder.glob("*.safetensors") for shape in tensor_shapes(path).values()]
        self.folder, self.left = folder, 2 * sum(map(math.prod, shapes)) + 2**22

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.rand):
            size = args[0] if args and not isinstance(args[0], int) else [n for n in args if isinstance(n, int)]
            self.left -= math.prod(size)
            if self.left < 0:
                raise ValueError(f"{self.folder / 'config.json'} asks for more than the tensors beside it hold")
        return func(*args, **(kwargs or {}))


def load_part(read: Callable[[Path], T], folder: Path) -> T:
    """What `read` makes of `folder`; ValueError where that would take much more memory than its files fill."""
    with _Budget(folder):
        return read(folder)
