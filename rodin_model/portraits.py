"""Pictures from strangers: opened with care, turned upright, put on white and cut to a square.

A picture file is the only foreign binary that the package reads. It is recognised by its bytes, never by its name,
and its size is known to be sane before a single pixel is decoded.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from torch import Tensor

#: What may be opened; everything else, however named, is refused.
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_PIXELS = 50_000_000
MIN_SIDE = 16


def read_portrait(path: str | os.PathLike[str]) -> Image.Image:
    """The first frame of a JPEG, PNG or WebP file: upright, RGB on white, without metadata.

    Raises FileNotFoundError, or ValueError that names the file: not a picture, larger than 64 MB or 50 megapixels,
    damaged, or smaller than 16 pixels.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{path} has {size / 1e6:.0f} MB; a picture may have at most {MAX_FILE_BYTES / 1e6:.0f} MB")
    with warnings.catch_warnings():
        # Pillow only warns about pictures of 89 to 179 megapixels, and about damaged metadata that we drop anyway
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as picture:
                problem = _problem(*picture.size)
                if not problem:
                    picture.load()
                    return clean(picture)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            problem = f"has too many pixels; at most {MAX_PIXELS // 10**6} megapixels are read"
        except UnidentifiedImageError:
            problem = f"is not a picture that can be read ({', '.join(FORMATS)})"
        # decoders fed with damaged bytes raise whatever their parts raise: struct.error, SyntaxError, TypeError, ...
        except Exception as error:
            problem = f"is a damaged picture: {error}"
    raise ValueError(f"{path} {problem}")


def clean(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF says, transparent parts on white, as RGB without metadata; the original stays."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    result = upright.convert("RGB")
    result.info = {}
    return result


def square(picture: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture, `size` pixels wide (Lanczos)."""
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def cropped(picture: Image.Image, left: int, top: int, side: int) -> Image.Image:
    """The square of `side` pixels whose upper left corner is (left, top); white where it leaves the picture.

    The picture tower expects a head as the avatars' front camera sees it: the face in the middle half of the columns
    and from 23 % to 73 % of the rows, shoulders below. Nothing looks for faces; the middle square is the default.
    ValueError for a square that is smaller than `MIN_SIDE` or that misses the picture.
    """
    if side < MIN_SIDE or left >= picture.width or top >= picture.height or left + side <= 0 or top + side <= 0:
        raise ValueError(f"the crop of {side} pixels at {left}, {top} must have at least {MIN_SIDE} pixels and lie on "
                         f"the picture of {picture.width} x {picture.height}")
    ground = Image.new("RGB", (side, side), "white")
    ground.paste(clean(picture).crop((max(left, 0), max(top, 0), min(left + side, picture.width),
                                      min(top + side, picture.height))), (max(-left, 0), max(-top, 0)))
    return ground


def to_tensor(picture: Image.Image, size: int) -> Tensor:
    """A picture as the image tower takes it: its middle square [3, size, size], float32 in [0, 1], on white."""
    import numpy as np
    import torch

    pixels = np.asarray(square(clean(picture), size), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def to_picture(rgb: Tensor) -> Image.Image:
    """A rendered picture [H, W, 3], float in [0, 1] (clamped), as eight-bit RGB."""
    if rgb.ndim != 3 or rgb.shape[-1] != 3:
        raise ValueError(f"rgb must be [H, W, 3]; got {tuple(rgb.shape)}")
    pixels = rgb.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return Image.fromarray(pixels)


def _problem(width: int, height: int) -> str:
    """What is wrong with a picture of this size; empty if nothing is."""
    if width * height > MAX_PIXELS:
        return f"has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read"
    if min(width, height) < MIN_SIDE:
        return f"has {width} x {height} pixels; a portrait needs at least {MIN_SIDE} x {MIN_SIDE}"
    return ""
