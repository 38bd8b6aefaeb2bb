"""Contact sheets: pictures in rows and columns, a line or two of words under each, saved with the mark."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rodin_model import checkpoints
from rodin_model.portraits import to_picture
from rodin_model.provenance import Mark, picture_bytes

_MARGIN = 6
_FONT_SIZE = 12
_LINE = 15


def sheet(pictures: Sequence[Tensor | Image.Image], columns: int, labels: Sequence[str] | None = None, *,
          cell: int = 192, title: str = "", lines: int = 2) -> Image.Image:
    """Pictures in reading order, `columns` a row, each scaled to `cell` pixels, on a light ground.

    Pictures are float tensors [H, W, 3] in [0, 1] or PIL pictures. A label is wrapped to at most `lines` lines under
    its picture. ValueError if there are no pictures, or not one label for each of them.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a sheet needs at least one picture and one column; got {len(pictures)} and {columns}")
    if labels is not None and len(labels) != len(pictures):
        raise ValueError(f"a sheet needs one label for each picture; got {len(labels)} for {len(pictures)}")
    font = ImageFont.load_default(_FONT_SIZE)
    head = 2 * _LINE if title else 0
    height = cell + _MARGIN + (lines * _LINE if labels is not None else 0)
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (cell + _MARGIN) + _MARGIN, rows * height + _MARGIN + head), (246, 246, 246))
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), title, fill=(20, 20, 20), font=font)
    for index, picture in enumerate(pictures):
        left = _MARGIN + index % columns * (cell + _MARGIN)
        top = _MARGIN + head + index // columns * height
        image = to_picture(picture) if isinstance(picture, Tensor) else picture.convert("RGB")
        page.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (left, top))
        if labels is not None:
            for number, line in enumerate(wrapped(labels[index], cell, font, lines)):
                draw.text((left, top + cell + 1 + number * _LINE), line, fill=(60, 60, 60), font=font)
    return page


def wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, lines: int) -> list[str]:
    """`text` in at most `lines` lines that fit into `width` pixels; an ellipsis ends what did not fit."""
    characters = max(1, int(width / max(1.0, font.getlength("abcdefghij") / 10)))
    return textwrap.wrap(text, characters, max_lines=lines, placeholder=" …") if text else []


def save_sheet(path: str | os.PathLike[str], page: Image.Image, mark: Mark) -> None:
    """Write a sheet as a marked PNG, whole or not at all."""
    checkpoints.write_bytes(path, picture_bytes(page, mark, "png"))
