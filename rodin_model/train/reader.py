"""`python -m rodin_model.train.reader`: train the attribute reader on true pictures of procedural avatars.

Pictures come from data sets (every view that shows the face) and from avatars rendered only for this. They are changed
on the way (shifted, blurred, given noise and blocks), because what the reader will judge are pictures that a model
made, and half of them recoloured, because a small set of avatars is learned by heart by its colours. What happens in a
step follows from the seed and the step's number alone, so a killed run resumes to the same weights.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from rodin_model import checkpoints
from rodin_model.avatars.attributes import CHOICES, Attributes, sample_attributes
from rodin_model.avatars.dataset import AvatarDataset
from rodin_model.avatars.pictures import render_views
from rodin_model.cameras import Camera
from rodin_model.evaluation.neighbours import Neighbours
from rodin_model.reader import AttributeReader, ReaderConfig
from rodin_model.train.resume import learning_rate, load_training, make_optimizer, mixed_precision, save_training
from rodin_model.train.towers import COLORS, recolor

#: Avatars rendered for the reader use this seed, so that they are in no training set (0) and in no held-out set (1).
FRESH_SEED = 2
#: Views of each of them; the first is exactly frontal.
FRESH_VIEWS = 3
#: Views with the camera further to the side than this do not show the face and are left out.
MAX_YAW = 75.0


@dataclass(frozen=True)
class Settings:
    """How the reader is trained; the defaults suit about ten thousand pictures."""

    steps: int = 4000
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    average: float = 0.998
    save_every: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Pictures:
    """Pictures and what they show: `images` uint8 [N, 3, S, S] on white, `labels` int64 [N, attributes]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def join(cls, parts: Sequence[Pictures]) -> Pictures:
        """All pictures of all parts; ValueError if there is none."""
        if not sum(len(part) for part in parts):
            raise ValueError("there are no pictures: name a data set with --data or ask for avatars with --fresh")
        return cls(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def dataset_pictures(folder: str | Path, size: int, first_only: bool = False) -> Pictures:
    """The pictures of a data set that show the face, scaled to `size` pixels; with `first_only`, the frontal ones."""
    data = AvatarDataset(folder)
    images, labels = [], []
    for i in range(len(data)):
        cameras = [] if first_only else data.cameras(i)
        chosen = [0] if first_only else [view for view, camera in enumerate(cameras) if abs(camera.yaw) <= MAX_YAW]
        images.append(_to_bytes(data.images(i)[chosen].permute(0, 3, 1, 2), size))
        labels.append(_labels(data.attributes(i)).expand(len(chosen), -1))
    return Pictures(torch.cat(images), torch.cat(labels))


def fresh_pictures(cache: str | Path, count: int, size: int, seed: int = FRESH_SEED, shard: int = 32) -> Pictures:
    """Render `count` avatars of their own, `FRESH_VIEWS` views each, and keep them in the folder `cache`.

    The folder holds `shard` avatars a file and is continued where a killed run stopped.
    """
    parts = []
    for first in tqdm(range(0, count, shard), desc="rendering", disable=None):
        path = Path(cache) / f"pictures-{size}-{seed}-{first:06d}-{min(shard, count - first)}.safetensors"
        if not path.is_file():
            drawn = [_fresh_avatar(seed * 1_000_000 + i, size) for i in range(first, min(first + shard, count))]
            images, labels = (torch.cat(column) for column in zip(*drawn, strict=True))
            checkpoints.save_tensors(path, {"images": images, "labels": labels})
        tensors, _ = checkpoints.load_tensors(path)
        parts.append(Pictures(tensors["images"], tensors["labels"]))
    return Pictures.join(parts)


def _fresh_avatar(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """One avatar from the front and from near it: uint8 [V, 3, size, size], and its labels [V, attributes]."""
    attributes = sample_attributes(seed)
    rng = np.random.default_rng([0x4EAD, seed])
    angles = [(0.0, 5.0), *((float(rng.normal(0, 25)), float(rng.normal(5, 8))) for _ in range(FRESH_VIEWS - 1))]
    views = render_views(attributes, [Camera.orbit(yaw, pitch, size) for yaw, pitch in angles])
    images = torch.stack([view.rgb for view in views]).permute(0, 3, 1, 2)
    return _to_bytes(images, size), _labels(attributes).expand(len(views), -1)


def _labels(attributes: Attributes) -> Tensor:
    """[attributes]: the number of every attribute's value, in the order of CHOICES."""
    return torch.tensor([attributes.label(name) for name in CHOICES])


def _to_bytes(images: Tensor, size: int) -> Tensor:
    """[N, 3, H, W] in [0, 1] to uint8 [N, 3, size, size]."""
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, S, S] in [0, 1] as a model might have drawn them: the same avatar, a little off.

    Mirrored, turned, shifted, scaled; half of a batch blurred by a detour over fewer pixels; brightness and colour
    nudged (less than the step from one skin tone to the next); smooth and fine noise; blocks as of a compressed file.
    """
    count, _, size, _ = images.shape

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=generator).to(images) * (high - low) + low

    angle, scale = uniform(count, low=-0.07, high=0.07), uniform(count, low=0.9, high=1.1)
    mirror = torch.where(uniform(count) < 0.5, -1.0, 1.0).to(images)
    turn = torch.stack([torch.stack([angle.cos() * mirror, -angle.sin()], 1),
                        torch.stack([angle.sin() * mirror, angle.cos()], 1)], 1) * scale[:, None, None]
    matrix = torch.cat([turn, uniform(count, 2, 1, low=-0.1, high=0.1)], 2)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    images = 1 - F.grid_sample(1 - images, grid, align_corners=False)

    smaller = max(8, int(size * float(uniform(1, low=0.3, high=0.9))))
    blurred = F.interpolate(F.interpolate(images, (smaller, smaller), mode="bilinear", antialias=True),
                            (size, size), mode="bicubic")
    images = torch.where((uniform(count) < 0.5)[:, None, None, None], blurred, images)

    blocks = F.interpolate(F.avg_pool2d(images, 4), (size, size), mode="nearest") if size % 4 == 0 else images
    images = images + (blocks - images) * (uniform(count, 1, 1, 1, low=-1.0, high=0.6).clamp_min(0))
    images = images * uniform(count, 3, 1, 1, low=0.95, high=1.05) + uniform(count, 1, 1, 1, low=-0.03, high=0.03)
    smooth = torch.randn((count, 3, 8, 8), generator=generator).to(images)
    images = images + F.interpolate(smooth, (size, size), mode="bicubic") * uniform(count, 1, 1, 1, high=0.2) ** 2
    fine = torch.randn(images.shape, generator=generator).to(images)
    return (images + fine * uniform(count, 1, 1, 1, high=0.17) ** 2).clamp(0, 1)


def loss(logits: dict[str, Tensor], labels: Tensor, recolored: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, averaged over the attributes; `labels` [B, attributes] in the order of CHOICES.

    Attributes that are colours are not asked of the pictures that are `recolored`, bool [B].
    """
    rows = [F.cross_entropy(logits[name], labels[:, i], label_smoothing=smoothing, reduction="none")
            for i, name in enumerate(CHOICES)]
    return torch.stack([row * ~recolored if name in COLORS else row for name, row in zip(CHOICES, rows, strict=True)]
                       ).mean()


@torch.no_grad()
def accuracy(reader: AttributeReader, pictures: Pictures, batch: int = 64) -> dict[str, float]:
    """The share of pictures whose value the reader names rightly, for every attribute."""
    right = torch.zeros(len(CHOICES))
    for images, labels in zip(pictures.images.split(batch), pictures.labels.split(batch), strict=True):
        logits = reader(images.float() / 255)
        best = torch.stack([logits[name].argmax(1) for name in CHOICES], 1)
        right += (best == labels).float().sum(0)
    return dict(zip(CHOICES, (right / len(pictures)).tolist(), strict=True))


def train(pictures: Pictures, output: str | Path, settings: Settings, config: ReaderConfig | None = None,
          device: str | torch.device = "cpu") -> AttributeReader:
    """Train a reader, resuming from `output`/state if a run was cut off, and save it in `output`.

    The result holds the running average of the weights. Raises ValueError if the state belongs to other settings.
    """
    torch.manual_seed(settings.seed)
    reader = AttributeReader(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    modules = {"reader": reader, "average": copy.deepcopy(reader)}
    optimizer = make_optimizer(reader, settings.weight_decay)
    state = Path(output) / "state"
    start = load_training(state, modules, optimizer, vars(settings))
    progress = tqdm(range(start, settings.steps), initial=start, total=settings.steps, desc="reader", disable=None)
    for step in progress:
        value = _step(reader, optimizer, pictures, settings, step, device)
        _follow(modules["average"], reader, min(settings.average, (step + 1) / (step + 10)))
        if (step + 1) % 50 == 0:
            progress.set_postfix(loss=f"{value:.3f}")
        if (step + 1) % settings.save_every == 0:
            save_training(state, step + 1, modules, optimizer, vars(settings))
    average = modules["average"].eval()
    average.save(output)
    return average


@torch.no_grad()
def _follow(average: AttributeReader, reader: AttributeReader, keep: float) -> None:
    """average <- keep average + (1 - keep) reader, weights and running statistics alike."""
    for old, new in zip(average.state_dict().values(), reader.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - keep)


def _step(reader: AttributeReader, optimizer: torch.optim.Optimizer, pictures: Pictures, settings: Settings, step: int,
          device: str | torch.device) -> float:
    """One step of training; returns the loss."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    chosen = torch.randint(len(pictures), (settings.batch,), generator=generator)
    images, recolored = recolor(pictures.images[chosen].float() / 255, generator)
    images = augment(images, generator).to(device)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings.steps, settings.learning_rate, max(1, settings.steps // 20))
    reader.train()
    with mixed_precision(device):
        logits = reader(images)
    value = loss(logits, pictures.labels[chosen].to(device), recolored.to(device), settings.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
    optimizer.step()
    return float(value.detach())


def remember(reader: AttributeReader, folder: str | Path, output: str | Path) -> None:
    """Write what the reader sees of the avatars of the training set `folder` into `output`, for the evaluation.

    ValueError if it is another data set: its avatars must be those that seed 0 draws.
    """
    data = AvatarDataset(folder)
    if any(data.attributes(i) != sample_attributes(i) for i in range(len(data))):
        raise ValueError(f"{folder} is not the training set: its avatars are not those of seed 0")
    fronts = dataset_pictures(folder, reader.config.size, first_only=True).images.float() / 255
    Neighbours.of(reader, range(len(data)), fronts).save(output)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, gather pictures, train, print what the reader gets right."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.reader",
                                     description="Train the attribute reader on true pictures.")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="data sets to learn from")
    parser.add_argument("--fresh", type=int, default=0, help="avatars to render only for this")
    parser.add_argument("--held-out", type=Path, help="a data set to measure the accuracy on")
    parser.add_argument("--remember", type=Path, help="the training set, to find nearest neighbours in")
    parser.add_argument("--output", type=Path, required=True, help="folder of the reader and of its training state")
    parser.add_argument("--size", type=int, default=ReaderConfig.size, help="pixels of its pictures")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    parts = [dataset_pictures(folder, options.size) for folder in options.data]
    if options.fresh:
        parts.append(fresh_pictures(options.output / "pictures", options.fresh, options.size))
    pictures = Pictures.join(parts)
    print(f"{len(pictures)} pictures")
    settings = Settings(steps=options.steps, batch=options.batch, seed=options.seed)
    reader = train(pictures, options.output, settings, ReaderConfig(size=options.size), options.device).cpu()
    if options.remember is not None:
        remember(reader, options.remember, options.output)
    if options.held_out is not None:
        front = accuracy(reader, dataset_pictures(options.held_out, options.size, first_only=True))
        around = accuracy(reader, dataset_pictures(options.held_out, options.size))
        checkpoints.write_json(options.output / "accuracy.json", {"front": front, "around": around})
        print(f"{'held-out accuracy':18s} front  around")
        for name in CHOICES:
            print(f"{name:18s} {front[name]:5.1%}  {around[name]:5.1%}")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
