"""Fitting on toy avatars (one coloured ball each): losses, draws, the three stages, and runs that are cut short."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rodin_model import checkpoints
from rodin_model.cameras import Camera, box_near_far
from rodin_model.config import PRESETS, NoiseConfig, PlanesConfig, PrincipalConfig, UNetConfig
from rodin_model.decoder import load_decoder
from rodin_model.diffusion import BaseDiffusion
from rodin_model.fit import (
    WITHIN,
    FitConfig,
    JointTrainer,
    LossConfig,
    StageConfig,
    coarse_start,
    conventions,
    enlarge,
    fine_start,
    fit_planes,
    fit_within,
    picture_loss,
    plane_loss,
    point_loss,
    rescale,
)
from rodin_model.fit_data import Cloud, Views, draw_points, draw_rays, ray_depths
from rodin_model.metrics import psnr
from rodin_model.principal import principal_components
from rodin_model.train import fit as command
from rodin_model.train.denoiser import statistics
from rodin_model.triplane import Avatar

SIZE = 24
TINY = FitConfig(planes=PlanesConfig(channels=4, resolution=16, coarse_resolution=8), decoder_hidden=(16, 16),
                 joint=StageConfig(60, 1024, 0.05), coarse=StageConfig(30, 1024, 0.08),
                 fine=StageConfig(30, 1024, 0.03, rays=128, first_ray=8, samples=12), joint_avatars=2,
                 joint_decoder_rate=5e-3, losses=LossConfig(tv=0.05, l2=0.002))


def ball(number: int) -> tuple[float, Tensor]:
    """Radius and colour of toy avatar `number`."""
    random = torch.Generator().manual_seed(100 + number)
    return 0.45 + 0.2 * float(torch.rand(1, generator=random)), torch.rand(3, generator=random)


def toy_cloud(numbers: range, count: int = 3000) -> Cloud:
    parts = []
    for number in numbers:
        radius, color = ball(number)
        random = torch.Generator().manual_seed(number)
        direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=-1)
        near = direction * (radius + 0.05 * torch.randn(count, 1, generator=random))
        points = torch.where(torch.arange(count)[:, None] < count // 2,
                             torch.rand(count, 3, generator=random) * 2 - 1, near).clamp(-1, 1)
        parts.append((points, points.norm(dim=-1) - radius, (color * 255).to(torch.uint8).expand(count, 3)))
    return Cloud(*(torch.stack(column) for column in zip(*parts, strict=True)))


def toy_views(numbers: range, count: int = 4) -> Views:
    parts = []
    for number in numbers:
        radius, color = ball(number)
        for view in range(count):
            camera = Camera.orbit(50.0 * view, 10.0, SIZE)
            origins, directions = camera.rays()
            middle = -(origins * directions).sum(-1)
            inside = radius**2 - (origins.square().sum(-1) - middle.square())
            hit = inside > 0
            depth = torch.where(hit, middle - inside.clamp_min(0).sqrt(), 0.0)
            rgb = torch.where(hit[:, None], color, 1.0)
            parts.append(((rgb * 255).to(torch.uint8).view(SIZE, SIZE, 3), (hit * 255).to(torch.uint8).view(SIZE, SIZE),
                          depth.view(SIZE, SIZE), camera.cam2world, camera.intrinsics()))
    return Views(*(torch.stack(c).unflatten(0, (len(numbers), count)) for c in zip(*parts, strict=True)))


def toy_data(folder: Path, shards: int = 2, avatars: int = 2) -> None:
    for shard in range(shards):
        numbers = range(shard * command.SHARD, shard * command.SHARD + avatars)
        cloud, views = toy_cloud(numbers), toy_views(numbers)
        alpha = views.alpha[..., None]
        images = torch.cat([torch.where(alpha > 0, views.rgb, 0), alpha], -1)
        checkpoints.save_tensors(folder / f"shard-{shard:05d}.safetensors", {
            "points": cloud.points.half(), "distance": cloud.distance.half(), "color": cloud.color, "images": images,
            "depth": views.depth.half(), "cam2world": views.cam2world, "intrinsics": views.intrinsics})


@pytest.fixture(scope="module")
def trained() -> JointTrainer:
    """A decoder and a mean that have seen three toy avatars."""
    trainer, cloud = JointTrainer(3, TINY, seed=1), toy_cloud(range(3))
    for _ in range(TINY.joint.steps):
        trainer.train_step(cloud)
    return trainer


@pytest.fixture(scope="module")
def folders(trained: JointTrainer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A toy data set and a decoder folder."""
    folder = tmp_path_factory.mktemp("fit")
    toy_data(folder / "data")
    learned = trained.result()
    command.save_decoder(folder / "decoder", learned.decoder, learned.mean, conventions(TINY.planes))
    return folder / "data", folder / "decoder"


