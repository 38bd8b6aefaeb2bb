"""What callers of the pipeline give, checked: texts and pictures, one or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from rodin_model.portraits import read_portrait, to_tensor
from rodin_model.prompts import check_prompt

#: Pixels at which a portrait is handed to the conditioner, which resizes it to its own size.
PORTRAIT_SIZE = 256


def checked_prompts(prompt: str | Sequence[str] | None) -> list[str]:
    """A list of texts, empty for None; TypeError or ValueError as `check_prompt`, ValueError for an empty list."""
    if prompt is None:
        return []
    prompts = [check_prompt(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
    if not prompts:
        raise ValueError("the list of prompts is empty")
    return prompts


def checked_images(image: Any) -> list[Tensor]:
    """Tensors [3, H, W] float32 in [0, 1] from one or several file names, PIL pictures or such tensors."""
    if image is None:
        return []
    several = isinstance(image, list | tuple) or (isinstance(image, Tensor) and image.ndim == 4)
    images = [_picture_tensor(item) for item in (image if several else [image])]
    if not images:
        raise ValueError("the list of images is empty")
    return images


def _picture_tensor(item: Any) -> Tensor:
    if isinstance(item, Tensor):
        if item.ndim != 3 or item.shape[0] != 3 or not item.is_floating_point():
            raise ValueError(f"an image tensor must be floating point [3, H, W]; got {item.dtype} {tuple(item.shape)}")
        return item.float()
    if isinstance(item, str | os.PathLike):
        item = read_portrait(item)
    if not isinstance(item, Image):
        raise TypeError(f"an image must be a file name, a PIL picture or a tensor; got {type(item).__name__}")
    return to_tensor(item, PORTRAIT_SIZE)
