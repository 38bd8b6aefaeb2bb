"""Tri-plane fitting: from labelled points and pictures to planes that one shared decoder reads.

Three stages, as in Rodin (section 3.1) with points added. *Joint*: the decoder, a mean plane set and the planes of some
avatars are learned together, each avatar at two sizes and at random sizes between them, so that one decoder reads them
all. *Coarse* and *fine*: the decoder is frozen and every avatar's planes are fitted alone, starting from the mean and
from the enlarged coarse planes, so that all avatars stay in one domain.

Every random draw follows from (seed, avatar, step) alone: the result of an avatar does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels import TinyDecoder, render_triplane, sample_triplane

from .cameras import box_near_far
from .config import PlanesConfig
from .decoder import copy_decoder, new_decoder
from .diffusion import BaseDiffusion
from .fit_data import Cloud, Rays, Views, draw_points, draw_rays, generator, ray_depths

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class LossConfig:
    """What a good avatar is.

    A point's opacity over `step_length` should be `opacity` inside, falling linearly to 0 over +- `shell` around the
    surface; outside it should be 0 over the whole empty ball around the point, so that no haze is left. Colours count
    within about `band` of the surface. `tv` and `l2` weigh the roughness of the planes and their distance from where
    they start; values stay within +- `bound`.
    """

    step_length: float = 0.02
    opacity: float = 0.98
    shell: float = 0.012
    band: float = 0.03
    color: float = 10.0
    picture: float = 40.0
    tv: float = 0.5
    l2: float = 0.01
    bound: float = 1.0


@dataclass(frozen=True)
class StageConfig:
    """How long a stage runs: `steps` of `points` (and, from step `first_ray` on, `rays`) an avatar, Adam at `rate`.

    `samples` lie on each ray; `far_share` of the points are far from the surface; the rate falls to `last_rate` of it.
    """

    steps: int
    points: int
    rate: float
    rays: int = 0
    first_ray: int = 0
    samples: int = 24
    far_share: float = 0.25
    last_rate: float = 0.05


@dataclass(frozen=True)
class FitConfig:
    """Everything that fixes a fit: sizes, losses, and the three stages."""

    planes: PlanesConfig = field(default_factory=PlanesConfig)
    decoder_hidden: tuple[int, ...] = (64, 64)
    density: str = "trunc_exp"
    losses: LossConfig = field(default_factory=LossConfig)
    joint: StageConfig = StageConfig(steps=2400, points=12288, rate=0.02)
    coarse: StageConfig = StageConfig(steps=100, points=4096, rate=0.04, rays=512, first_ray=70, samples=16,
                                      far_share=0.5)
    fine: StageConfig = StageConfig(steps=100, points=8192, rate=0.014, rays=768, first_ray=45, samples=20)
    joint_avatars: int = 4
    joint_decoder_rate: float = 2e-3
    joint_noise: float = 0.02

    @property
    def decoder(self) -> dict[str, Any]:
        """The arguments of the `TinyDecoder` that reads these planes."""
        features = self.planes.channels * (3 if self.planes.reduce == "concat" else 1)
        return {"in_features": features, "hidden": list(self.decoder_hidden), "density": self.density}


#: How planes are fitted within the principal components of a base diffusion.
WITHIN = StageConfig(steps=70, points=2048, rate=0.12, rays=256, first_ray=35, samples=16, far_share=0.3)


def point_loss(sigma: Tensor, rgb: Tensor, cloud: Cloud, losses: LossConfig) -> Tensor:
    """How badly density and colour [A, P(, 3)] explain the points: [A].

    Cross-entropy between 1 - exp(-sigma l) and the opacity that the signed distance d asks for, with the length
    l = step_length + 2 max(d, 0); plus the squared colour error weighted by exp(-(d / band)^2). Differentiable in
    sigma and rgb.
    """
    wanted = (0.5 - cloud.distance / (2 * losses.shell)).clamp(0, 1) * losses.opacity
    optical = sigma * (losses.step_length + 2 * cloud.distance.clamp_min(0))
    filled = torch.log(-torch.expm1(-optical) + 1e-6)
    occupancy = (optical * (1 - wanted) - filled * wanted).mean(-1)
    weight = torch.exp(-(cloud.distance / losses.band).square())
    error = (rgb - cloud.color).square().mean(-1)
    return occupancy + losses.color * (weight * error).sum(-1) / weight.sum(-1).clamp_min(1)


class _Roughness(torch.autograd.Function):
    """Sum of squared differences of neighbouring texels, [A]: one pass each way instead of autograd's many."""

    @staticmethod
    def forward(ctx: Any, planes: Tensor) -> Tensor:
        ctx.save_for_backward(planes)
        down, right = planes.diff(dim=-2), planes.diff(dim=-1)
        if planes.device.type == "cuda":  # there launches cost more than what they read
            return down.square().flatten(1).sum(1) + right.square().flatten(1).sum(1)
        return torch.stack([torch.linalg.vector_norm(d).square() + torch.linalg.vector_norm(r).square()
                            for d, r in zip(down, right, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        planes, = ctx.saved_tensors
        out = torch.zeros_like(planes)
        for dim in (-2, -1):
            change, size = planes.diff(dim=dim), planes.shape[dim]
            out.narrow(dim, 1, size - 1).add_(change)
            out.narrow(dim, 0, size - 1).sub_(change)
        return out.mul_(2 * grad.view(-1, 1, 1, 1, 1))


def plane_loss(planes: Tensor, start: Tensor, losses: LossConfig) -> Tensor:
    """Roughness (mean squared slope) and mean squared distance from `start`, weighted: [A].

    planes [A, 3, C, H, W]. The slope is the difference of neighbours times W / 32, so that `tv` means the same at every
    resolution. Differentiable in both.
    """
    texels = planes[0].numel()
    rough = _Roughness.apply(planes) * ((planes.shape[-1] / 32) ** 2 / texels)
    return losses.tv * rough + losses.l2 * (planes - start).square().flatten(1).mean(1)


def picture_loss(planes: Tensor, decoder: TinyDecoder, rays: Rays, config: FitConfig) -> Tensor:
    """Mean squared error of colour on white and of opacity along `rays`: [A]. Differentiable in planes and decoder."""
    near, far = box_near_far(rays.origins, rays.directions)
    seen = render_triplane(planes, rays.origins, rays.directions, decoder, near=near, far=far,
                           num_samples=rays.t.shape[-1], t=rays.t, background=planes.new_ones(3),
                           outputs=("rgb", "opacity"), **conventions(config.planes))
    assert seen.rgb is not None
    assert seen.opacity is not None
    color = (seen.rgb - rays.rgb).square().mean((-2, -1))
    return color + (seen.opacity - rays.alpha).square().mean(-1)


def conventions(planes: PlanesConfig) -> dict[str, Any]:
    """How planes of this configuration are sampled: keyword arguments of `sample_triplane` and `render_triplane`."""
    return {"layout": tuple(planes.layout), "reduce": planes.reduce, "align_corners": planes.align_corners,
            "padding_mode": planes.padding_mode}


def decode_points(planes: Tensor, points: Tensor, decoder: TinyDecoder, config: FitConfig,
                  noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Density [A, P] and colour [A, P, 3] of `planes` [A, 3, C, H, W] at `points` [A, P, 3].

    `noise` [A, P, C] is added to the features.
    """
    features = sample_triplane(planes, points, **conventions(config.planes))
    return decoder(features if noise is None else features + noise)


def rescale(planes: Tensor, size: int) -> Tensor:
    """Planes [A, 3, C, H, H] brought to [A, 3, C, size, size]; differentiable.

    Means of blocks where `size` divides H, else bicubic with antialiasing. Stays channels-last.
    """
    now = planes.shape[-1]
    if now == size:
        return planes
    if now % size == 0:
        k = now // size
        blocks = planes.permute(0, 1, 3, 4, 2).unflatten(3, (size, k)).mean(4).unflatten(2, (size, k)).mean(3)
        return blocks.permute(0, 1, 4, 2, 3)
    flat = planes.flatten(0, 1)
    return F.interpolate(flat, (size, size), mode="bicubic", antialias=True).unflatten(0, planes.shape[:2])


def learning_rate(step: int, stage: StageConfig) -> float:
    """Cosine from `rate` down to `last_rate` times it."""
    fade = 0.5 + 0.5 * math.cos(math.pi * step / max(stage.steps, 1))
    return stage.rate * (stage.last_rate + (1 - stage.last_rate) * fade)


def fit_planes(start: Tensor, decoder: TinyDecoder, cloud: Cloud, stage: StageConfig, config: FitConfig,
               ids: Sequence[int], *, seed: int = 0, views: Views | None = None,
               progress: Progress | None = None) -> Tensor:
    """Fit the planes of A avatars under a frozen decoder: [A, 3, C, R, R] like `start`, each in [-bound, bound].

    `ids` are the avatars' numbers, which with `seed` fix all randomness. The picture loss joins at `stage.first_ray`
    if there are `views`.
    """
    start = _channels_last(start)
    planes = start.clone(memory_format=torch.preserve_format).requires_grad_()
    adam = torch.optim.Adam([planes], lr=stage.rate, betas=(0.9, 0.99), fused=True)
    error = _error(decoder, cloud, stage, config, ids, seed, views)
    for step in range(stage.steps):
        adam.param_groups[0]["lr"] = learning_rate(step, stage)
        adam.zero_grad(set_to_none=True)
        loss = error(planes, step) + plane_loss(planes, start, config.losses)
        loss.sum().backward()
        adam.step()
        with torch.no_grad():
            planes.clamp_(-config.losses.bound, config.losses.bound)
        if progress is not None:
            progress(step + 1, stage.steps, float(loss.detach().mean()))
    return planes.detach()


def fit_within(base: BaseDiffusion, decoder: TinyDecoder, cloud: Cloud, config: FitConfig, ids: Sequence[int], *,
               stage: StageConfig = WITHIN, seed: int = 0, views: Views | None = None) -> Tensor:
    """Coarse planes [A, 3, C, r, r] of A avatars among those that the principal components of `base` can say.

    A hundred numbers for each avatar instead of all texels, x = mean + std sum_k sqrt(l_k) w_k e_k, so that the planes
    are of the kind that `base` was trained on; beside the losses of `fit_planes`, |w|^2 counts a little, as for w that
    are normally distributed. Otherwise as that. ValueError for a base without components.
    """
    if base.principal is None:
        raise ValueError("the base diffusion has no principal components that planes could be fitted within")
    span, spread = base.principal.span(), base.principal.variance.sqrt()
    shape = (len(cloud.points), *base.mean.shape)
    numbers = torch.zeros(shape[0], len(spread), device=spread.device, requires_grad=True)
    adam = torch.optim.Adam([numbers], lr=stage.rate, betas=(0.9, 0.98))
    error = _error(decoder, cloud, stage, config, ids, seed, views, face_share=0.35)
    for step in range(stage.steps):
        adam.param_groups[0]["lr"] = learning_rate(step, stage)
        adam.zero_grad(set_to_none=True)
        planes = base.denormalize((numbers * spread @ span.T).view(shape))
        (error(planes, step) + 3e-5 * numbers.square().sum(1)).sum().backward()
        adam.step()
    return base.denormalize((numbers.detach() * spread @ span.T).view(shape))


def _error(decoder: TinyDecoder, cloud: Cloud, stage: StageConfig, config: FitConfig, ids: Sequence[int], seed: int,
           views: Views | None, face_share: float = 0.0) -> Callable[[Tensor, int], Tensor]:
    """What planes [A, 3, C, R, R] get wrong at step's own points and along its rays: (planes, step) -> [A]."""
    depths = ray_depths(views) if views is not None and stage.rays else None
    frozen = copy_decoder(decoder).requires_grad_(False)

    def error(planes: Tensor, step: int) -> Tensor:
        drawn = draw_points(cloud, stage.points, [(seed, i, step) for i in ids], stage.far_share, face_share)
        loss = point_loss(*decode_points(planes, drawn.points, frozen, config), drawn, config.losses)
        if views is None or depths is None or step < stage.first_ray:
            return loss
        rays = draw_rays(views, depths, stage.rays, stage.samples, [(seed, i, step, 1) for i in ids])
        return loss + config.losses.picture * picture_loss(planes, frozen, rays, config)

    return error


class JointFit(NamedTuple):
    """What the joint stage learns: the decoder and the mean planes [3, C, R, R], with each avatar's own planes.

    `coarse` [A, 3, C, r, r] is complete; the fine planes of avatar i are `fine_start(mean, coarse[i]) + residual[i]`.
    """

    decoder: TinyDecoder
    mean: Tensor
    coarse: Tensor
    residual: Tensor


def coarse_start(mean: Tensor, size: int) -> Tensor:
    """Where the coarse planes of every avatar start: the mean [3, C, R, R] shrunk to [3, C, size, size]."""
    return rescale(mean[None], size)[0]


def fine_start(mean: Tensor, coarse: Tensor) -> Tensor:
    """Where fine planes start: the mean [3, C, R, R] plus what `coarse` [A, 3, C, r, r] adds to it, bilinear."""
    return mean + enlarge(coarse - coarse_start(mean, coarse.shape[-1]), mean.shape[-1])


def enlarge(planes: Tensor, size: int) -> Tensor:
    """Planes [A, 3, C, H, W] on a finer grid, bilinear: nearly the same field, for H and W that divide `size`."""
    larger = F.interpolate(planes.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
    return larger.unflatten(0, planes.shape[:2])


class JointTrainer:
    """The joint stage as an object that can stop and go on: parameters, one Adam, and a step that a seed fixes.

    Each step takes `config.joint_avatars` avatars and one plane size: the coarse, the fine, or a random one between.
    """

    def __init__(self, count: int, config: FitConfig, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.count, self.config, self.seed, self.step = count, config, seed, 0
        planes = config.planes
        shape = (3, planes.resolution, planes.resolution, planes.channels)
        small = (3, planes.coarse_resolution, planes.coarse_resolution, planes.channels)
        self.decoder = new_decoder(config.decoder, seed).to(device)
        self.mean = torch.zeros(shape, device=device, requires_grad=True)
        self.coarse = [torch.zeros(small, device=device, requires_grad=True) for _ in range(count)]
        self.residual = [torch.zeros(shape, device=device, requires_grad=True) for _ in range(count)]
        groups = [{"params": self.coarse, "scale": 1.0}, {"params": self.residual, "scale": 0.4},
                  {"params": [self.mean], "scale": 0.3},
                  {"params": list(self.decoder.parameters()), "scale": config.joint_decoder_rate / config.joint.rate}]
        self.adam = torch.optim.Adam(groups, lr=config.joint.rate, betas=(0.9, 0.99), fused=True)

    def planes(self, rows: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        """Planes [A, 3, C, size, size] of some avatars and the mean [1, 3, C, size, size] that they stem from."""
        mean = self.mean.permute(0, 3, 1, 2)[None]
        own = torch.stack([self.coarse[row] for row in rows]).permute(0, 1, 4, 2, 3)
        if size == self.config.planes.coarse_resolution:
            start = rescale(mean, size)
            return start + own, start
        fine = torch.stack([self.residual[row] for row in rows]).permute(0, 1, 4, 2, 3)
        planes = rescale(mean + enlarge(own, self.config.planes.resolution) + fine, size)
        return planes, rescale(mean, size)

    def draw(self) -> tuple[list[int], int]:
        """The avatars and the plane size of the present step."""
        random = np.random.default_rng([self.seed, 77, self.step])
        rows = random.choice(self.count, min(self.config.joint_avatars, self.count), replace=False)
        small, full = self.config.planes.coarse_resolution, self.config.planes.resolution
        between = int(random.integers(small, full + 1))
        return [int(row) for row in rows], int(random.choice([small, between, full], p=[0.45, 0.1, 0.45]))

    def train_step(self, cloud: Cloud) -> float:
        """One step on `cloud`, which holds all avatars in order; returns the mean loss."""
        config, stage = self.config, self.config.joint
        rows, size = self.draw()
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(self.step, stage) * group["scale"]
        self.adam.zero_grad(set_to_none=True)
        planes, start = self.planes(rows, size)
        some = Cloud(*(part[rows] for part in cloud))
        drawn = draw_points(some, stage.points, [(self.seed, row, self.step) for row in rows], stage.far_share)
        random = generator(self.seed, self.step)
        noise = torch.randn(*drawn.distance.shape, planes.shape[2], generator=random).to(planes.device)
        decoded = decode_points(planes, drawn.points, self.decoder, config, config.joint_noise * noise)
        loss = point_loss(*decoded, drawn, config.losses) + plane_loss(planes, start, config.losses)
        loss.mean().backward()
        self.adam.step()
        bound = config.losses.bound
        with torch.no_grad():
            for part in (self.mean, *(self.coarse[row] for row in rows), *(self.residual[row] for row in rows)):
                part.clamp_(-bound, bound)
        self.step += 1
        return float(loss.detach().mean())

    def state(self) -> dict[str, Tensor]:
        """Everything that a later `load_state` needs, by name; the step count is `self.step`."""
        tensors = {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        tensors |= {f"planes.{i}": value.detach() for i, value in enumerate((self.mean, *self.coarse, *self.residual))}
        for index, entry in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": value for name, value in entry.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from `state()` of a trainer of the same count, configuration and seed."""
        prefix = "decoder."
        self.decoder.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        with torch.no_grad():
            for i, value in enumerate((self.mean, *self.coarse, *self.residual)):
                value.copy_(tensors[f"planes.{i}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": state})
        self.step = step

    @torch.no_grad()
    def result(self) -> JointFit:
        """What has been learned so far; tensors are copies."""
        mean = self.mean.detach().permute(0, 3, 1, 2).clone(memory_format=torch.preserve_format)
        small = self.config.planes.coarse_resolution
        coarse = torch.cat([self.planes([row], small)[0] for row in range(self.count)])
        residual = torch.stack(self.residual).permute(0, 1, 4, 2, 3)
        return JointFit(self.decoder, mean, coarse, residual)


def _channels_last(planes: Tensor) -> Tensor:
    """[A, 3, C, H, W] float32 whose channels lie next to each other in memory."""
    return planes.detach().float().permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
