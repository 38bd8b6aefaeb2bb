"""Two small networks that put words and pictures of avatars into one latent space, z [512] on the unit sphere.

They play the part that CLIP plays in the paper (Rodin, section 3.2: z is the frozen encoder's embedding of the frontal
picture). One linear map reads every attribute from z, whichever tower made it; training by that map, together with the
contrastive loss, is what makes the two kinds of z interchangeable.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rodin_model.avatars.attributes import CHOICES, SHAPE
from rodin_model.cameras import face_of
from rodin_model.tokenizer import WordTokenizer

#: Length of z. Every z has unit length; networks that read it scale it by sqrt(LATENT_SIZE), to unit variance.
LATENT_SIZE = 512


@dataclass(frozen=True)
class TowersConfig:
    """Sizes of both towers."""

    buckets: int = 5120
    max_words: int = 96
    max_groups: int = 28
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    image_size: int = 128
    image_widths: tuple[int, ...] = (24, 48, 96, 128)

    def __post_init__(self) -> None:
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width {self.text_width} must be a multiple of text_heads {self.text_heads}")
        if self.image_size < 16 or not self.image_widths:
            raise ValueError(f"image_size must be at least 16 and image_widths not empty; got {self.image_size} "
                             f"and {self.image_widths}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**dataclasses.asdict(self), "image_widths": list(self.image_widths)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TowersConfig:
        """The inverse of `to_dict`; unknown names, wrong types and absurd sizes are a ValueError."""
        names = {f.name for f in dataclasses.fields(cls)}
        if unknown := set(data) - names:
            raise ValueError(f"unknown settings of the towers: {', '.join(sorted(unknown))}; "
                             f"known: {', '.join(sorted(names))}")
        values = {**data, **({"image_widths": tuple(data["image_widths"])} if "image_widths" in data else {})}
        for name, value in values.items():
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 65536:
                    raise ValueError(f"{name} must be whole numbers from 1 to 65536; got {data[name]!r}")
        return cls(**values)


class _TextBlock(nn.Module):
    """A look at both neighbours, which binds "black" to "hair", then attention over all words, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(width) for _ in range(3))
        self.near = nn.Linear(3 * width, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        padded = F.pad(self.norm_1(x) * mask, (0, 0, 1, 1))
        x = x + F.relu(self.near(torch.cat([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], -1)))
        q, k, v = self.qkv(self.norm_2(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # written out: on a CPU the backward pass of the fused attention takes half of a training step
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = scores.masked_fill(mask[:, None, None, :, 0] == 0, float("-inf")).softmax(-1).to(v.dtype)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm_3(x))


class TextTower(nn.Module):
    """Letter groups -> z: groups averaged per word, positions, a few blocks, attention pooling, unit length."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        width = config.text_width
        self.groups = nn.Parameter(torch.randn(config.buckets, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(config.max_words, width) * 0.05)
        self.blocks = nn.ModuleList(_TextBlock(width, config.text_heads) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, 4)
        self.head = nn.Linear(4 * width, LATENT_SIZE)

    def forward(self, ids: Tensor) -> Tensor:
        """z float32 [B, 512] of unit length from the tokenizer's ids [B, L, G]; differentiable in the weights."""
        words = F.embedding_bag(ids.flatten(0, 1), self.groups, mode="mean", padding_idx=0).unflatten(0, ids.shape[:2])
        mask = (ids[:, :, :1] != 0).to(words.dtype)
        mask[:, 0] = 1.0  # a text without words still has one place to attend to
        x = words + self.positions[:ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        weights = self.pool(x).masked_fill(mask == 0, float("-inf")).softmax(1)
        return F.normalize(self.head(torch.einsum("blk,blc->bkc", weights, x).flatten(1)).float(), dim=-1)


class _ImageBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first may halve the picture."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.conv_2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_1(self.conv_1(x)))
        return F.relu(x + self.norm_2(self.conv_2(x)))


def _branch(widths: tuple[int, ...], stride: int) -> nn.Sequential:
    """A stem of 5x5 and one block for each further width, every block at half the size."""
    stem, *wider = widths
    blocks = (_ImageBlock(i, o, 2) for i, o in zip(widths, wider, strict=False))
    return nn.Sequential(nn.Conv2d(3, stem, 5, stride, 2, bias=False), nn.BatchNorm2d(stem), nn.ReLU(), *blocks)


class ImageTower(nn.Module):
    """A picture -> z: two small convolutional networks, over the whole at half size and over the face at full size.

    Both last maps are kept as 4x4 places, because where something is tells what it is.
    """

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        self.size = config.image_size
        width = config.image_widths[-1]
        self.whole, self.face = _branch(config.image_widths, 2), _branch(config.image_widths, 1)
        self.squeeze_whole, self.squeeze_face = nn.Conv2d(width, 24, 1), nn.Conv2d(width, 24, 1)
        self.head = nn.Linear(2 * (24 * 16 + width), LATENT_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """z float32 [B, 512] of unit length from pictures [B, 3, H, W] in [0, 1] on white, resized to `size`."""
        size = self.size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        images = (images * 4.0 - 2.0).contiguous(memory_format=torch.channels_last)
        whole, face = self.whole(F.avg_pool2d(images, 2)), self.face(face_of(images))
        places = [F.relu(F.adaptive_avg_pool2d(squeeze(x), 4)).flatten(1)
                  for squeeze, x in ((self.squeeze_whole, whole), (self.squeeze_face, face))]
        features = torch.cat([*places, whole.mean((2, 3)), face.mean((2, 3))], 1)
        return F.normalize(self.head(features).float(), dim=-1)


class AttributeHeads(nn.Module):
    """What z says: logits for every attribute of `CHOICES`, and the numbers of `SHAPE`, by one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(LATENT_SIZE, sum(map(len, CHOICES.values())) + len(SHAPE))

    def forward(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Logits by attribute name [B, values], and the shape [B, len(SHAPE)], from z [B, 512] of unit length."""
        values = self.linear(z * LATENT_SIZE ** 0.5)
        *logits, shape = values.split([*map(len, CHOICES.values()), len(SHAPE)], dim=-1)
        return dict(zip(CHOICES, logits, strict=True)), shape

    def rows(self) -> dict[str, Tensor]:
        """The directions of z that are read: of each attribute [values, 512], less their mean, and "shape" [., 512]."""
        *logits, shape = self.linear.weight.split([*map(len, CHOICES.values()), len(SHAPE)])
        return {name: part - part.mean(0) for name, part in zip(CHOICES, logits, strict=True)} | {"shape": shape}


class Towers(nn.Module):
    """Both towers, the attribute heads and the learned temperature of the contrastive loss."""

    def __init__(self, config: TowersConfig | None = None) -> None:
        super().__init__()
        self.config = config or TowersConfig()
        self.text, self.image, self.heads = TextTower(self.config), ImageTower(self.config), AttributeHeads()
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # log(1 / 0.07), CLIP's start
        self.tokenizer = WordTokenizer(self.config.buckets, self.config.max_words, self.config.max_groups)

    def encode_text(self, texts: list[str]) -> Tensor:
        """z [B, 512] of texts, on the towers' device."""
        return self.text(self.tokenizer(texts).to(self.log_scale.device))
