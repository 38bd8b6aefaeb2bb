"""`python -m rodin_model.train.reader`: train the attribute reader on true pictures of procedural avatars.

Pictures come from data sets (every view that shows the face) and from avatars rendered only for this. They are changed
on the way (shifted, blurred, given noise and blocks), because what the reader will judge are pictures that a model
made, and some are recoloured, because a small set of avatars is learned by heart by its colours. A second head, which
is thrown away, tells the numbers that words leave open: where noses end is learned from these, too. What happens in a
step follows from the seed and the step's number alone, so a killed run resumes to the same weights (unless it is bound
by the clock). Pictures, draws and changes live on the device.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from rodin_model import checkpoints
from rodin_model.avatars.attributes import CHOICES, SHAPE, Attributes, sample_attributes
from rodin_model.avatars.pictures import render_views
from rodin_model.cameras import Camera
from rodin_model.evaluation.neighbours import Neighbours
from rodin_model.reader import AttributeReader, ReaderConfig
from rodin_model.train.changes import COLORS, recolor
from rodin_model.train.pace import Pace, paced_rate
from rodin_model.train.resume import (
    add_settings,
    follow,
    load_training,
    log_stats,
    make_optimizer,
    mixed_precision,
    save_training,
    settings_of,
)
from rodin_model.train.views import Views, uniform_on_host

#: Avatars rendered for the reader use this seed, so that they are in no training set (0) and in no held-out set (1).
FRESH_SEED = 2
#: Views of each of them; the first is exactly frontal.
FRESH_VIEWS = 3
#: Views with the camera further to the side than this do not show the face and are left out.
MAX_YAW = 75.0


@dataclass(frozen=True)
class Settings:
    """How the reader is trained; the defaults suit about ten thousand pictures.

    `recolored`: the share of the pictures in other colours. `dropped`: of what the reader sees, before it is named.
    """

    steps: int = 4000
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    average: float = 0.998
    recolored: float = 0.3
    dropped: float = 0.2
    shape_weight: float = 0.5
    save_every: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Pictures:
    """Pictures and what they show: `images` uint8 [N, 3, S, S] on white, `labels` int64 [N, attributes], and `shape`
    float32 [N, numbers], where that is known."""

    images: Tensor
    labels: Tensor
    shape: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> Pictures:
        """The same on another device."""
        return Pictures(self.images.to(device), self.labels.to(device),
                        None if self.shape is None else self.shape.to(device))

    @classmethod
    def join(cls, parts: Sequence[Pictures]) -> Pictures:
        """All pictures of all parts; ValueError if there is none."""
        if not sum(len(part) for part in parts):
            raise ValueError("there are no pictures: name a data set with --data or ask for avatars with --fresh")
        shapes = [part.shape for part in parts if part.shape is not None]
        return cls(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]),
                   torch.cat(shapes) if len(shapes) == len(parts) else None)


def dataset_pictures(folder: str | Path, size: int, first_only: bool = False,
                     device: str | torch.device = "cpu") -> Pictures:
    """The pictures of a data set that show the face, scaled to `size` pixels; with `first_only`, the frontal ones."""
    views = Views.load([folder], size, MAX_YAW, device, first_only)
    return Pictures(views.on_white(), views.labels()[views.owner], views.shapes()[views.owner])


def fresh_pictures(cache: str | Path, count: int, size: int, seed: int = FRESH_SEED, shard: int = 32,
                   device: str | torch.device = "cpu") -> Pictures:
    """Render `count` avatars of their own, `FRESH_VIEWS` views each, and keep them in the folder `cache`.

    The folder holds `shard` avatars a file and is continued where a killed run stopped.
    """
    parts = []
    for first in tqdm(range(0, count, shard), desc="rendering", disable=None):
        path = Path(cache) / f"pictures-{size}-{seed}-{first:06d}-{min(shard, count - first)}.safetensors"
        if not path.is_file():
            drawn = [_fresh_avatar(seed * 1_000_000 + i, size, device) for i in range(first, min(first + shard, count))]
            images, labels, shape = (torch.cat(column) for column in zip(*drawn, strict=True))
            checkpoints.save_tensors(path, {"images": images, "labels": labels, "shape": shape})
        tensors, _ = checkpoints.load_tensors(path)
        parts.append(Pictures(tensors["images"], tensors["labels"], tensors.get("shape")))
    return Pictures.join(parts)


def _fresh_avatar(seed: int, size: int, device: str | torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """One avatar from the front and from near it: uint8 [V, 3, size, size], and for each its labels and its shape."""
    attributes = sample_attributes(seed)
    rng = np.random.default_rng([0x4EAD, seed])
    angles = [(0.0, 5.0), *((float(rng.normal(0, 25)), float(rng.normal(5, 8))) for _ in range(FRESH_VIEWS - 1))]
    views = render_views(attributes, [Camera.orbit(yaw, pitch, size) for yaw, pitch in angles],
                         device=device)
    images = torch.stack([view.rgb for view in views]).permute(0, 3, 1, 2)
    shape = torch.tensor([attributes.shape]).expand(len(views), -1)
    return _to_bytes(images, size).cpu(), _labels(attributes).expand(len(views), -1), shape


def _labels(attributes: Attributes) -> Tensor:
    """[attributes]: the number of every attribute's value, in the order of CHOICES."""
    return torch.tensor([attributes.label(name) for name in CHOICES])


