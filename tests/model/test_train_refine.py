"""Training the refiner: pairs, the same weights whether or not the run was stopped, and losses that fall."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rodin_model import checkpoints
from rodin_model.config import PRESETS, RefinerConfig
from rodin_model.pipeline import RodinPipeline
from rodin_model.refiner import Refiner, enlarge
from rodin_model.towers import Towers, TowersConfig
from rodin_model.train import pairs as making
from rodin_model.train import refine
from rodin_model.train.pace import Pace
from rodin_model.train.pairs import FORMAT, PairMaker, Pairs, PairSettings, upsampled
from rodin_model.train.patches import ResidentPairs, cut
from rodin_model.train.refine import (
    Critic,
    FeatureDistance,
    RefineSettings,
    RefineTrainer,
    critic_loss,
    draw,
    measure,
    mottled,
)

CONFIG = RefinerConfig(features=2, width=8, growth=4, dense=1, detail=8)
SETTINGS = RefineSettings(steps=6, batch=2, patch=16, warmup=1, critic_from=0.5, adversarial=0.01)


def make_refiner() -> Refiner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Refiner(CONFIG)


def distance() -> FeatureDistance:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return FeatureDistance(Towers(TowersConfig(image_widths=(4, 6, 8))).image.face)


def toy(size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What is seen of a disc with a hard edge at half the size, blurred, and the disc: a refiner can sharpen it."""
    x = (torch.arange(2 * size) + 0.5) / size - 1
    middle = torch.from_numpy(rng.uniform(-0.3, 0.3, 2)).float()
    radius = ((x[None] - middle[0]) ** 2 + (x[:, None] - middle[1]) ** 2).sqrt()
    alpha = (radius < 0.55).float()
    truth = torch.stack([alpha * c for c in (*rng.uniform(0.2, 0.9, 3), 1.0)]).float()
    small = torch.nn.functional.avg_pool2d(truth[None], 2)
    small = torch.nn.functional.avg_pool2d(small, 5, 1, 2)[0]
    return torch.cat([small, small[3:] * 0.5, torch.zeros(2, size, size)]), truth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of toy pictures in two files."""
    place, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(5)
    for number in range(2):
        both = [toy(24, rng) for _ in range(2)]
        checkpoints.save_tensors(place / f"pair-{number:06d}.safetensors", {
            "seen": torch.stack([seen for seen, _ in both]).half(),
            "truth": torch.stack([(truth * 255).round().to(torch.uint8) for _, truth in both])}, {"format": FORMAT})
    return place


def test_pairs_are_read_by_the_piece(folder: Path) -> None:
    pairs = Pairs([folder])
    assert (len(pairs), pairs.channels, pairs.height, pairs.width, pairs.scale) == (4, 7, 24, 24, 2)
    seen, truth = pairs.read(3)
    part, its = pairs.read(3, 5, 7, 8)
    assert torch.equal(part, seen[:, 5:13, 7:15]) and torch.equal(its, truth[:, 10:26, 14:30])
    assert seen.dtype == truth.dtype == torch.float32 and float(truth.min()) >= 0 and float(truth.max()) == 1
    with pytest.raises(FileNotFoundError, match="rodin_model.train.pairs"):
        Pairs([folder / "nothing"])


def drawn_together(pairs: Pairs | ResidentPairs, settings: RefineSettings) -> torch.Tensor:
    """What is seen in the batch of step 3, after a check that it follows from its step and keeps pairs together."""
    (a, b), (c, d), (e, _) = (draw(pairs, settings, step) for step in (3, 3, 4))
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, e)
    assert a.shape == (8, 7, 16, 16) and b.shape == (8, 4, 32, 32)
    near = torch.nn.functional.avg_pool2d(b, 2)
    assert float((near[:, 3] - a[:, 3]).abs().mean()) < 0.15
    assert float((near[:, 3].flip(-1) - a[:, 3]).abs().mean()) > 0.2
    return a


def test_a_batch_follows_from_its_step_and_keeps_pairs_together(folder: Path) -> None:
    drawn_together(Pairs([folder]), dataclasses.replace(SETTINGS, batch=8, mottle=0.0))


def test_mottling_leaves_geometry_and_emptiness_alone() -> None:
    seen = torch.rand(7, 16, 16) * 0.5 + 0.2
    seen[:, :8] = 0
    out = mottled(seen, 0.05, 4, torch.Generator().manual_seed(0))
    assert torch.equal(out[3:5], seen[3:5]) and torch.equal(out[:, :8], seen[:, :8])
    assert 0.005 < float((out - seen)[:3, 8:].abs().mean()) < 0.1


def test_a_resumed_run_reaches_the_same_weights(folder: Path, tmp_path: Path) -> None:
    pairs = Pairs([folder])
    whole = RefineTrainer(tmp_path / "whole", make_refiner(), pairs, SETTINGS, distance())
    whole.run()
    for until in (2, 4):
        RefineTrainer(tmp_path / "parts", make_refiner(), pairs, SETTINGS, distance()).run(until)
    resumed = RefineTrainer(tmp_path / "parts", make_refiner(), pairs, SETTINGS, distance())
    assert resumed.step == 4
    resumed.run()
    for part in ("refiner", "critic", "average"):
        mine = getattr(resumed, part).state_dict()
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, mine[name]), (part, name)
    assert (tmp_path / "whole/model/model.safetensors").read_bytes() == (
        tmp_path / "parts/model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="other settings"):
        RefineTrainer(tmp_path / "parts", make_refiner(), pairs, dataclasses.replace(SETTINGS, mottle=0.3), distance())


def test_training_sharpens_what_was_blurred(folder: Path, tmp_path: Path) -> None:
    pairs = Pairs([folder])
    settings = dataclasses.replace(SETTINGS, steps=100, learning_rate=5e-3, batch=4, critic_from=0.7, average=0.9)
    trainer = RefineTrainer(tmp_path, make_refiner(), pairs, settings, distance())
    before = measure(trainer.average, pairs)
    assert before["psnr_refined"] == pytest.approx(before["psnr_enlarged"], abs=1e-4)
    after = measure(trainer.run(log_every=10), pairs)
    assert after["psnr_enlarged"] == before["psnr_enlarged"]
    assert after["psnr_refined"] > before["psnr_refined"] + 1.5
    assert after["ssim_refined"] > before["ssim_refined"]
    stats = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert stats[5]["pixel"] < 0.8 * stats[0]["pixel"]
    assert "critic" not in stats[0] and {"critic", "adversarial", "perceptual"} <= set(stats[-1])


def test_the_critic_learns_to_tell_sharp_from_blurred() -> None:
    torch.manual_seed(0)
    critic = Critic((8, 8))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    values = []
    for step in range(60):
        truth = (torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(step)) > 0.5).float()
        blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
        loss = critic_loss(critic, blurred, truth, blurred)
        values.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 1.9 < values[0] < 2.1 and values[-1] < 1.0


def test_the_feature_distance_sees_blur_and_trains_nothing_of_its_own() -> None:
    measured = distance()
    truth = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1).requires_grad_()
    value = measured(blurred, truth)
    value.backward()
    assert float(value.detach()) > 0.01 and float(measured(truth, truth)) == 0.0
    assert blurred.grad is not None and bool(blurred.grad.any())
    assert not [p for p in measured.parameters() if p.requires_grad]
    state = {name: t.clone() for name, t in measured.state_dict().items()}
    measured(truth, truth)
    assert all(torch.equal(t, state[name]) for name, t in measured.state_dict().items())


def test_sizes_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 times as wide .* this refiner enlarges 3 times"):
        RefineTrainer(tmp_path, Refiner(dataclasses.replace(CONFIG, scale=3)), Pairs([folder]), SETTINGS)
    with pytest.raises(ValueError, match="7 channels; this refiner reads 5"):
        RefineTrainer(tmp_path, Refiner(dataclasses.replace(CONFIG, features=0)), Pairs([folder]), SETTINGS)


def test_the_command_trains_and_explains(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(PRESETS, "mini", dataclasses.replace(PRESETS["mini"], refiner=CONFIG))
    given = ["--pairs", str(folder), "--output", str(tmp_path / "out"), "--steps", "2", "--batch", "1", "--patch", "8"]
    assert refine.main([*given, "--held-out", str(folder)]) == 0
    assert "psnr_refined" in capsys.readouterr().out
    assert Refiner.from_folder(tmp_path / "out/model").config == CONFIG
    assert refine.main([*given, "--preset", "rodinhd"]) == 2
    assert "the preset rodinhd has no refiner" in capsys.readouterr().err


def test_pairs_show_the_same_avatar(tiny_model_dir: Path, tmp_path: Path) -> None:
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    planes = dataclasses.replace(PRESETS["mini"].planes, channels=4, resolution=16, coarse_resolution=8)
    settings = PairSettings(views=2, size=24)
    maker = PairMaker(pipe.decoder, pipe.base.mean, planes, settings, pipe)
    coarse, fine = pipe.base.mean, pipe.upsampler.mean
    made, again = (maker.make(3, coarse, fine) for _ in range(2))
    assert made["seen"].shape == (2, 9, 24, 24) and made["truth"].shape == (2, 4, 48, 48)
    assert all(torch.equal(made[name], again[name]) for name in made)
    truth = made["truth"].float() / 255
    assert 0.1 < float(truth[:, 3].mean()) < 0.9
    assert bool((truth[:, :3] <= truth[:, 3:] + 0.01).all())
    shown = enlarge(made["seen"][:, 3:4].float(), 2)
    assert float((shown * truth[:, 3:]).sum()) > 0.5 * float(shown.sum())
    other = maker.make(4, coarse, fine)
    assert not torch.equal(other["truth"], made["truth"])


def test_pairs_of_another_recipe_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = PRESETS["mini"].planes
    from rodin_model.decoder import new_decoder, save_decoder
    from rodin_model.fit import conventions

    decoder = new_decoder({"in_features": 16, "hidden": [8], "density": "trunc_exp"})
    save_decoder(tmp_path / "decoder", decoder, torch.zeros(3, 16, 32, 32), conventions(config))
    for name, size in (("coarse", 32), ("fine", 128)):
        checkpoints.save_tensors(tmp_path / name / "planes-00000.safetensors", {
            "planes": torch.randn(1, 3, 16, size, size).half(), "avatars": torch.tensor([7])})
    given = ["--coarse", str(tmp_path / "coarse"), "--fine", str(tmp_path / "fine"), "--decoder",
             str(tmp_path / "decoder"), "--output", str(tmp_path / "pairs"), "--views", "1", "--size", "12"]
    assert making.main(given) == 0
    file = tmp_path / "pairs/pair-000007.safetensors"
    before = file.stat().st_mtime_ns
    assert making.main(given) == 0 and file.stat().st_mtime_ns == before
    assert making.main([*given, "--seed", "1"]) == 2
    assert "choose another folder" in capsys.readouterr().err


def test_pairs_in_memory_are_drawn_like_those_in_files(folder: Path) -> None:
    pairs, settings = ResidentPairs([folder], "cpu"), dataclasses.replace(SETTINGS, batch=8, mottle=0.0)
    assert (len(pairs), pairs.channels, pairs.height, pairs.width, pairs.scale) == (4, 7, 24, 24, 2)
    a = drawn_together(pairs, settings)
    mottled_too, _ = draw(pairs, dataclasses.replace(settings, mottle=0.3), 3)
    assert torch.equal(mottled_too[:, 3:5], a[:, 3:5])
    changed = (mottled_too - a)[:, :3].abs().amax((1, 2, 3)) > 0
    assert 0 < int(changed.sum()) < 8


def test_a_piece_is_cut_where_it_is_asked_for_and_mirrored(folder: Path) -> None:
    pairs = Pairs([folder])
    kept = ResidentPairs([folder], "cpu")
    at = {"which": torch.tensor([3, 1]), "top": torch.tensor([5, 2]), "left": torch.tensor([7, 0])}
    found = cut(kept.seen, **at, flip=torch.tensor([False, True]), size=8)
    assert torch.equal(found[0].float(), pairs.read(3, 5, 7, 8)[0])
    assert torch.equal(found[1].float(), pairs.read(1, 2, 0, 8)[0].flip(-1))


def test_pairs_in_memory_train_until_time_is_up(folder: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, steps=1_000_000)
    trainer = RefineTrainer(tmp_path, make_refiner(), ResidentPairs([folder], "cpu"), settings, distance(),
                            pace=Pace(settings.steps, 0.03))
    trainer.run(save_every=1_000_000)
    assert 0 < trainer.step < settings.steps
    assert Refiner.from_folder(tmp_path / "model").config == CONFIG
    assert trainer.judged


def test_without_fine_planes_the_models_own_are_taken(tiny_model_dir: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    planes = dataclasses.replace(PRESETS["mini"].planes, channels=4, resolution=16, coarse_resolution=8)
    monkeypatch.setitem(PRESETS, "mini", dataclasses.replace(PRESETS["mini"], planes=planes))
    checkpoints.save_tensors(tmp_path / "coarse/planes-00000.safetensors", {
        "planes": pipe.base.mean.expand(3, -1, -1, -1, -1).half().contiguous(), "avatars": torch.arange(3)})
    given = ["--coarse", str(tmp_path / "coarse"), "--output", str(tmp_path / "pairs"), "--views", "1", "--size", "12"]
    assert making.main(given) == 2
    assert making.main([*given, "--model", str(tiny_model_dir), "--avatars", "2"]) == 0
    pairs = Pairs([tmp_path / "pairs"])
    assert (len(pairs), pairs.channels, pairs.scale) == (2, 9, 2)
    assert making.main([*given, "--model", str(tiny_model_dir), "--minutes", "1e-6"]) == 0
    assert len(Pairs([tmp_path / "pairs"])) == 2


def test_one_step_of_the_upsampler_needs_no_scheduler(tiny_model_dir: Path) -> None:
    pipe = RodinPipeline.from_pretrained(tiny_model_dir)
    if pipe.upsampler.noise.prediction != "sample":
        pytest.skip("the tiny upsampler does not predict planes")
    z, coarse = torch.nn.functional.normalize(torch.ones(1, 512), dim=-1), pipe.base.mean[None]
    pipe.index = dataclasses.replace(pipe.index, upsampler_steps=1)
    found = upsampled(pipe, coarse, z, torch.Generator().manual_seed(3))
    wanted = pipe.upsampler.sample(coarse, z, generators=[torch.Generator().manual_seed(3)], steps=1)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
