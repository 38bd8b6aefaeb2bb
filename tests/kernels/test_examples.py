"""The examples run, and give what the other projects' own formulas give, written down here as their papers state them.

Nothing here or there is copied: the formulas are re-derived, and computed in float64 by plain PyTorch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rodin_kernels.testing import random_tensor

FOLDER = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("eg3d_generator", "triposr_renderer", "sin3dm_block")


def example(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rays(count: int, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rays [2, count, 3] of unit length towards the box, some of which miss it."""
    ahead, place = torch.tensor([[0.0, 0.0, -1.0], [0.1, -0.05, distance]], dtype=torch.float64)
    directions = ahead + random_tensor(2, count, 3, seed=seed, dtype=torch.float64) * 0.2
    origins = place.expand_as(directions)
    return origins, F.normalize(directions, dim=-1)


def read(plane: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """One plane [B, C, H, W] at columns x and rows y [B, ...]: [B, ..., C], zeros outside."""
    grid = torch.stack([x, y], -1).flatten(1, -2).unsqueeze(1)
    found = F.grid_sample(plane, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return found.squeeze(2).transpose(1, 2).unflatten(1, x.shape[1:])


def transmitted(alpha: Tensor) -> Tensor:
    """alpha_i prod_{j < i} (1 - alpha_j + 1e-10)."""
    before = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha + 1e-10], -1), -1)[..., :-1]
    return alpha * before


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    example(name).main()
    assert "nan" not in capsys.readouterr().out.lower()


