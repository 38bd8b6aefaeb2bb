"""The diffusion over z: it learns a distribution, follows the text, and a sample depends on its own seed alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rodin_model import checkpoints
from rodin_model.avatars.attributes import sample_attributes
from rodin_model.latent_prior import LatentPrior, cosine_alpha_bars
from rodin_model.train import prior as command
from rodin_model.train import words
from rodin_model.train.prior import PriorTrainer, Settings
from rodin_model.train.words import encode_words


def seeds(count: int, start: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(start + i) for i in range(count)]


def test_the_schedule_falls_from_signal_to_noise() -> None:
    bars = cosine_alpha_bars()
    assert bars.shape == (1000,)
    assert (bars[1:] < bars[:-1]).all()
    assert bars[0] > 0.9999
    assert 0 < bars[-1] < 1e-4
    assert float(bars[499]) == pytest.approx(0.4923, abs=2e-3)


def two_clusters(noise: float = 0.02) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures' z in two clusters, texts that tell which: [64, 1, 512] each, and the centres [2, 512]."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(4, 512, generator=generator), dim=-1)
    which = torch.arange(64) % 2
    image = F.normalize(centres[which] + noise * torch.randn(64, 512, generator=generator), dim=-1)
    return image[:, None], centres[2:][which][:, None], centres


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[LatentPrior, torch.Tensor]:
    image, text, centres = two_clusters()
    settings = Settings(steps=150, batch=64, learning_rate=3e-3, average=0.9)
    prior = PriorTrainer(tmp_path_factory.mktemp("prior"), settings, image, text, LatentPrior(64, 2)).run()
    return prior, centres


def test_free_samples_cover_both_clusters(trained: tuple[LatentPrior, torch.Tensor]) -> None:
    prior, centres = trained
    z = prior.sample(seeds(32))
    assert z.shape == (32, 512)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(32))
    likeness = z @ centres[:2].T
    assert likeness.amax(1).mean() > 0.8
    assert 4 <= int(likeness.argmax(1).sum()) <= 28


def test_texts_choose_the_cluster(trained: tuple[LatentPrior, torch.Tensor]) -> None:
    prior, centres = trained
    asked = torch.arange(16) % 2
    for scale in (1.0, 2.0):
        z = prior.sample(seeds(16), centres[2:][asked], guidance_scale=scale)
        assert torch.equal((z @ centres[:2].T).argmax(1), asked)


def test_a_sample_depends_on_its_own_seed_alone(trained: tuple[LatentPrior, torch.Tensor]) -> None:
    prior, _ = trained
    together, alone = prior.sample(seeds(3), steps=5), prior.sample(seeds(1, 2), steps=5)
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    image, text, _ = two_clusters()
    settings = Settings(steps=6, batch=8)

    def trainer(name: str) -> PriorTrainer:
        torch.manual_seed(1)
        return PriorTrainer(tmp_path / name, settings, image, text, LatentPrior(16, 1))

    trainer("whole").run()
    trainer("parts").run(until=2)
    trainer("parts").run(until=5)
    trainer("parts").run()
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_state_of_another_size_does_not_resume(tmp_path: Path) -> None:
    image, text, _ = two_clusters()
    PriorTrainer(tmp_path, Settings(steps=2, batch=4), image, text, LatentPrior(16, 1)).run(until=1)
    with pytest.raises(ValueError, match="shape"):
        PriorTrainer(tmp_path, Settings(steps=2, batch=4), image, text, LatentPrior(32, 1))


def test_saved_priors_read_back(trained: tuple[LatentPrior, torch.Tensor], tmp_path: Path) -> None:
    prior, _ = trained
    prior.save(tmp_path)
    again = LatentPrior.from_folder(tmp_path)
    torch.testing.assert_close(again.sample(seeds(2), steps=5), prior.sample(seeds(2), steps=5), rtol=0, atol=2e-2)


@pytest.mark.parametrize(("change", "words"), [({"kind": "towers"}, "latent prior"), ({"width": 7}, "even"),
                                               ({"blocks": 10**9}, "blocks"), ({"more": 1}, "latent prior")])
def test_bad_settings(tmp_path: Path, change: dict, words: str) -> None:
    LatentPrior(16, 1).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=words):
        LatentPrior.from_folder(tmp_path)


def test_bad_requests() -> None:
    prior = LatentPrior(16, 1)
    with pytest.raises(ValueError, match="generators is empty"):
        prior.sample([])
    with pytest.raises(ValueError, match=r"text_z must be \[2, 512\]"):
        prior.sample(seeds(2), torch.zeros(1, 512))
    with pytest.raises(ValueError, match="steps must lie"):
        prior.sample(seeds(1), steps=0)
    with pytest.raises(ValueError, match="same avatars"):
        PriorTrainer("unused", Settings(), torch.zeros(2, 1, 512), torch.zeros(3, 1, 512), prior)


def test_a_prior_of_words_alone_needs_no_pictures(tiny_model_dir: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--towers", str(tiny_model_dir / "towers"), "--output", str(tmp_path / "prior"), "--steps", "3",
                 "--batch", "4", "--looks", "1", "--captions", "2"]
    assert command.main([*arguments, "--words", "6"]) == 0
    latents, _ = checkpoints.load_tensors(tmp_path / "prior" / "state" / "latents.safetensors")
    assert (latents["image"].shape, latents["text"].shape) == ((6, 1, 512), (6, 2, 512))
    full, part = latents["image"], latents["text"]
    assert float((full * part).sum(-1).mean()) > float((full * part.roll(1, 0)).sum(-1).mean())
    assert LatentPrior.from_folder(tmp_path / "prior").sample(seeds(2), part[:2, 0]).shape == (2, 512)
    for wrong in ([], ["--words", "6", "--data", "some"]):
        assert command.main([*arguments, *wrong]) == 2
        assert "one of --data and --words" in capsys.readouterr().err


def test_captions_are_encoded_alike_by_any_number_of_processes(tiny_model_dir: Path, monkeypatch) -> None:
    avatars = [sample_attributes(3), 4, 5, 6, 7]
    whole = encode_words(tiny_model_dir / "towers", avatars, (1.0, None), seed=(1, 2))
    assert whole.shape == (5, 2, 512) and whole.dtype == torch.float16
    assert torch.equal(whole, encode_words(tiny_model_dir / "towers", [3, 4, 5, 6, 7], (1.0, None), seed=(1, 2)))
    monkeypatch.setattr(words, "CHUNK", 2)
    parts = encode_words(tiny_model_dir / "towers", avatars, (1.0, None), seed=(1, 2), workers=2)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-3)  # other texts beside it pad a text differently
    assert encode_words(tiny_model_dir / "towers", [], (None,)).shape == (0, 1, 512)