def _to_bytes(images: Tensor, size: int) -> Tensor:
    """[N, 3, H, W] in [0, 1] to uint8 [N, 3, size, size]."""
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def augment(images: Tensor, generator: torch.Generator, blurred: float = 0.25) -> Tensor:
    """Pictures [B, 3, S, S] in [0, 1] as a model might have drawn them: the same avatar, a little off.

    Mirrored, turned, shifted, scaled; the share `blurred` by a detour over fewer pixels, but not so few that noses and
    lips are gone; brightness and colour
    nudged (less than the step from one skin tone to the next); smooth and fine noise; blocks as of a compressed file.
    """
    count, _, size, _ = images.shape

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device).to(images) * (high - low) + low

    angle, scale = uniform(count, low=-0.07, high=0.07), uniform(count, low=0.9, high=1.1)
    mirror = torch.where(uniform(count) < 0.5, -1.0, 1.0).to(images)
    turn = torch.stack([torch.stack([angle.cos() * mirror, -angle.sin()], 1),
                        torch.stack([angle.sin() * mirror, angle.cos()], 1)], 1) * scale[:, None, None]
    matrix = torch.cat([turn, uniform(count, 2, 1, low=-0.1, high=0.1)], 2)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    images = 1 - F.grid_sample(1 - images, grid, align_corners=False)

    smaller = max(8, int(size * (0.5 + 0.45 * uniform_on_host(generator))))
    detour = F.interpolate(F.interpolate(images, (smaller, smaller), mode="bilinear", antialias=True),
                           (size, size), mode="bicubic")
    images = torch.where((uniform(count) < blurred)[:, None, None, None], detour, images)

    blocks = F.interpolate(F.avg_pool2d(images, 4), (size, size), mode="nearest") if size % 4 == 0 else images
    images = images + (blocks - images) * (uniform(count, 1, 1, 1, low=-2.0, high=0.6).clamp_min(0))
    images = images * uniform(count, 3, 1, 1, low=0.95, high=1.05) + uniform(count, 1, 1, 1, low=-0.03, high=0.03)
    smooth = torch.randn((count, 3, 8, 8), generator=generator, device=generator.device).to(images)
    images = images + F.interpolate(smooth, (size, size), mode="bicubic") * uniform(count, 1, 1, 1, high=0.2) ** 2
    fine = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
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
    device = reader.head.weight.device
    for images, labels in zip(pictures.images.split(batch), pictures.labels.split(batch), strict=True):
        logits = reader(images.to(device).float() / 255)
        best = torch.stack([logits[name].argmax(1) for name in CHOICES], 1)
        right += (best == labels.to(device)).float().sum(0).cpu()
    return dict(zip(CHOICES, (right / len(pictures)).tolist(), strict=True))