def run(verb: str, output: Path, data: Path, decoder: Path, *more: str) -> None:
    folders = ["--data", str(data), "--output", str(output), "--decoder", str(decoder)]
    command.main([verb, *folders, "--count", "32", *more])


def view_score(planes: Tensor, trained: JointTrainer, views: Views) -> float:
    avatar = Avatar(planes, trained.decoder, **conventions(TINY.planes))
    seen = avatar.render(command.camera_of(views, 0, -1), num_samples=48).rgb
    return float(psnr(seen, views.rgb[0, -1].float() / 255))


def test_a_draw_depends_on_its_own_key_alone() -> None:
    cloud, views = toy_cloud(range(2)), toy_views(range(2))
    both = draw_points(cloud, 5, [(1, 0), (1, 1)])
    own = draw_points(Cloud(*(part[1:] for part in cloud)), 5, [(1, 1)])
    for together, alone in zip(both, own, strict=True):
        assert torch.equal(together[1:], alone)
    depths = ray_depths(views)
    rays = draw_rays(views, depths, 8, 6, [(1, 0), (1, 1)])
    single = draw_rays(Views(*(part[1:] for part in views)), depths[1:], 8, 6, [(1, 1)])
    for together, alone in zip(rays, single, strict=True):
        assert torch.equal(together[1:], alone)


def test_the_share_of_far_points_is_what_was_asked_for() -> None:
    cloud = toy_cloud(range(1))
    for share in (0.0, 0.25, 0.75):
        drawn = draw_points(cloud, 400, [(3,)], share)
        assert int((drawn.distance.abs() > 0.1).sum()) == int(400 * share)
    near = Cloud(*(part[:, (cloud.distance[0].abs() < 0.1).nonzero()[:, 0]] for part in cloud))
    assert draw_points(near, 8, [(3,)]).points.shape == (1, 8, 3)


