"""How an avatar is edited: the way of its own noise is walked again with another z, and only the part that the words
point to is taken over.

Six pieces: `spoken` says in words what changes, `disentangled` takes out what else those words would change, `Goal`
knows when it is reached, `invert` finds the noise of planes that came without one, `changed` walks from noise to coarse
planes under two latents, and `composed` puts a part of one avatar into another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_model.avatars.captions import phrase
from rodin_model.clearing import said_cleared
from rodin_model.conditioning import Conditioner, TowerConditioner
from rodin_model.diffusion import Progress, TriplaneDiffusion, sample_noise
from rodin_model.noise import make_scheduler
from rodin_model.regions import everywhere, named_attributes, region
from rodin_model.retouch import above, points_of, retouched, said, wanted_of
from rodin_model.seeds import stage_generator
from rodin_model.triplane import Avatar

#: The words that an edit starts from, where nothing better is known.
NEUTRAL = "a person"
#: How far an edit goes, as shares of the strength that the model's index says, one after the other.
STRENGTHS = (0.75, 1.0, 1.25, 1.5)
#: Pixels at which avatars are looked at on the way.
LOOK_SIZE = 128
#: Steps in which a part of one avatar is put into another.
COMPOSING = 100

#: How little of a direction's say in other attributes is worth bending it for (`disentangled`).
RIDGE = 0.05


def spoken(conditioner: Conditioner, z: Tensor, text: str) -> tuple[list[str], str]:
    """Words for what an avatar of z [512] is before an edit and after it, in whatever `text` names.

    A conditioner that can read z back (`read_attributes`) knows what is to go, and two sentences are said of before: "a
    person" and "a person, gray hair" become "a person, blonde hair", so that nothing of the gray stays in between.
    Where it cannot, or the text names nothing known, the avatar is "a person" before.
    """
    names = sorted(named_attributes(text))
    if not names or not isinstance(conditioner, TowerConditioner):
        return [NEUTRAL], f"{NEUTRAL}, {text}"
    now = conditioner.read_attributes(z[None])[0]
    return [NEUTRAL, ", ".join([NEUTRAL, *(phrase(name, now[name]) for name in names)])], f"{NEUTRAL}, {text}"


@torch.no_grad()
def disentangled(conditioner: Conditioner, direction: Tensor, names: Iterable[str]) -> Tensor:
    """Of a direction in z [512], what changes the attributes `names` and leaves all others as z says them.

    Words come with others: short hair with men, sunglasses with black hair. One linear map W reads z, so what it reads
    of all else can be taken out of a direction v:

        argmin_d |d - v|^2 + |W d|^2 / k  =  v - W^T (W W^T + k)^-1 W v

    where W has the rows of the other attributes, less their mean within each, since only differences of logits count,
    and those of the numbers that words leave open; k is `RIDGE` times a row's mean square. Where no names are given, or
    the conditioner cannot read z, v itself.
    """
    names = set(names)
    if not names or not isinstance(conditioner, TowerConditioner):
        return direction
    rows = conditioner.towers.heads.rows()
    others = torch.cat([weight for name, weight in rows.items() if name not in names]).double()
    square = others @ others.T
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square)).to(square)
    inside = others.T @ torch.linalg.solve(square + ridge, others @ direction.double())
    return (direction - inside).to(direction.dtype)


def seen(conditioner: Conditioner, avatar: Avatar) -> Tensor:
    """What the conditioner sees in an avatar's front picture: z [1, 512]."""
    front = avatar.turntable(1, LOOK_SIZE).permute(0, 3, 1, 2).clamp(0, 1)
    return conditioner.encode_image(front).float()


