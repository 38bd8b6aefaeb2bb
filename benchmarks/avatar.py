"""A view of an avatar, as users look at it: empty space skipped, rays ended early, compared as pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rodin_kernels import render_triplane, render_triplane_reference
from rodin_model.cameras import Camera
from rodin_model.decoder import copy_decoder
from rodin_model.pipeline import RodinPipeline
from rodin_model.triplane import Avatar

from .case import OURS, Case, Contender, Target, Tensors, channels_last, contiguous
from .plain_renderer import Scene, box_near_far, chunked
from .rendering import CHUNKED, works

#: MiB that a picture of 1024x1024 may take at once, 44 of them for its rays and colours.
LARGEST_PEAK = 128.0


def cases(level: str, device: torch.device) -> list[Case]:
    """The cases of a level on a device."""
    if level == "smoke":
        return [case(16, 8, device), case(24, 8, device, large=True)]
    if device.type == "cpu":
        return [case(256, 64, device), case(1024, 64, device, large=True)]
    return [case(512, 96, device)]


def case(side: int, samples: int, device: torch.device, large: bool = False) -> Case:
    """A view of the shipped model's average head, with occupancy and early stop, compared as pictures.

    Of a large one some rays alone are compared, and its memory is what counts: it has no rival.
    """
    pipe = RodinPipeline.from_pretrained(device=device)
    read = {name: pipe.conventions[name] for name in ("reduce", "align_corners", "padding_mode")}
    avatar = Avatar(pipe.mean, pipe.decoder, tuple(pipe.conventions["layout"]), **read)
    occupancy = avatar.occupancy()
    # on a GPU ours is asked for what a viewer would use: half precision, judged by the picture like everything here
    low = torch.bfloat16 if device.type == "cuda" else torch.float32
    decoder = copy_decoder(pipe.decoder).to(low)
    conventions = avatar.conventions
    scene = Scene(samples, avatar.layout, conventions["reduce"], conventions["align_corners"],
                  conventions["padding_mode"])

    def make(device: torch.device) -> Tensors:
        origins, directions = (x.unsqueeze(0) for x in Camera.orbit(yaw=20, pitch=5, size=side).rays(device))
        near, far = box_near_far(origins, directions)
        tensors = {"planes": avatar.planes.unsqueeze(0), "origins": origins, "directions": directions, "near": near,
                   "far": far}
        for i, layer in enumerate(pipe.decoder.layers):
            tensors |= {f"weight{i}": layer.weight.detach(), f"bias{i}": layer.bias.detach()}
        return tensors

    def ours(x: Tensors) -> Tensor:
        found = render_triplane(x["planes"], x["origins"], x["directions"], decoder, num_samples=samples,
                                background=1.0, occupancy=occupancy, stop_below=1e-4, outputs=("rgb",), near=x["near"],
                                far=x["far"], image_width=side, **conventions)
        assert found.rgb is not None
        return found.rgb

    def prepared(x: Tensors) -> Tensors:
        return channels_last("planes")({**x, "planes": x["planes"].to(low)})

    def plain(x: Tensors) -> Tensor:
        found = chunked(scene, x, decoder=pipe.decoder)
        return found[..., :3] + (1 - found[..., 4:])

    def reference(x: Tensors) -> Tensor:
        found = render_triplane_reference(x["planes"], x["origins"], x["directions"], pipe.decoder, near=x["near"],
                                          far=x["far"], num_samples=samples, background=1.0, outputs=("rgb",),
                                          **conventions)
        assert found.rgb is not None
        return found.rgb

    targets = (Target("forward", 3.0, CHUNKED), Target("forward", 1.0, "", "cuda"))
    contenders = (Contender(OURS, ours, prepared), Contender(CHUNKED, plain, contiguous("planes")))
    if large:
        targets, contenders = (Target("peak", LARGEST_PEAK),), contenders[:1]
    channels, size = avatar.planes.shape[1], avatar.planes.shape[-1]
    seen = max(occupancy.fraction, 1e-3)
    work = works(side, math.ceil(samples * seen), channels, size, torch.float32)
    return Case(
        "render_triplane", f"avatar {side}x{side} x {samples}, skipping empty space", float(side * side * samples),
        "samples", torch.float32, make, reference, contenders, work, rows=("origins", "directions", "near", "far"),
        checked=2048, least_psnr=45.0, targets=targets, repeats=1 if large else 50,
    )  # fmt: skip
