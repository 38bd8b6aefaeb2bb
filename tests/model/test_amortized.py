"""Planes of all avatars as one function of what they are: the function, its training command, and what it writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rodin_model import checkpoints
from rodin_model.amortized import AmortizedPlanes
from rodin_model.avatars.attributes import CHOICES, SHAPE, VECTOR_SIZE, sample_attributes
from rodin_model.avatars.dataset import Recipe, build, imagined_avatars
from rodin_model.config import AmortizedConfig, NoiseConfig, PrincipalConfig, UNetConfig
from rodin_model.decoder import new_decoder, save_decoder
from rodin_model.diffusion import BaseDiffusion
from rodin_model.fit import FitConfig, conventions
from rodin_model.fit_data import FACE, FAR, FEATURES, draw_points, load_clouds
from rodin_model.train import amortize as command
from rodin_model.train.denoiser import DenoiserSettings, all_planes
from rodin_model.train.latents import Latents

SMALL = AmortizedConfig(description=5, resolution=4, channels=2, width=8, blocks=1, components=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    build(folder, Recipe(count=3, views=1, size=8, uniform=400, surface=1200), progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> str:
    folder, config = tmp_path_factory.mktemp("decoder"), FitConfig()
    save_decoder(folder, new_decoder(config.decoder), torch.zeros(3, 16, 32, 32), conventions(config.planes))
    return str(folder)


def test_a_vector_tells_every_name_and_number() -> None:
    avatar = sample_attributes(4)
    vector = avatar.vector()
    assert len(vector) == VECTOR_SIZE and vector[-len(SHAPE):] == avatar.shape
    start = 0
    for name, names in CHOICES.items():
        assert vector[start:start + len(names)] == tuple(float(n == getattr(avatar, name)) for n in names)
        start += len(names)
    assert start + len(SHAPE) == VECTOR_SIZE


def test_planes_lie_in_an_affine_space_of_the_components() -> None:
    torch.manual_seed(0)
    model = AmortizedPlanes(SMALL)
    torch.nn.init.normal_(model.head[1].weight)
    torch.nn.init.normal_(model.basis.weight)
    model.mean.normal_()
    planes = model(torch.randn(20, 5))
    assert planes.shape == (20, 3, 2, 4, 4) and planes.stride(2) == 1  # channels last: what sampling wants
    values = torch.linalg.svdvals((planes - model.mean).flatten(1).detach().double())
    assert float(values[2]) > 0.1 and float(values[3]) < 1e-5 * float(values[0])


def test_what_is_saved_is_read_back(tmp_path) -> None:
    torch.manual_seed(0)
    model = AmortizedPlanes(SMALL)
    model.save(tmp_path)
    known = torch.randn(2, 5)
    assert torch.equal(AmortizedPlanes.from_folder(tmp_path)(known), model(known))
    (tmp_path / "config.json").write_text('{"something": 1}')
    with pytest.raises(ValueError, match="does not describe amortised planes"):
        AmortizedPlanes.from_folder(tmp_path)


def test_the_command_learns_resumes_and_writes_planes(tmp_path, data, decoder) -> None:
    def run(output: str, until: int, *more: str) -> int:
        return command.main(["--data", data, "--decoder", decoder, "--output", str(tmp_path / output), "--steps", "16",
                             "--until", str(until), "--batch", "2", "--points", "256", "--warmup", "5",
                             "--learning-rate", "3e-3", *more])

    assert run("whole", 16, "--planes", str(tmp_path / "planes"), "--imagined", "2") == 0
    planes, avatars = all_planes(tmp_path / "planes")
    assert planes.shape == (5, 3, 16, 32, 32) and avatars == [0, 1, 2, 3, 4]
    assert run("parts", 5) == 0 and run("parts", 16) == 0
    trained, resumed = (AmortizedPlanes.from_folder(tmp_path / name / "model") for name in ("whole", "parts"))
    for a, b in zip(trained.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    known = command.descriptions(imagined_avatars(20, 2))
    assert torch.allclose(trained(known), planes[3:].float(), atol=2e-3)


def make_base(components: int = 3) -> BaseDiffusion:
    unet = UNetConfig(resolution=4, in_channels=2, out_channels=2, channels=8, channel_mult=(1,), blocks=(1,),
                      embedding=8, groups=4)
    base = BaseDiffusion(unet, NoiseConfig(steps=10), 2, PrincipalConfig(components, 4, 8, 1, 8))
    base.set_statistics(torch.randn(3, 2, 4, 4), torch.rand(3, 2, 1, 1) + 0.5)
    directions = torch.linalg.qr(torch.randn(96, components))[0].T.reshape(components, 3, 2, 4, 4)
    base.principal.set_components(directions, torch.tensor([4.0, 1.0, 0.25])[:components], torch.tensor(0.01))
    return base


def test_planes_can_be_kept_to_what_a_base_diffusion_knows() -> None:
    torch.manual_seed(0)
    base, model = make_base(), AmortizedPlanes(SMALL)
    model.set_components(base)
    known = torch.randn(6, 5)
    assert torch.equal(model(known), base.mean.expand(6, -1, -1, -1, -1))  # begins at the average avatar
    torch.nn.init.normal_(model.head[1].weight)
    numbers = base.principal.numbers(base.normalize(model(known)))
    assert torch.allclose(numbers, model.head(model.blocks[0](model.stem(known))) * torch.tensor([2.0, 1.0, 0.5]),
                          atol=1e-4)
    assert not model.basis.weight.requires_grad
    for wrong, words in ((make_base(2), "has 2 components of 2 channels of 4"), (plain_base(), "has no principal")):
        with pytest.raises(ValueError, match=words):
            model.set_components(wrong)


def plain_base() -> BaseDiffusion:
    return BaseDiffusion(make_base().config, NoiseConfig(steps=10), 2)


def test_training_lowers_the_loss(data) -> None:
    torch.manual_seed(0)
    config, settings = FitConfig(), DenoiserSettings(batch=2)
    model = AmortizedPlanes(AmortizedConfig(command.DESCRIPTION_SIZE, 8, width=32, blocks=1, components=8))
    cloud, known = load_clouds([data]), command.descriptions(command.known_avatars([data]))
    losses = command.AmortizedLosses(cloud, known, new_decoder(config.decoder), config, 512, settings)
    adam, seen = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for step in range(40):
        loss = sum(losses(model, step).values())
        adam.zero_grad()
        loss.backward()
        adam.step()
        seen.append(float(loss.detach()))
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5])


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, decoder, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert command.main(["--data", str(tmp_path / "empty"), "--decoder", decoder, "--output", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no shard-") and error.count("\n") == 1


def test_a_share_of_the_points_is_drawn_in_the_face(data) -> None:
    cloud = load_clouds([data])
    drawn = draw_points(cloud, 1000, [(1, i) for i in range(3)], far_share=0.2, face_share=0.5)
    far = drawn.distance.abs() > FAR
    assert far[:, :200].all() and not far[:, 200:].any()
    low, high = torch.tensor(FACE).T
    inside = ((drawn.points >= low) & (drawn.points <= high)).all(-1)
    assert inside[:, 200:700].all() and 0 < inside[:, 700:].float().mean() < 0.8
    both = draw_points(cloud, 1000, [(1, i) for i in range(3)], far_share=0.2, face_share=0.1, feature_share=0.4)
    low, high = torch.tensor(FEATURES).T
    inside = ((both.points >= low) & (both.points <= high)).all(-1)
    assert inside[:, 300:700].all() and 0 < inside[:, 700:].float().mean() < 0.6
    plain = draw_points(cloud, 1000, [(1, i) for i in range(3)], far_share=0.2)
    assert torch.equal(drawn.points[:, :200], plain.points[:, :200])


def test_avatars_without_pictures_are_always_worded() -> None:
    latents = Latents(torch.ones(2, 3, 512), torch.full((4, 5, 512), 2.0))
    z = latents.draw([0, 1, 2, 3] * 50, np.random.default_rng(0), 0.0)
    assert z[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0] * 50
    assert (latents.draw([0] * 9, np.random.default_rng(0), 1.0) == 2).all()
    with pytest.raises(ValueError, match="M >= N > 0"):
        Latents(torch.ones(5, 3, 512), torch.ones(4, 5, 512))


def test_pictured_avatars_can_be_drawn_more_often() -> None:
    latents, rng = Latents(torch.ones(2, 1, 512), torch.ones(100, 1, 512)), np.random.default_rng(0)
    avatars = list(range(99, -1, -1))
    share = [float(np.mean(latents.rows(avatars, 2000, rng, pictured) >= 98)) for pictured in (0.0, 0.5)]
    assert share[0] < 0.04 and 0.46 < share[1] < 0.55


def test_imagined_avatars_are_those_of_the_data_set(data) -> None:
    from rodin_model.avatars.dataset import AvatarDataset
    assert imagined_avatars(0, 3) == [AvatarDataset(data).attributes(i) for i in range(3)]
    assert checkpoints.load_tensors(f"{data}/shard-00000.safetensors")[0]["points"].shape[0] == 3