def test_eg3d() -> None:
    """Projection by the shipped plane axes, mean, raw densities averaged, softplus(x - 1), colours to [-1, 1]."""
    module = example("eg3d_generator")
    decoder = module.Decoder(4, 8).double()
    planes = random_tensor(2, 3, 4, 7, 7, seed=1, dtype=torch.float64) * 2
    origins, directions = rays(9, 2.7, 2)
    rgb, depth, total = module.render(planes, origins, directions, decoder, samples=13, box_warp=1.2)

    t = torch.linspace(2.25, 3.3, 13).double()
    points = origins[:, :, None] + t[:, None] * directions[:, :, None]
    axes = torch.tensor([[[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
                         [[0, 0, 1], [1, 0, 0], [0, 1, 0]]]).double()
    places = [2 / 1.2 * points @ torch.linalg.inv(axis) for axis in axes]
    features = torch.stack([read(planes[:, i], p[..., 0], p[..., 1]) for i, p in enumerate(places)]).mean(0)
    out = decoder.layers(features)
    color = torch.sigmoid(out[..., 1:]) * 1.002 - 0.001
    density = F.softplus((out[..., :-1, 0] + out[..., 1:, 0]) / 2 - 1)
    middle = (t[1:] + t[:-1]) / 2
    weights = transmitted(1 - torch.exp(-density * (t[1:] - t[:-1])))
    assert_close(rgb, (weights[..., None] * (color[..., 1:, :] + color[..., :-1, :]) / 2).sum(-2) * 2 - 1)
    assert_close(total, weights.sum(-1))
    assert_close(depth, ((weights * middle).sum(-1) / weights.sum(-1)).clamp(middle.min(), middle.max()))


def triposr_by_formula(planes: Tensor, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor,
                       decoder: torch.nn.Module, samples: int, radius: float, world: bool) -> Tensor:
    """xy, xz, yz side by side, samples in the middle of S equal parts, white behind."""
    edges = torch.linspace(0, 1, samples + 1).double()
    place = (edges[:-1] + edges[1:]) / 2
    t = near[..., None] * (1 - place) + far[..., None] * place
    x, y, z = ((origins[:, :, None] + t[..., None] * directions[:, :, None]) / radius).unbind(-1)
    features = torch.cat([read(planes[:, 0], x, y), read(planes[:, 1], x, z), read(planes[:, 2], y, z)], -1)
    for layer in decoder.layers[:-1]:
        features = F.silu(layer(features))
    raw = decoder.layers[-1](features)
    delta = torch.full_like(t, 1 / samples) if not world else (far - near)[..., None] / samples / radius
    weights = transmitted(1 - torch.exp(-delta * torch.exp(raw[..., 0] - 1)))
    return (weights[..., None] * torch.sigmoid(raw[..., 1:])).sum(-2) + 1 - weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", ["triposr", "fused"])
def test_triposr(name: str) -> None:
    module = example("triposr_renderer")
    torch.manual_seed(0)
    decoder = module.triposr_decoder(40, 3).double()
    planes = random_tensor(2, 3, 40, 6, 6, seed=3, dtype=torch.float64) * 2
    origins, directions = rays(8, 1.9, 4)
    # inside the box throughout: outside of it the fused renderer is empty, TripoSR decodes zeros
    near, far = torch.full((2, 8), 1.5).double(), torch.full((2, 8), 2.2).double()
    got = getattr(module, name)(planes, origins, directions, near, far, decoder, samples=11)
    inside = ((origins + far[..., None] * directions) / 0.87).abs().amax(-1) < 1
    assert inside.any()
    wanted = triposr_by_formula(planes, origins, directions, near, far, decoder, 11, 0.87, name == "fused")
    chosen = inside if name == "fused" else torch.ones_like(inside)
    assert_close(got[chosen], wanted[chosen])


def test_openlrm() -> None:
    """80 channels side by side on xy, xz, zy; nothing outside the box; the rest as EG3D, on a background."""
    module = example("triposr_renderer")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(240, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).double()
    planes = random_tensor(2, 3, 80, 5, 5, seed=5, dtype=torch.float64) * 2
    origins, directions = rays(8, 2.0, 6)
    near, far = torch.full((2, 8), 0.8).double(), torch.full((2, 8), 3.3).double()
    got = module.openlrm(planes, origins, directions, near, far, network, samples=12, background=0.5)

    t = torch.linspace(0.8, 3.3, 12).double()
    points = origins[:, :, None] + t[:, None] * directions[:, :, None]
    x, y, z = points.unbind(-1)
    features = torch.cat([read(planes[:, 0], x, y), read(planes[:, 1], x, z), read(planes[:, 2], z, y)], -1)
    raw, outside = network(features), points.abs().amax(-1) > 1
    assert outside.any() and not outside.all()
    sigma = raw[..., 0].masked_fill(outside, -torch.inf)
    color = (torch.sigmoid(raw[..., 1:]) * 1.002 - 0.001).masked_fill(outside[..., None], 0.5)
    weights = transmitted(1 - torch.exp(-F.softplus((sigma[..., 1:] + sigma[..., :-1]) / 2 - 1) * t.diff()))
    wanted = (weights[..., None] * (color[..., 1:, :] + color[..., :-1, :]) / 2).sum(-2)
    assert_close(got, wanted + 0.5 * (1 - weights.sum(-1, keepdim=True)))


class Published(torch.nn.Module):
    """Sin3DM's convolution as its paper has it: average, turn where axes ask for it, expand, concatenate."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        for name in ("xy", "xz", "yz"):
            setattr(self, f"conv_{name}", torch.nn.Conv2d(3 * channels, outputs, 3, padding=1))

    def forward(self, planes: list[Tensor]) -> list[Tensor]:
        """xy [X, Y], xz [X, Z], yz [Y, Z]: rows first."""
        xy, xz, yz = planes
        x_of_xy, y_of_xy, x_of_xz, z_of_xz, y_of_yz, z_of_yz = (
            plane.mean(dim) for plane in (xy, xz, yz) for dim in (3, 2))

        def together(plane: Tensor, *lines: Tensor) -> Tensor:
            return torch.cat([plane, *(line.expand_as(plane) for line in lines)], 1)

        return [self.conv_xy(together(xy, y_of_yz[:, :, None, :], x_of_xz[..., None])),
                self.conv_xz(together(xz, x_of_xy[..., None], z_of_yz[:, :, None, :])),
                self.conv_yz(together(yz, y_of_xy[..., None], z_of_xz[:, :, None, :]))]


def test_sin3dm_convolution_and_its_trained_weights() -> None:
    module = example("sin3dm_block")
    torch.manual_seed(0)
    theirs, ours = Published(5, 6).double(), module.TriplaneConv(5, 6).double()
    ours.load(theirs.state_dict())
    x, y, z = 7, 4, 5
    planes = [random_tensor(2, 5, *size, seed=7, dtype=torch.float64) for size in ((x, y), (x, z), (y, z))]
    for got, wanted in zip(ours(planes), theirs(planes), strict=True):
        assert_close(got, wanted)


def test_sin3dm_block() -> None:
    module = example("sin3dm_block")
    torch.manual_seed(0)
    block = module.TriplaneBlock(4, 6, 3, groups=2).double()
    first, second = Published(4, 6).double(), Published(6, 6).double()
    block.conv1.load(first.state_dict())
    block.conv2.load(second.state_dict())
    planes = [random_tensor(1, 4, *size, seed=8, dtype=torch.float64) for size in ((5, 3), (5, 4), (3, 4))]
    embedding = random_tensor(1, 3, seed=9, dtype=torch.float64)
    hidden = first([F.silu(F.group_norm(p, 2)) for p in planes])
    scale, shift = block.project(F.silu(embedding)).view(1, 2, 6, 1, 1).unbind(1)
    hidden = second([F.silu(F.group_norm(h, 2) * (1 + scale) + shift) for h in hidden])
    for i, got in enumerate(block(planes, embedding)):
        skip = F.conv2d(planes[i], block.skip.weight[i], block.skip.bias[i])
        assert_close(got, skip + hidden[i])


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Equal but for the 1e-10 in the published weights and rounding in float64."""
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-8)
