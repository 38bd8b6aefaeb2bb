"""Words to a picture, end to end, with our operators and with the same program in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rodin_model.triplane as avatars
from rodin_kernels import Rendered, RolloutConv, sample_triplane
from rodin_model.cameras import Camera
from rodin_model.pipeline import RodinPipeline

from .case import OURS, Case, Contender, Tensors, Work
from .plain_renderer import Scene, chunked

PLAIN = "plain PyTorch operators"
PROMPT = "a bearded man with curly hair in a black leather jacket"


def cases(level: str, device: torch.device) -> list[Case]:
    """One case: fewer steps and a smaller picture where time is short."""
    steps = {"smoke": (2, 1, 16), "quick": (8, 2, 128)}
    return [case(*steps.get(level, (None, None, 256)), device)]


def case(steps: int | None, fine_steps: int | None, side: int, device: torch.device) -> Case:
    """The shipped model, `steps` of the base diffusion and `fine_steps` of the upsampler (None: its own), a view."""
    pipe = RodinPipeline.from_pretrained(device=device)
    pipe.set_progress_bar_config(disable=True)
    camera = Camera.orbit(yaw=20, pitch=5, size=side)
    own = steps or pipe.index.num_inference_steps, fine_steps or pipe.index.upsampler_steps

    def ours(x: Tensors) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        out = pipe(PROMPT, generator=generator, num_inference_steps=own[0], upsampler_steps=own[1])
        return out.avatars[0].picture(camera)

    def plain(x: Tensors) -> Tensor:
        with plain_operators(pipe):
            return ours(x)

    return Case(
        "generate", f"{own[0]} + {own[1]} steps, a view of {side}x{side}", float(side * side), "pixels", torch.float32,
        lambda device: {"nothing": torch.zeros(1, device=device)}, plain,
        (Contender(OURS, ours), Contender(PLAIN, plain)), {"forward": Work(0, 0)}, least_psnr=45.0, memory=False,
        repeats=5,
    )  # fmt: skip


@contextmanager
def plain_operators(pipe: RodinPipeline) -> Iterator[None]:
    """Inside, the pipeline's convolutions concatenate, and avatars are rendered in chunks that keep every sample."""
    layers = [layer for part in (pipe.base, pipe.upsampler) for layer in part.modules()
              if isinstance(layer, RolloutConv)]
    saved = [layer.backend for layer in layers], avatars.render_triplane, avatars.sample_triplane
    try:
        for layer in layers:
            layer.backend = "reference"
        vars(avatars).update(render_triplane=render, sample_triplane=partial(sample_triplane, backend="reference"))
        yield
    finally:
        for layer, backend in zip(layers, saved[0], strict=True):
            layer.backend = backend
        vars(avatars).update(render_triplane=saved[1], sample_triplane=saved[2])


def render(planes: Tensor, origins: Tensor, directions: Tensor, decoder: Any, *, near: Tensor, far: Tensor,
           num_samples: int, background: Tensor, layout: tuple[str, ...], reduce: str, align_corners: bool,
           padding_mode: str, **unused: Any) -> Rendered:
    """What `Avatar.render` asks for, by the plain renderer; occupancy is not used, every sample is decoded."""
    scene = Scene(num_samples, layout, reduce, align_corners, padding_mode)
    rays = {"planes": planes, "origins": origins, "directions": directions, "near": near, "far": far}
    found = chunked(scene, rays, decoder=decoder)
    color, opacity = found[..., :-2], found[..., -1]
    return Rendered(rgb=color + (1 - opacity.unsqueeze(-1)) * background, depth=found[..., -2], opacity=opacity)
