"""A complete model with random weights, small enough to run in milliseconds, made of the real classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rodin_model import editing, retouch
from rodin_model.conditioning import TowerConditioner
from rodin_model.config import NoiseConfig, UNetConfig
from rodin_model.decoder import new_decoder
from rodin_model.diffusion import BaseDiffusion, TriplaneDiffusion
from rodin_model.latent_prior import LatentPrior
from rodin_model.model_index import ModelIndex
from rodin_model.pipeline import RodinPipeline
from rodin_model.towers import Towers, TowersConfig
from rodin_model.upsampler import Upsampler

CONVENTIONS = {"layout": ["xy", "zx", "yz"], "reduce": "sum", "align_corners": False, "padding_mode": "zeros"}
CHANNELS = 4


def ball_planes(size: int) -> torch.Tensor:
    """[3, 4, size, size] whose sum in channel 0 is 12 (0.5^2 - r^2): a ball of radius 0.5 where that is positive."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    planes = torch.zeros(3, CHANNELS, size, size)
    planes[:, 0] = 1.0 - 6.0 * (axis[None, :] ** 2 + axis[:, None] ** 2)
    return planes


def tiny_diffusion(kind: type[TriplaneDiffusion], size: int, in_channels: int, noise: NoiseConfig) -> TriplaneDiffusion:
    """An untrained denoiser around `ball_planes`; what starts at zero is made random, so that z matters."""
    config = UNetConfig(resolution=size, in_channels=in_channels, out_channels=CHANNELS, channels=8, channel_mult=(1,),
                        blocks=(1,), cross_plane=(size,), embedding=16, head_channels=8, groups=4)
    model = kind(config, noise, CHANNELS)
    std = torch.tensor([0.2, 1.0, 1.0, 1.0]).view(1, CHANNELS, 1, 1).expand(3, -1, -1, -1)
    model.set_statistics(ball_planes(size), std)
    for parameter in model.unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(model.unet.latent[0].weight, std=1.0)
    return model


def tiny_pipeline() -> RodinPipeline:
    """All parts of a model, from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        towers = Towers(TowersConfig(buckets=64, text_width=16, text_layers=1, text_heads=2, image_size=32,
                                     image_widths=(4, 8, 8, 8)))
        decoder = new_decoder({"in_features": CHANNELS, "hidden": [], "density": "trunc_exp"})
        decoder.layers[0].weight.data = 2.0 * torch.eye(CHANNELS)
        decoder.layers[0].bias.data = torch.tensor([3.0, 0.0, 0.0, 0.0])
        base = tiny_diffusion(BaseDiffusion, 8, CHANNELS, NoiseConfig(steps=50))
        fine = tiny_diffusion(Upsampler, 16, 2 * CHANNELS, NoiseConfig("sigmoid", 0.0, 3.0, 0.3, steps=20,
                                                                       prediction="sample"))
        index = ModelIndex(name="tiny", num_inference_steps=3, upsampler_steps=2)
        pipe = RodinPipeline(TowerConditioner(towers), LatentPrior(16, 1), base, fine,  # type: ignore[arg-type]
                             decoder, CONVENTIONS, index)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete tiny model with random weights; its avatars are noisy balls."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(tiny_model_dir: Path) -> RodinPipeline:
    """The tiny model, loaded; quiet."""
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits of untrained models need not be put together well."""
    monkeypatch.setattr(editing, "COMPOSING", 2)
    monkeypatch.setattr(editing, "STRENGTHS", (1.0,))
    monkeypatch.setattr(retouch, "VIEWS", 1)