def train(pictures: Pictures, output: str | Path, settings: Settings, config: ReaderConfig | None = None,
          device: str | torch.device = "cpu", pace: Pace | None = None) -> AttributeReader:
    """Train a reader, resuming from `output`/state if a run was cut off, and save it in `output`.

    It ends after `settings.steps` steps, or with `pace` if that is sooner. The result holds the running average of
    the weights. Raises ValueError if the state belongs to other settings.
    """
    torch.manual_seed(settings.seed)
    reader = AttributeReader(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(reader)
    shape = nn.Linear(reader.head.in_features, len(SHAPE)).to(device)
    modules: dict[str, nn.Module] = {"reader": reader, "average": average, "shape": shape}
    optimizer = make_optimizer(nn.ModuleList([reader, shape]), settings.weight_decay)
    state = Path(output) / "state"
    step, pictures = load_training(state, modules, optimizer, vars(settings)), pictures.to(device)
    pace = pace or Pace(settings.steps)
    with tqdm(initial=step, total=settings.steps, desc="reader", disable=None) as progress:
        while not pace.done(step):
            rate = paced_rate(pace, step, settings.learning_rate, min(1000, max(1, settings.steps // 20)))
            value = _step(reader, optimizer, pictures, settings, step, device, rate, shape)
            follow(average, reader, min(settings.average, (step + 1) / (step + 10)))
            step += 1
            progress.update()
            if step % 50 == 0:
                progress.set_postfix(loss=f"{float(value):.3f}")
                log_stats(Path(output) / "stats.jsonl", step, {"loss": float(value), "rate": rate})
            if step % settings.save_every == 0:
                save_training(state, step, modules, optimizer, vars(settings))
    average.eval().save(output)
    return average


def _step(reader: AttributeReader, optimizer: torch.optim.Optimizer, pictures: Pictures, settings: Settings, step: int,
          device: str | torch.device, rate: float, shape: nn.Linear) -> Tensor:
    """One step of training at the learning rate `rate`; returns the loss, on the device: nothing here waits for it."""
    generator = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
    chosen = torch.randint(len(pictures), (settings.batch,), generator=generator, device=device)
    images, recolored = recolor(pictures.images[chosen].float() / 255, generator, settings.recolored)
    images = augment(images, generator)
    for group in optimizer.param_groups:
        group["lr"] = rate
    reader.train()
    with mixed_precision(device):
        seen = reader.features(images)
        kept = torch.rand(seen.shape, generator=generator, device=device) >= settings.dropped
        seen = seen * kept / (1 - settings.dropped)
        logits, numbers = reader.named(seen), shape(seen).float()
    value = loss(logits, pictures.labels[chosen], recolored, settings.label_smoothing)
    if pictures.shape is not None:
        value = value + settings.shape_weight * F.smooth_l1_loss(numbers, pictures.shape[chosen])
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
    optimizer.step()
    return value.detach()


@torch.no_grad()
def remember(reader: AttributeReader, folder: str | Path, output: str | Path) -> None:
    """Write what the reader sees of the avatars of the training set `folder` into `output`, for the evaluation.

    ValueError if it is another data set: its avatars must be those that seed 0 draws.
    """
    views = Views.load([folder], reader.config.size, device=reader.head.weight.device, first_only=True)
    if any(who != sample_attributes(i) for i, who in enumerate(views.attributes)):
        raise ValueError(f"{folder} is not the training set: its avatars are not those of seed 0")
    found = Neighbours.of(reader, range(len(views)), views.on_white().float() / 255)
    Neighbours(found.features.cpu(), found.seeds).save(output)


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
    parser.add_argument("--face-stride", type=int, choices=(1, 2), default=1, help="1 keeps every pixel of the face")
    parser.add_argument("--minutes", type=float, help="end after so much time; the learning rate follows the clock")
    add_settings(parser, Settings)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    settings = settings_of(options, Settings)
    # what is read before the first step counts, too
    pace = Pace(settings.steps, options.minutes)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    parts = [dataset_pictures(folder, options.size, device=device) for folder in options.data]
    if options.fresh:
        parts.append(fresh_pictures(options.output / "pictures", options.fresh, options.size, device=device).to(device))
    pictures = Pictures.join(parts)
    print(f"{len(pictures)} pictures")
    config = ReaderConfig(size=options.size, face_stride=options.face_stride)
    reader = train(pictures, options.output, settings, config, device, pace)
    if options.remember is not None:
        remember(reader, options.remember, options.output)
    if options.held_out is not None:
        front = accuracy(reader, dataset_pictures(options.held_out, options.size, True, device))
        around = accuracy(reader, dataset_pictures(options.held_out, options.size, device=device))
        checkpoints.write_json(options.output / "accuracy.json", {"front": front, "around": around})
        print(f"{'held-out accuracy':18s} front  around")
        for name in CHOICES:
            print(f"{name:18s} {front[name]:5.1%}  {around[name]:5.1%}")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
