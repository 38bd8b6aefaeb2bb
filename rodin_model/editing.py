"""How an avatar is edited: the way of its own noise is walked again with another z, and only the part that the words
point to is taken over.

Three pieces: `invert` finds the noise of planes that came without one, `changed` walks from noise to coarse planes
under two latents, and `composed` puts a part of one avatar into another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import sample_triplane
from rodin_model.diffusion import Progress, TriplaneDiffusion, sample_noise
from rodin_model.noise import make_scheduler
from rodin_model.regions import region
from rodin_model.seeds import stage_generator
from rodin_model.triplane import Avatar

#: Points at which two avatars are compared, of how many a step of the composition takes care, and how many steps.
POINTS, BATCH, STEPS = 48_000, 12_000, 60
#: Step size in standard deviations of a feature, and the density from which on a point belongs to a head.
RATE, SOLID = 0.1, 1.0


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


def composed(before: Avatar, after: Avatar, names: Iterable[str], *, seed: int = 0) -> Avatar:
    """`before` with that part of `after` that an edit of the attributes `names` may change, in its own planes.

    A plane holds a whole projection, so a part of the box cannot be cut out of it. Instead the features of both are
    blended at points, g = before + region (after - before), and planes that give g there are found by Adam from those
    of `before`: a linear least-squares problem. Points fill the box, half of them near what is solid in either. Where
    the region is the whole box, that is `after`. Both must have planes of one size, one decoder and one layout.
    """
    names = list(names)
    points = _points(before, after, torch.Generator().manual_seed(seed))
    share = region(names, points)
    if bool((share == 1).all()):
        return after
    old, new = (_features(avatar, avatar.planes.float(), points) for avatar in (before, after))
    goal = old + share[:, None] * (new - old)
    spread = (new - old).std(0).clamp_min(1e-4)
    planes = before.planes.float().clone().requires_grad_()
    optimizer = torch.optim.Adam([planes], RATE * float(before.planes.float().std()), betas=(0.8, 0.98))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.enable_grad():
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * float(before.planes.float().std()) * (1 - step / STEPS)
            some = torch.randint(len(points), (BATCH,), generator=generator).to(points.device)
            loss = F.mse_loss(_features(before, planes, points[some]) / spread, goal[some] / spread)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return dataclasses.replace(after, planes=planes.detach().to(before.planes.dtype))


def _features(avatar: Avatar, planes: Tensor, points: Tensor) -> Tensor:
    return sample_triplane(planes[None], points[None], **avatar.conventions)[0]


@torch.no_grad()
def _points(before: Avatar, after: Avatar, generator: torch.Generator) -> Tensor:
    """`POINTS` points of the box, at least half of them where one of the two is solid, if that many are found."""
    tried = (torch.rand(4 * POINTS, 3, generator=generator) * 2 - 1).to(before.device)
    solid = torch.maximum(before.density(tried), after.density(tried)) > SOLID
    chosen = tried[solid][:POINTS]
    return torch.cat([chosen, tried[~solid][:POINTS - len(chosen) // 2]])


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
