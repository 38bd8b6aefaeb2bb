"""How an avatar is edited: the way of its own noise is walked again with another z, and only the part that the words
point to is taken over.

Five pieces: `spoken` says in words what changes, `disentangled` takes out what else those words would change, `invert`
finds the noise of planes that came without one, `changed` walks from noise to coarse planes under two latents, and
`composed` puts a part of one avatar into another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import sample_triplane
from rodin_model.avatars.captions import phrase
from rodin_model.conditioning import Conditioner, TowerConditioner
from rodin_model.diffusion import Progress, TriplaneDiffusion, sample_noise
from rodin_model.noise import make_scheduler
from rodin_model.regions import named_attributes, region
from rodin_model.seeds import stage_generator
from rodin_model.triplane import Avatar

#: The words that an edit starts from, where nothing better is known.
NEUTRAL = "a person"
#: Solid points at which two avatars are compared for each texel of one plane, and steps of conjugate gradients.
PER_TEXEL, STEPS = 4, 20
#: The density from which on a point is solid, the weight of an empty point, and how many times more a point may count
#: inside a small region: a mouth is few points among many, and half of a new smile is none.
SOLID, EMPTY, INSIDE = 1.0, 0.5, 8.0

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
def composed(before: Avatar, after: Avatar, names: Iterable[str], *, seed: int = 0) -> Avatar:
    """`before` with that part of `after` that an edit of the attributes `names` may change, in its own planes.

    A plane holds a whole projection, so a part of the box cannot be cut out of it. Instead the features of both are
    compared at points x, most of them where either is solid, and the change d of the planes is found that moves them
    where the region says so, and nowhere else:

        min_d sum_x w(x) |F_d(x) - region(x) (F_after(x) - F_before(x))|^2

    where points of a small region count up to `INSIDE` times as much as others. F is linear in the planes, so this is
    solved by conjugate gradients, from d = 0 and stopped early, which leaves alone what no point sees; d is smoothed
    over neighbouring texels for the same reason. Where the region is the whole box, that is `after`. Both must have
    planes of one size, one decoder and one layout (`comparable`).
    """
    names = list(names)
    points, weight = _points(before, after, torch.Generator().manual_seed(seed))
    share = region(names, points)
    if bool((share == 1).all()):
        return after
    old, new = before.planes.float(), after.planes.to(before.device).float()
    more = float((1 / share.mean().clamp_min(1e-6) - 1).clamp(1, INSIDE))
    weight = weight * (1 + (more - 1) * share[:, None])
    goal = share[:, None] * _features(before, new - old, points)
    found = least_squares(lambda planes: weight * _features(before, smooth(planes), points), weight * goal,
                          torch.zeros_like(old), STEPS)
    return dataclasses.replace(after, planes=(old + smooth(found)).to(before.planes.dtype))


def least_squares(apply: Callable[[Tensor], Tensor], goal: Tensor, start: Tensor, steps: int) -> Tensor:
    """x near the minimum of |apply(x) - goal|^2 for a linear, differentiable `apply`: `steps` of CGLS from `start`.

    (Bjoerck 1996, algorithm 7.4.1.) Exact after as many steps as x has numbers; stops where nothing is left to gain.
    """
    with torch.enable_grad():
        leaf = torch.zeros_like(start).requires_grad_()
        made = apply(leaf)

    def transposed(y: Tensor) -> Tensor:
        return torch.autograd.grad(made, leaf, y, retain_graph=True)[0]

    x, rest = start, goal - apply(start)
    slope = transposed(rest)
    way, size = slope, slope.square().sum()
    for _ in range(steps):
        if float(size) <= 1e-20:
            break
        effect = apply(way)
        pace = size / effect.square().sum()
        x, rest = x + pace * way, rest - pace * effect
        slope = transposed(rest)
        before, size = size, slope.square().sum()
        way = slope + size / before * way
    return x


def smooth(planes: Tensor) -> Tensor:
    """[3, C, H, W] blurred by (1 2 1)/4 along rows and columns, borders repeated."""
    x = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    x = (x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4
    return (x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]) / 4


def _features(avatar: Avatar, planes: Tensor, points: Tensor) -> Tensor:
    return sample_triplane(planes[None], points[None], **avatar.conventions)[0]


@torch.no_grad()
def _points(before: Avatar, after: Avatar, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [N, 3] of the box and their weights [N, 1]: up to `PER_TEXEL` for each texel of a plane where one of the
    two is solid, and some empty ones, so that nothing grows there."""
    count = PER_TEXEL * before.planes.shape[-1] * before.planes.shape[-2]
    tried = (torch.rand(6 * count, 3, generator=generator) * 2 - 1).to(before.device)
    solid = torch.maximum(before.density(tried), after.density(tried)) > SOLID
    full, empty = tried[solid][:count], tried[~solid][:count // 3]
    weight = torch.cat([torch.ones(len(full), 1), torch.full((len(empty), 1), EMPTY)])
    return torch.cat([full, empty]), weight.to(tried)


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
