"""Other people's renderers, where they can be imported; never required, and judged like every rival."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .case import Contender, Tensors, contiguous
from .plain_renderer import Scene, mlp, sampled


def importable(name: str) -> Any:
    """The module, or None; a peer that is there but broken counts as absent."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a foreign package raises while it loads, it cannot be compared here
        print(f"{name} is installed but does not load: {error}")
        return None


def renderers(scene: Scene, device: torch.device) -> list[Contender]:
    """Contenders for a scene of sums and zero padding; both peers need a GPU."""
    if device.type != "cuda":
        return []
    found = []
    if nerfacc := importable("nerfacc"):
        found.append(Contender("nerfacc + torch MLP", lambda x: _nerfacc(nerfacc, scene, x), contiguous("planes")))
    if lightplane := importable("lightplane"):
        found.append(Contender("Lightplane", lambda x: _lightplane(lightplane, scene, x), contiguous("planes")))
    return found


def _nerfacc(nerfacc: Any, scene: Scene, x: Tensors) -> Tensor:
    """grid_sample and a torch MLP on every sample, nerfacc's weights and sums."""
    near, far = x["near"][0].unsqueeze(-1), x["far"][0].unsqueeze(-1)
    edges = near + (far - near) * torch.linspace(0, 1, scene.samples + 1, device=near.device)
    starts, ends = edges[:, :-1], edges[:, 1:]
    middle = (starts + ends) / 2
    points = x["origins"][0].unsqueeze(1) + middle.unsqueeze(-1) * x["directions"][0].unsqueeze(1)
    inside = (points.abs() <= 1).all(-1)
    features = sampled(scene, x["planes"], points.flatten(0, 1).unsqueeze(0))[0].unflatten(0, middle.shape)
    sigma, color = mlp(x)(features)
    weights, _, _ = nerfacc.render_weight_from_density(starts, ends, torch.where(inside, sigma, 0.0))
    parts = [nerfacc.accumulate_along_rays(weights, values=values)
             for values in (torch.where(inside.unsqueeze(-1), color, 0.0), middle.unsqueeze(-1), None)]
    return torch.cat(parts, -1).unsqueeze(0)


def _lightplane(lightplane: Any, scene: Scene, x: Tensors) -> Tensor:
    """Lightplane's fused kernel; it spaces samples from `near` to `far`, both included."""
    from lightplane.mlp_utils import DecoderParams, flatten_decoder_params

    count = x["origins"].shape[1]
    bin_ = (x["far"][0] - x["near"][0]) / scene.samples
    hidden = x["bias0"].shape[0]
    rays = lightplane.Rays(
        directions=x["directions"][0], origins=x["origins"][0],
        grid_idx=torch.zeros(count, dtype=torch.int32, device=bin_.device), near=x["near"][0] + bin_ / 2,
        far=x["far"][0] - bin_ / 2, encoding=torch.zeros(count, hidden, device=bin_.device))
    weights, biases = ([x[f"{kind}{i}"].float() for i in range(3)] for kind in ("weight", "bias"))
    last, shift = weights[2].t(), biases[2]
    flat, *widths = flatten_decoder_params([weights[0].t(), weights[1].t()], biases[:2], [last[:, :1]], [shift[:1]],
                                           [last[:, 1:]], [shift[1:]], True)
    first, second, third = (plane.permute(0, 2, 3, 1).float() for plane in x["planes"].unbind(1))
    grid = [first.unsqueeze(1), second.unsqueeze(2), third.unsqueeze(3)]
    depth, thickness, color = lightplane.lightplane_renderer(
        rays, grid, DecoderParams(flat, *widths, 3), num_samples=scene.samples, gain=1.0,
        mask_out_of_bounds_samples=True)
    opacity = -torch.expm1(-F.relu(thickness))
    return torch.cat([color, depth.unsqueeze(-1), opacity.unsqueeze(-1)], -1).unsqueeze(0)