def test_rays_are_those_of_the_camera_and_their_samples_ascend_inside_the_box() -> None:
    views = toy_views(range(1), 1)
    rays = draw_rays(views, ray_depths(views), 64, 12, [(0,)])
    origins, directions = command.camera_of(views, 0, 0).rays()
    nearest = (rays.directions[0] @ directions.T).amax(-1)
    torch.testing.assert_close(nearest, torch.ones(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(rays.origins[0], origins[:64])
    near, far = box_near_far(rays.origins, rays.directions)
    assert bool((rays.t.diff(dim=-1) >= 0).all())
    assert bool((rays.t >= near[..., None] - 1e-5).all())
    assert bool((rays.t <= far[..., None] + 1e-5).all())
    assert 0.35 < float(rays.alpha.mean()) < 0.95


def test_the_point_loss_prefers_the_truth_and_sees_haze() -> None:
    losses = LossConfig()
    cloud = Cloud(torch.zeros(1, 4, 3), torch.tensor([[-0.1, -0.02, 0.1, 0.8]]), torch.full((1, 4, 3), 0.5))
    true = torch.tensor([[190.0, 190.0, 1e-4, 1e-4]])
    color = torch.full((1, 4, 3), 0.5)
    best = point_loss(true, color, cloud, losses)
    hazy = point_loss(true + torch.tensor([[0, 0, 0, 0.5]]), color, cloud, losses)
    hollow = point_loss(true * torch.tensor([[0.1, 1, 1, 1]]), color, cloud, losses)
    faded = point_loss(true, color + torch.tensor([0, 0.3, 0, 0])[None, :, None], cloud, losses)
    far_color = point_loss(true, color + torch.tensor([0, 0, 0, 0.3])[None, :, None], cloud, losses)
    assert all(float(worse) > float(best) + 0.01 for worse in (hazy, hollow, faded))
    torch.testing.assert_close(far_color, best)


def test_the_plane_loss_is_its_formula_with_its_gradient() -> None:
    planes = torch.randn(2, 3, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    start, losses = torch.randn(2, 3, 2, 5, 5, dtype=torch.float64), LossConfig(tv=0.3, l2=0.7)
    slopes = planes.diff(dim=-1).square().sum((1, 2, 3, 4)) + planes.diff(dim=-2).square().sum((1, 2, 3, 4))
    expected = 0.3 * slopes / 150 * (5 / 32) ** 2 + 0.7 * (planes - start).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(plane_loss(planes, start, losses), expected)
    assert torch.autograd.gradcheck(lambda p: plane_loss(p, start, losses), [planes])


def test_planes_change_size_without_changing_what_they_say() -> None:
    random = torch.Generator().manual_seed(0)
    planes = torch.randn(2, 3, 4, 16, 16, generator=random)
    torch.testing.assert_close(rescale(planes, 8)[..., 0, 0], planes[..., :2, :2].mean((-2, -1)))
    assert rescale(planes, 16) is planes
    flat = torch.full((1, 3, 4, 16, 16), 0.3)
    for size in (8, 11, 13):
        torch.testing.assert_close(rescale(flat, size), torch.full((1, 3, 4, size, size), 0.3))
    coarse = coarse_start(planes[0], 8)
    torch.testing.assert_close(fine_start(planes[0], coarse[None])[0], planes[0])
    assert enlarge(planes, 32).shape == (2, 3, 4, 32, 32)


def test_one_decoder_reads_planes_of_every_size(trained: JointTrainer) -> None:
    views = toy_views(range(1))
    planes = trained.planes([0], 16)[0].detach()
    scores = [view_score(rescale(planes, size)[0], trained, views) for size in (16, 13, 11, 8)]
    assert min(scores) > 17, scores
    assert min(scores) > view_score(torch.zeros(3, 4, 16, 16), trained, views) + 3


def test_fitting_makes_pictures_better(trained: JointTrainer) -> None:
    cloud, views = toy_cloud(range(1, 2)), toy_views(range(1, 2))
    seen = Views(*(part[:, :-1] for part in views))
    mean = trained.result().mean
    start = coarse_start(mean, 8)[None]
    coarse = fit_planes(start, trained.decoder, cloud, TINY.coarse, TINY, [1])
    fine = fit_planes(fine_start(mean, coarse), trained.decoder, cloud, TINY.fine, TINY, [1], views=seen)
    unseen = [view_score(planes[0], trained, views) for planes in (start, coarse, fine)]
    assert unseen[0] + 1.5 < min(unseen[1:]), unseen
    rays = draw_rays(seen, ray_depths(seen), 400, 16, [(9,)])
    coarse_loss, fine_loss = (float(picture_loss(p, trained.decoder, rays, TINY).detach()) for p in (coarse, fine))
    assert fine_loss < 0.9 * coarse_loss, (coarse_loss, fine_loss)
    assert float(fine.abs().max()) <= TINY.losses.bound


def test_planes_within_components_are_theirs_and_resemble_the_avatars(trained: JointTrainer) -> None:
    learned = trained.result()
    principal = PrincipalConfig(components=len(learned.coarse) - 1, resolution=8, width=8, blocks=1, embedding=8)
    unet = UNetConfig(resolution=8, in_channels=8, out_channels=4, channels=8, channel_mult=(1,), blocks=(1,),
                      embedding=8, groups=4)
    base = BaseDiffusion(unet, NoiseConfig(steps=10), 4, principal).requires_grad_(False)
    assert base.principal is not None
    base.set_statistics(*statistics(learned.coarse))
    base.principal.set_components(*principal_components(base.normalize(learned.coarse), principal))
    cloud, stage = toy_cloud(range(2)), dataclasses.replace(WITHIN, steps=40, points=1024, rays=0)
    both = fit_within(base, learned.decoder, cloud, TINY, [0, 1], stage=stage)
    own = fit_within(base, learned.decoder, Cloud(*(part[1:] for part in cloud)), TINY, [1], stage=stage)
    torch.testing.assert_close(both[1:], own, atol=1e-4, rtol=0)
    normal = base.normalize(both)
    said = (base.principal.numbers(normal) @ base.principal.span().T).view_as(normal)
    torch.testing.assert_close(said, normal, atol=1e-3, rtol=1e-3)

    away = torch.cdist(both.flatten(1), learned.coarse.flatten(1))  # each is nearest to what the joint fit made of it
    assert away.argmin(1).tolist() == [0, 1], away
    with pytest.raises(ValueError, match="no principal components"):
        fit_within(BaseDiffusion(unet, NoiseConfig(steps=10), 4), learned.decoder, cloud, TINY, [0, 1])


def test_an_avatar_does_not_depend_on_its_batch_nor_the_decoder_on_a_fit(trained: JointTrainer) -> None:
    cloud, start = toy_cloud(range(2)), coarse_start(trained.result().mean, 8)[None]
    before = {name: value.clone() for name, value in trained.decoder.state_dict().items()}
    both = fit_planes(start.expand(2, -1, -1, -1, -1), trained.decoder, cloud, TINY.coarse, TINY, [0, 1])
    own = fit_planes(start, trained.decoder, Cloud(*(part[1:] for part in cloud)), TINY.coarse, TINY, [1])
    torch.testing.assert_close(both[1], own[0], atol=1e-3, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in trained.decoder.state_dict().items())
    assert all(p.requires_grad for p in trained.decoder.parameters())


def test_the_joint_stage_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cloud = toy_cloud(range(3))
    straight, first = JointTrainer(3, TINY, seed=2), JointTrainer(3, TINY, seed=2)
    for _ in range(6):
        straight.train_step(cloud)
    for _ in range(3):
        first.train_step(cloud)
    checkpoints.save_state(tmp_path, first.step, first.state())
    step, tensors, _ = checkpoints.load_state(tmp_path) or (0, {}, {})
    second = JointTrainer(3, TINY, seed=2)
    second.load_state(tensors, step)
    for _ in range(3):
        second.train_step(cloud)
    assert second.step == straight.step == 6
    for name, value in straight.state().items():
        assert torch.equal(value, second.state()[name]), name


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
        folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FitConfig", lambda **sizes: TINY)
    run("coarse", tmp_path / "straight", *folders, "--evaluate", "0")
    real, calls = checkpoints.save_tensors, []

    def failing(path: Path, *args: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(path, *args)

    monkeypatch.setattr(checkpoints, "save_tensors", failing)
    with pytest.raises(KeyboardInterrupt):
        run("coarse", tmp_path / "cut", *folders, "--evaluate", "0")
    assert [path.name for path in (tmp_path / "cut").glob("*.safetensors")] == ["planes-00000.safetensors"]
    monkeypatch.setattr(checkpoints, "save_tensors", real)
    stamp = (tmp_path / "cut" / "planes-00000.safetensors").stat().st_mtime_ns
    run("coarse", tmp_path / "cut", *folders, "--evaluate", "0")
    assert (tmp_path / "cut" / "planes-00000.safetensors").stat().st_mtime_ns == stamp
    for name in ("planes-00000.safetensors", "planes-00001.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_the_stages_follow_each_other_on_disk(
        folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FitConfig", lambda **sizes: TINY)
    for worker in ("0/2", "1/2"):
        run("coarse", tmp_path / "coarse", *folders, "--worker", worker)
    run("fine", tmp_path / "fine", *folders, "--coarse", str(tmp_path / "coarse"), "--steps", "10")
    planes, avatars = command.load_planes(tmp_path / "fine", 1)
    assert planes.shape == (2, 3, 4, 16, 16)
    assert avatars.tolist() == [16, 17]
    _, header = checkpoints.load_tensors(tmp_path / "fine" / "planes-00001.safetensors")
    about = json.loads(header["rodin"])
    assert about["layout"] == ["xy", "zx", "yz"]
    assert about["align_corners"] is False
    assert len(about["decoder_sha256"]) == 64
    lines = [json.loads(line) for line in (tmp_path / "fine" / "stats.jsonl").read_text().splitlines()]
    assert [line["avatar"] for line in lines] == [0, 16]
    assert all(line["psnr"] > 10 for line in lines)
    assert len(list((tmp_path / "fine" / "sheets").glob("*.png"))) == 2


def test_the_joint_command_writes_a_decoder(folders: tuple[Path, Path], tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FitConfig", lambda **sizes: TINY)
    command.main(["joint", "--data", str(folders[0]), "--output", str(tmp_path), "--count", "32", "--steps", "4",
                  "--save-every", "2"])
    decoder, mean, facts = load_decoder(tmp_path)
    assert decoder.choices.density == TINY.density
    assert mean.shape == (3, 4, 16, 16)
    assert facts["avatars"] == 4
    assert facts["padding_mode"] == "zeros"


def test_what_does_not_exist_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no shards for avatars 0 to 95"):
        command.main(["joint", "--data", str(tmp_path), "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="multiple of 16"):
        command.main(["joint", "--data", str(tmp_path), "--output", str(tmp_path), "--first", "3"])


def test_the_preset_sets_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[FitConfig] = []
    monkeypatch.setattr(command, "run_planes", lambda args, config: seen.append(config))
    for preset in ("mini", "rodin"):
        command.main(["coarse", "--preset", preset, "--data", "d", "--output", "o", "--decoder", "e", "--steps", "7"])
    assert [config.planes for config in seen] == [PRESETS[name].planes for name in ("mini", "rodin")]
    assert [config.decoder_hidden for config in seen] == [(64, 64), (128, 128)]
    assert {config.coarse.steps for config in seen} == {7}


def test_one_generator_draws_for_all_avatars() -> None:
    cloud, views = toy_cloud(range(3)), toy_views(range(3))
    count = len(cloud.points)
    drawn = draw_points(cloud, 300, torch.Generator().manual_seed(1), 0.3, 0.2)
    assert drawn.points.shape == (count, 300, 3)
    assert (drawn.distance[:, :90].abs() > 0.1).all() and (drawn.distance[:, 90:].abs() <= 0.1).all()
    for part, again in zip(drawn, draw_points(cloud, 300, torch.Generator().manual_seed(1), 0.3, 0.2), strict=True):
        assert torch.equal(part, again)
    rays = draw_rays(views, ray_depths(views), 40, 6, torch.Generator().manual_seed(2))
    assert rays.t.shape == (count, 40, 6) and (rays.t.diff(dim=-1) >= 0).all()
    # three quarters go through or beside the avatar
    assert float(rays.alpha[:, :30].mean()) > 1.3 * float(views.alpha.float().mean()) / 255
