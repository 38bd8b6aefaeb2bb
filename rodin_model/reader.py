"""The attribute reader: a small convolutional network that names what a picture of an avatar shows.

It is the judge of `rodin_model.evaluate`, so it never sees a generated picture: `rodin_model.train.reader` trains it
on true pictures of procedural avatars alone. Its own accuracy on true pictures is the ceiling of every figure that it
gives, and is printed beside them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rodin_model import checkpoints
from rodin_model.avatars.attributes import CHOICES
from rodin_model.cameras import face_of
from rodin_model.config import from_dict, to_dict

#: Where the shipped reader lies.
SHIPPED = Path(__file__).parent / "pretrained" / "reader"


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of the reader: pictures of `size` x `size` pixels, one stage of the network for each of `widths`.

    `face_stride`: 1 keeps every pixel of the face in the first stage of its branch, 2 halves it at once.
    """

    size: int = 128
    widths: tuple[int, ...] = (24, 48, 80, 112)
    face_stride: int = 2

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 512:
            raise ValueError(f"size must be an integer from 16 to 512; got {self.size!r}")
        if not 1 <= len(self.widths) <= 6 or not all(1 <= w <= 1024 for w in self.widths):
            raise ValueError(f"widths must be one to six integers from 1 to 1024; got {self.widths!r}")
        if self.face_stride not in (1, 2):
            raise ValueError(f"face_stride must be 1 or 2; got {self.face_stride!r}")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ReaderConfig:
        """Read what `AttributeReader.save` wrote; ValueError for unknown keys or another list of attributes."""
        sizes = {name: value for name, value in data.items() if name != "choices"}
        if data.get("choices") != {name: list(values) for name, values in CHOICES.items()}:
            raise ValueError("this reader was trained for other attributes than this version has; train it again")
        return from_dict(cls, sizes)


class AttributeReader(nn.Module):
    """Pictures to a distribution over the values of every attribute in `CHOICES`.

    Two branches of like shape, one over the whole picture at half size, one over the face at full size; in each a
    convolution, strided unless `face_stride` is 1, then per stage a residual block. The last map of each is read as its
    mean, its maximum and, through a narrow 1x1 convolution, place by place. About 1.2 million weights by default.
    """

    def __init__(self, config: ReaderConfig | None = None) -> None:
        super().__init__()
        self.config = config or ReaderConfig()
        self.whole = _Branch(self.config.widths)
        self.face = _Branch(self.config.widths, self.config.face_stride)
        features = 2 * (2 * self.config.widths[-1] + _Branch.PLACES)
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, sum(len(values) for values in CHOICES.values()))

    def features(self, images: Tensor) -> Tensor:
        """What the network sees before it names it: [B, F] for pictures [B, 3, H, W] in [0, 1] on white.

        Pictures of any size are brought to the reader's own. Differentiable in the pictures. TypeError or ValueError
        for anything that is no batch of such pictures.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError("images must be a floating-point tensor [B, 3, H, W] with values in [0, 1]")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have the shape [B, 3, H, W]; got {list(images.shape)}")
        size = self.config.size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        x = ((images - 0.5) / 0.3).contiguous(memory_format=torch.channels_last)
        return self.norm(torch.cat([self.whole(F.avg_pool2d(x, 2)), self.face(face_of(x))], 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B, number of values] for every attribute, by name, for pictures [B, 3, H, W] in [0, 1] on white."""
        return self.named(self.features(images))

    def named(self, features: Tensor) -> dict[str, Tensor]:
        """Logits as `forward` gives them, for what `features` has seen [B, F]."""
        logits = self.head(features).float()
        parts = logits.split([len(values) for values in CHOICES.values()], 1)
        return dict(zip(CHOICES, parts, strict=True))

    @torch.no_grad()
    def read(self, images: Tensor, batch: int = 64) -> list[dict[str, str]]:
        """The most likely value of every attribute for each picture of [B, 3, H, W] in [0, 1] on white."""
        words: list[dict[str, str]] = []
        for part in images.split(batch):
            best = {name: logits.argmax(1).tolist() for name, logits in self(part).items()}
            words += [{name: CHOICES[name][best[name][i]] for name in CHOICES} for i in range(len(part))]
        return words

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` (half precision) into `folder`."""
        config = {**to_dict(self.config), "choices": CHOICES}
        checkpoints.save_component(folder, config, self.state_dict(), dtype=torch.float16)

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu") -> AttributeReader:
        """Read a reader that `save` wrote, ready to use; without a folder, the shipped one.

        Raises FileNotFoundError or ValueError naming the file that is missing or wrong.
        """
        folder = SHIPPED if folder is None else Path(folder)
        reader = cls(ReaderConfig.from_dict(checkpoints.read_config(folder)))
        checkpoints.load_component(folder, reader)
        return reader.to(device).eval()


class _Branch(nn.Module):
    """Convolutions at falling size, and the last map as a list of numbers: mean, maximum, and 4 x 4 places."""

    PLACES = 24 * 16

    def __init__(self, widths: tuple[int, ...], stride: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, widths[0], kernel=5, stride=stride), nn.SiLU()]
        # at full size a residual block would cost as much as all that follows
        layers += [_Residual(widths[0])] if stride > 1 else []
        for before, width in zip(widths, widths[1:], strict=False):
            layers += [_convolution(before, width, stride=2), nn.SiLU(), _Residual(width)]
        self.body, self.places = nn.Sequential(*layers), nn.Conv2d(widths[-1], self.PLACES // 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3)), F.adaptive_avg_pool2d(self.places(x), 4).flatten(1)], 1)


class _Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(width, width), _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.second(F.silu(self.first(x))))


def _convolution(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution and batch normalisation."""
    return nn.Sequential(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after))
