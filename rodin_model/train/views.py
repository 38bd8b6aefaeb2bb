"""Views of data sets, all of them in the memory of the device that learns from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from rodin_model.avatars.attributes import CHOICES, Attributes
from rodin_model.avatars.dataset import FORMAT, shard_paths
from rodin_model.fit_data import on_white


@dataclass(frozen=True)
class Views:
    """Premultiplied RGBA bytes `rgba` [N, 4, S, S], whose each is (`owner` int64 [N]), and how far from the front the
    camera stood (`yaw` float32 [N], degrees); `first` int64 [avatars]: where each avatar's frontal view is."""

    rgba: Tensor
    owner: Tensor
    yaw: Tensor
    first: Tensor
    attributes: list[Attributes]

    def __len__(self) -> int:
        return len(self.rgba)

    @classmethod
    def load(cls, folders: Sequence[str | Path], size: int, max_yaw: float = 180.0,
             device: str | torch.device = "cpu", first_only: bool = False) -> Views:
        """Read whole shards and keep the views at most `max_yaw` degrees aside; the first of an avatar always stays.

        Pictures of another size are resized on the way. FileNotFoundError or ValueError for what are no data sets.
        """
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        attributes: list[Attributes] = []
        for folder in folders:
            for path in shard_paths(folder):
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                    if metadata.get("format") != FORMAT:
                        raise ValueError(f"{path} is not a shard of avatars (format {metadata.get('format')!r})")
                    images, cameras = file.get_tensor("images"), file.get_tensor("cam2world").float()
                yaw = torch.rad2deg(torch.atan2(cameras[..., 0, 3], cameras[..., 2, 3]))
                keep = (yaw.abs() <= max_yaw) & (not first_only)
                keep[:, 0] = True
                owner = torch.arange(len(images))[:, None].expand(keep.shape) + len(attributes)
                parts.append((_planar(images[keep], size, device), owner[keep].to(device), yaw[keep].to(device)))
                attributes += [Attributes.from_dict(record) for record in json.loads(metadata["attributes"])]
        if not parts:
            raise ValueError("no folder of a data set was named")
        rgba, owner, angle = (torch.cat(column) for column in zip(*parts, strict=True))
        counts = torch.bincount(owner, minlength=len(attributes))
        return cls(rgba, owner, angle, counts.cumsum(0) - counts, attributes)

    def to(self, device: str | torch.device) -> Views:
        """The same on another device."""
        return replace(self, rgba=self.rgba.to(device), owner=self.owner.to(device), yaw=self.yaw.to(device),
                       first=self.first.to(device))

    def labels(self) -> Tensor:
        """int64 [avatars, attributes]: the number of every attribute's value, in the order of CHOICES."""
        return torch.tensor([[a.label(name) for name in CHOICES] for a in self.attributes], device=self.rgba.device)

    def shapes(self) -> Tensor:
        """float32 [avatars, numbers]: what words leave open."""
        return torch.tensor([a.shape for a in self.attributes], device=self.rgba.device)

    def on_white(self) -> Tensor:
        """uint8 [N, 3, S, S]: the views before a white background."""
        return on_white(self.rgba[:, :3], self.rgba[:, 3:])


def _planar(images: Tensor, size: int, device: str | torch.device) -> Tensor:
    """uint8 [N, H, W, 4] -> uint8 [N, 4, size, size] on `device`."""
    images = images.to(device).permute(0, 3, 1, 2)
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
        images = images.round().clamp(0, 255).to(torch.uint8)
    return images.contiguous()


def uniform_on_host(generator: torch.Generator) -> float:
    """One number in [0, 1) that the host may know at once: a device is never waited for.

    On the CPU the generator's next one; elsewhere it follows from the generator's seed, so one number for a seed.
    """
    if generator.device.type == "cpu":
        return float(torch.rand(1, generator=generator))
    return float(torch.rand(1, generator=torch.Generator().manual_seed(generator.initial_seed())))