@dataclasses.dataclass(frozen=True)
class Goal:
    """What an edit of the attributes `names` is to reach, in pictures that `conditioner` reads: `shown` is what it sees
    in the avatar before, `asked` what the words say; both are empty where it reads none, or the words name nothing."""

    conditioner: Conditioner
    names: frozenset[str]
    shown: dict[str, str]
    asked: dict[str, str]

    @classmethod
    def of(cls, conditioner: Conditioner, before: Avatar, names: Iterable[str], words: Tensor) -> Goal:
        """The goal of words whose z is [512]."""
        goal = cls(conditioner, frozenset(names), {}, {})
        if not goal.names or not isinstance(conditioner, TowerConditioner):
            return goal
        return cls(conditioner, goal.names, goal.read(seen(conditioner, before)[0]), goal.read(words))

    def strengths(self, usual: float) -> list[float]:
        """How far to go, one after the other until the goal is reached; where that cannot be said, the `usual`."""
        return [usual * share for share in STRENGTHS] if self.asked else [usual]

    def read(self, z: Tensor) -> dict[str, str]:
        """What z [512] says of every attribute."""
        return self.conditioner.read_attributes(z[None])[0] if isinstance(self.conditioner, TowerConditioner) else {}

    def reached(self, after: Avatar, z: Tensor) -> bool:
        """Whether the picture of an avatar made of z [512] shows what the words ask for, or anything new that z says:
        short hair may be parted."""
        if not self.asked:
            return True
        now, meant = self.read(seen(self.conditioner, after)[0]), self.read(z)
        return all(now[name] == self.asked[name] or self.shown[name] != now[name] == meant[name]
                   for name in self.names)


@torch.no_grad()
def invert(model: TriplaneDiffusion, clean: Tensor, z: Tensor, steps: int) -> Tensor:
    """Noise [B, 3, C, R, R] from which the deterministic sampler makes about the normalised planes `clean` under z.

    DDIM backwards (Song et al. 2021, section 4.3): what the network takes for noise at one step is added for the next,
    noisier one. It is exact in the limit of many steps. z [B, 512]; no guidance.
    """
    process = make_scheduler(model.noise)
    process.set_timesteps(steps)
    times = process.timesteps.flip(0).tolist()
    noisy = model.bars[times[0]].sqrt() * clean
    for index, time in enumerate(times):
        bar = model.bars[time]
        estimate = model.clean_estimate(noisy, torch.full((len(z),), time, device=z.device), z)
        noise = (noisy - bar.sqrt() * estimate) / (1 - bar).sqrt()
        if index == 0:
            noisy = bar.sqrt() * clean + (1 - bar).sqrt() * noise
        if index + 1 < len(times):
            ahead = model.bars[times[index + 1]]
            noisy = ahead.sqrt() * (clean if index == 0 else estimate) + (1 - ahead).sqrt() * noise
    return noisy


@torch.no_grad()
def changed(model: TriplaneDiffusion, noise: Tensor, z: Tensor, moved: Tensor, *, steps: int, guidance_scale: float,
            guidance_stop: float, emphasis: float, progress: Progress | None = None) -> Tensor:
    """Planes [B, 3, C, R, R] in feature units, from `noise`, of the avatar of z [B, 512] changed towards `moved`.

    At every step the prediction is the avatar's own, guided as it was made, plus `emphasis` times what `moved` changes
    in it (semantic guidance, Brack et al. 2023, without its threshold):

        guided f(x, z) + emphasis scale (f(x, moved) - f(x, z))

    where scale is the guidance of that step; emphasis 1 is guidance towards `moved`.
    """
    process = make_scheduler(model.noise)
    process.set_timesteps(steps)
    planes = noise
    for done, t in enumerate(process.timesteps, 1):
        scale = guidance_scale if int(t) >= (1 - guidance_stop) * model.noise.steps else 1.0
        told = [z, moved] if scale == 1.0 else [z, moved, torch.zeros_like(z)]
        times = t.expand(len(told) * len(z)).to(z.device)
        said = model.predict(torch.cat([planes] * len(told)), times, torch.cat(told))
        own, other, *free = said.float()[:, :, :model.channels].chunk(len(told))
        output = own + emphasis * scale * (other - own)
        if free:
            output = output + (scale - 1) * (own - free[0])
        planes = process.step(output.flatten(1, 2), t, planes.flatten(1, 2)).prev_sample.view_as(planes)
        if progress is not None:
            progress(done, steps, planes)
    return model.denormalize(planes)


