"""Words and pictures to z [512]: one interface, two makers: this project's own towers, or a real CLIP.

Every conditioner gives rows of unit length, so that a network that was trained on one reads z in the same scale.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rodin_model import checkpoints
from rodin_model.avatars.attributes import CHOICES
from rodin_model.prompts import MAX_CHARACTERS
from rodin_model.towers import LATENT_SIZE, Towers, TowersConfig

#: Longer texts are refused: the towers read about a hundred words, and nothing says which. Two prompts long, because
#: `RodinPipeline.edit` puts the words of an edit behind those it starts from.
MAX_TEXT = 2 * MAX_CHARACTERS
#: What CLIP's pictures are normalised with (Radford et al. 2021, published code).
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@runtime_checkable
class Conditioner(Protocol):
    """What the rest of the model asks of a maker of z."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """z float32 [B, 512] of unit length, one row for each text."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """z float32 [B, 512] of unit length from pictures [B, 3, H, W] in [0, 1] on a white background."""
        ...


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list; TypeError for anything but a sequence of str, ValueError for empty or endless ones."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"texts must be a list of str; got {type(texts).__name__}")
    if len(texts) == 0:
        raise ValueError("texts is empty: at least one text is needed")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] must be a str; got {type(text).__name__}")
        if not any(letter.isalnum() for letter in text):
            raise ValueError(f"texts[{i}] is empty: it needs at least one word; got {text[:40]!r}")
        if len(text) > MAX_TEXT:
            raise ValueError(f"texts[{i}] has {len(text)} characters; at most {MAX_TEXT} are possible")
    return list(texts)


def check_images(images: Tensor) -> Tensor:
    """The pictures as float32; TypeError and ValueError unless they are floating point [B, 3, H, W] in [0, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        came = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor in [0, 1]; got {came}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must have the shape [B, 3, H, W]; got {tuple(images.shape)}")
    low, high = images.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
        raise ValueError(f"images must lie in [0, 1]; got values from {float(low):.4g} to {float(high):.4g}")
    return images.float().clamp(0, 1)


class TowerConditioner(nn.Module):
    """This project's towers, frozen."""

    def __init__(self, towers: Towers | None = None) -> None:
        super().__init__()
        self.towers = (towers or Towers()).eval().requires_grad_(False)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> TowerConditioner:
        """Read `config.json` and `model.safetensors`; FileNotFoundError or ValueError say what is wrong with them."""
        config = checkpoints.read_config(folder)
        if config.pop("kind", None) != "towers":
            raise ValueError(f"{Path(folder) / 'config.json'} does not describe towers (kind must be \"towers\")")
        conditioner = cls(Towers(TowersConfig.from_dict(config)))
        checkpoints.load_component(folder, conditioner.towers)
        return conditioner

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write what `from_folder` reads, in half precision."""
        checkpoints.save_component(folder, {"kind": "towers", **self.towers.config.to_dict()}, self.towers.state_dict(),
                                   dtype=torch.float16)

    def train(self, mode: bool = True) -> TowerConditioner:
        """Frozen towers stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """z float32 [B, 512] of unit length; raises as `check_texts`. Words after the first 96 are not read."""
        return self.towers.encode_text(check_texts(texts))

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """z float32 [B, 512] of unit length; raises as `check_images`. Any size; scaled to the tower's own."""
        return self.towers.image(check_images(images).to(self.towers.log_scale.device))

    @torch.no_grad()
    def read_attributes(self, z: Tensor) -> list[dict[str, str]]:
        """What z [B, 512] says: the likeliest value of every attribute, for each row."""
        logits, _ = self.towers.heads(z)
        best = {name: values.argmax(-1).tolist() for name, values in logits.items()}
        return [{name: CHOICES[name][best[name][i]] for name in CHOICES} for i in range(len(z))]


class ClipConditioner(nn.Module):
    """A real CLIP through transformers, from a local folder or a hub name: ViT-B/32 and B/16 project to 512.

    Raises ImportError without transformers, ValueError for a CLIP whose projection is not 512 wide.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        super().__init__()
        try:
            from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection
        except ImportError as error:
            raise ImportError("ClipConditioner needs transformers: pip install transformers") from error
        source = os.fspath(name)
        self.text: Any = CLIPTextModelWithProjection.from_pretrained(source, use_safetensors=True)
        self.image: Any = CLIPVisionModelWithProjection.from_pretrained(source, use_safetensors=True)
        for tower in (self.text, self.image):
            width = tower.config.projection_dim
            if width != LATENT_SIZE:
                raise ValueError(f"the CLIP {source} projects to {width} numbers; z has {LATENT_SIZE}. Take one that "
                                 f"projects to {LATENT_SIZE}, such as openai/clip-vit-base-patch32")
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ClipConditioner:
        """Frozen towers stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """z float32 [B, 512] of unit length; raises as `check_texts`. CLIP reads 77 tokens at most."""
        limit = self.text.config.max_position_embeddings
        tokens = self.tokenizer(check_texts(texts), padding=True, truncation=True, max_length=limit,
                                return_tensors="pt")
        tokens = {name: tokens[name].to(self.text.device) for name in ("input_ids", "attention_mask")}
        return F.normalize(self.text(**tokens).text_embeds.float(), dim=-1)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """z float32 [B, 512] of unit length; raises as `check_images`. Any size; scaled to the tower's own."""
        size = self.image.config.image_size
        pictures = F.interpolate(check_images(images).to(self.image.device), (size, size), mode="bicubic",
                                 antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(v, device=pictures.device)[:, None, None] for v in (_CLIP_MEAN, _CLIP_STD))
        return F.normalize(self.image(pixel_values=(pictures - mean) / std).image_embeds.float(), dim=-1)