@torch.no_grad()
def composed(before: Avatar, after: Avatar, names: Iterable[str], shown: Mapping[str, str] | None = None,
             asked: Mapping[str, str] | None = None, *, clear: bool = False, seed: int = 0) -> Avatar:
    """`before` with that part of `after` that an edit of the attributes `names` may change, in its own planes.

    A plane holds a whole projection, so a part of the box cannot be cut out of it. Instead planes are found that say of
    points x what one of the two says there (`retouched`):

        density and rgb wanted at x  =  lerp(before's, after's, region(x))

    beginning at planes that are after's where most points above a texel are inside the region. Points inside are drawn
    as often as those outside, or a mouth would be few points among many. Where the region is the whole box, that is
    `after`. `shown` and `asked` as in `regions.region`. With `clear`, what is taken over from the back of `after` is
    without its face (`clearing`). Both must have planes of one size, one decoder and one layout (`comparable`).
    """
    names = set(names)
    if everywhere(names):
        return after
    generator = torch.Generator().manual_seed(seed)
    points, colored = points_of([before, after], generator)
    share = region(names, points, shown, asked)
    new = said_cleared(after, points) if clear else said(after, points)
    wanted = wanted_of(said(before, points).toward(new, share), points, colored, share)
    near, old = colored > 0, before.planes.float()
    part = above(old, before.layout, points[near], share[near])
    start = dataclasses.replace(after, planes=old + part * (after.planes.to(old) - old))
    return retouched(start, wanted, COMPOSING, generator)


@torch.no_grad()
def noise_of(model: TriplaneDiffusion, avatar: Avatar, z: Tensor, steps: int) -> Tensor:
    """The base diffusion's noise [1, 3, C, R, R]: from the seed where the avatar knows it, else from its planes.

    z [512] is the avatar's. ValueError if its planes are not of the kind that the model makes.
    """
    size = model.config.resolution
    if "noise_seed" in avatar.metadata:
        return sample_noise((3, model.channels, size, size), [stage_generator(seed_of(avatar), "base")], z.device)
    planes = avatar.planes.to(z.device, torch.float32)
    if planes.shape[1] != model.channels or planes.shape[-1] < size:
        raise ValueError(f"the avatar's planes {list(planes.shape)} are not of the kind that this model makes: "
                         f"[3, {model.channels}, R, R] with R at least {size}")
    coarse = F.interpolate(planes, (size, size), mode="area")[None]
    return invert(model, model.normalize(coarse), z[None], steps)


def seed_of(avatar: Avatar) -> int:
    """The seed of an avatar's noise, 0 if it knows none; ValueError if what it holds is no integer."""
    seed = avatar.metadata.get("noise_seed", 0)
    if not isinstance(seed, int):
        raise ValueError(f"the avatar's noise_seed must be an integer; got {seed!r}")
    return seed


def comparable(a: Avatar, b: Avatar) -> bool:
    """Whether the planes of both mean the same: one size, one way to read them, one decoder (half precision agrees)."""
    if a.planes.shape != b.planes.shape or a.conventions != b.conventions:
        return False
    first, second = (list(avatar.decoder.state_dict().items()) for avatar in (a, b))
    return [n for n, _ in first] == [n for n, _ in second] and all(
        x.shape == y.shape and torch.allclose(x.float().cpu(), y.float().cpu(), atol=2e-3)
        for (_, x), (_, y) in zip(first, second, strict=True))


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From `a` (share 0) to `b` (share 1), both [D], along the great circle; lengths change linearly."""
    unit_a, unit_b = a / a.norm().clamp_min(1e-8), b / b.norm().clamp_min(1e-8)
    angle = torch.arccos((unit_a * unit_b).sum().clamp(-1, 1))
    length = torch.lerp(a.norm(), b.norm(), share)
    if float(angle.sin()) < 1e-4:
        return torch.lerp(a, b, share)
    mixed = (torch.sin((1 - share) * angle) * unit_a + torch.sin(share * angle) * unit_b) / angle.sin()
    return length * mixed


def noise_between(model: TriplaneDiffusion, stage: str, seeds: tuple[int, int], share: float) -> Tensor:
    """Noise [1, 3, C, R, R] for a stage on the great circle between that of two seeds: as normal as either."""
    shape = (3, model.channels, model.config.resolution, model.config.resolution)
    first, last = (sample_noise(shape, [stage_generator(seed, stage)], model.mean.device) for seed in seeds)
    if seeds[0] == seeds[1] or share in (0, 1):
        return last if share == 1 else first
    return slerp(first.flatten(), last.flatten(), share).view_as(first)
