"""The cascade behind one call: words, a portrait or noise to z, z to coarse planes, coarse planes to an avatar."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from rodin_model import editing
from rodin_model.budget import load_part
from rodin_model.clearing import cleared
from rodin_model.conditioning import Conditioner, TowerConditioner
from rodin_model.config import LATENT_SIZE, from_dict
from rodin_model.decoder import load_decoder, save_decoder
from rodin_model.diffusion import BaseDiffusion, Progress, sample_noise
from rodin_model.files import read_json, write_json
from rodin_model.latent_prior import LatentPrior
from rodin_model.looking import Names, drawings, drawn_again, feedback_of, likeness, nearest
from rodin_model.matching import closer
from rodin_model.model_index import INDEX_FILE, ModelIndex, find_model
from rodin_model.prompts import check_prompt
from rodin_model.provenance import SOURCE_TYPE, software
from rodin_model.refiner import Refiner
from rodin_model.regions import named_attributes
from rodin_model.requests import PORTRAIT_SIZE, checked_images, checked_prompts
from rodin_model.seeds import candidate_seed, noise_seeds, stage_generator
from rodin_model.triplane import Avatar
from rodin_model.upsampler import Upsampler

if TYPE_CHECKING:
    from rodin_kernels import TinyDecoder

#: Samples that run together: avatars on a GPU, candidates for one of them on a CPU.
BATCH = 8
#: Called after every denoising step with (pipeline, steps done in this stage, "base" or "upsampler", {"planes": ...}).
StepCallback = Callable[["RodinPipeline", int, str, dict[str, Tensor]], None]


class RodinPipelineOutput(NamedTuple):
    """What a call gives: `avatars`, in the order of prompts or portraits, those of one prompt side by side."""

    avatars: list[Avatar]


class RodinPipeline:
    """Words, a portrait or noise to 3D avatars.

    The parts are public: `conditioner` (words and pictures to z), `prior` (noise to z), `base` and `upsampler` (z to
    planes), `decoder` with `conventions` (how planes are read), `refiner` (of pictures; None in a model without one).
    `batch_size` samples run together: 1 on a CPU, so that a sample's bits do not depend on its neighbours; 8 elsewhere.
    Candidates for coarse planes share a batch as far as 8 samples go.
    """

    def __init__(self, conditioner: Conditioner, prior: LatentPrior, base: BaseDiffusion, upsampler: Upsampler,
                 decoder: TinyDecoder, conventions: dict[str, Any],
                 index: ModelIndex | None = None, refiner: Refiner | None = None) -> None:
        self.conditioner, self.prior, self.base, self.upsampler = conditioner, prior, base, upsampler
        self.decoder, self.conventions, self.refiner = decoder, conventions, refiner
        self.index = dataclasses.replace(index or ModelIndex(), refiner=refiner is not None)
        reads = decoder.choices.in_features
        if refiner is not None and refiner.config.features not in (0, reads):
            raise ValueError(f"the refiner reads {refiner.config.features} plane features; this model has {reads}")
        self.batch_size: int | None = None
        self._progress_bar: dict[str, Any] = {}
        for part in self._modules():
            part.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu",
                        conditioner: Conditioner | None = None) -> RodinPipeline:
        """Load a model: None for the one in the package, a folder, or a hub id "owner/name" (needs a network).

        `conditioner` replaces the model's towers, for models that were trained on another one, such as CLIP.
        Nothing in the folder is run as code, and what its settings ask for must agree with its tensors before memory is
        taken. Raises FileNotFoundError if there is no such model, ValueError naming what is damaged or does not fit.
        """
        folder = find_model(path)
        index = from_dict(ModelIndex, read_json(folder / INDEX_FILE))
        towers = conditioner or load_part(TowerConditioner.from_folder, folder / "towers")
        prior = load_part(LatentPrior.from_folder, folder / "prior")
        base = load_part(BaseDiffusion.from_folder, folder / "base")
        upsampler = load_part(Upsampler.from_folder, folder / "upsampler")
        decoder, _, conventions = load_part(load_decoder, folder / "decoder")
        refiner = load_part(Refiner.from_folder, folder / "refiner") if index.refiner else None
        return cls(towers, prior, base, upsampler, decoder, conventions, index, refiner).to(device)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model as `from_pretrained` reads it: one sub-folder for each part, `model_index.json` last."""
        folder = Path(folder)
        if isinstance(self.conditioner, TowerConditioner):  # others stay where they came from
            self.conditioner.save(folder / "towers")
        self.prior.save(folder / "prior")
        self.base.save(folder / "base")
        self.upsampler.save(folder / "upsampler")
        save_decoder(folder / "decoder", self.decoder, self.base.mean, self.conventions)
        if self.refiner is not None:
            self.refiner.save(folder / "refiner")
        write_json(folder / INDEX_FILE, dataclasses.asdict(self.index))

    def to(self, device: str | torch.device) -> RodinPipeline:
        """Move every part to `device`; returns the pipeline itself."""
        for part in self._modules():
            part.to(device)
        return self

    @property
    def mean(self) -> Tensor:
        """The fine planes of the average avatar [3, C, R, R], from which new ones are fitted."""
        return self.upsampler.mean

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.base.parameters()).device

    def required_refiner(self) -> Refiner:
        """The model's refiner, as `Avatar.render` takes it; ValueError if the model has none."""
        if self.refiner is None:
            raise ValueError(f"the model {self.index.name} has no refiner; rodin_model.train.refine trains one, and "
                             f"rodin_model.train.assemble --refiner adds it")
        return self.refiner

    def set_progress_bar_config(self, **options: Any) -> None:
        """Arguments for tqdm, such as `disable=True`."""
        self._progress_bar = options

    @torch.no_grad()
    def __call__(self, prompt: str | Sequence[str] | None = None, image: Any = None, *,
                 num_inference_steps: int | None = None, guidance_scale: float | None = None,
                 guidance_stop: float | None = None, upsampler_steps: int | None = None, candidates: int | None = None,
                 generator: torch.Generator | Sequence[torch.Generator] | None = None,
                 num_avatars_per_prompt: int = 1, z: Tensor | None = None, match_portrait: bool | None = None,
                 callback_on_step_end: StepCallback | None = None) -> RodinPipelineOutput:
        """Make avatars from words, portraits, latents, or (with none of them) from noise.

        Args:
            prompt: a text or a list of texts, each of at most 1000 characters.
            image: a file name, a PIL picture or a tensor [3, H, W] in [0, 1] on white, or a list of these.
            num_inference_steps, guidance_scale, guidance_stop, upsampler_steps: None for what the model's index
                recommends; for guidance see `TriplaneDiffusion.denoise`.
            candidates: of so many coarse avatars, 1 to 64, the one goes on whose front picture looks most like what was
                asked for (`looking.likeness`); None as above; from noise there is nothing to compare, one is made.
            generator: where seeds come from; one for all avatars, or one each. An avatar depends on its own seed only.
            num_avatars_per_prompt: how many avatars are made of each prompt, portrait or latent, 1 to 1000.
            z: latents [B, 512] of unit length, instead of prompt and image.
            match_portrait: whether an avatar's planes are brought closer to its portrait (`matching.closer`): None for
                portraits that the first drawing already resembles, as other renderings do and photographs do not.
            callback_on_step_end: see `StepCallback`.

        Every avatar's `metadata` holds z, its noise seed and these settings, which `edit` and `interpolate` use.
        Raises ValueError if more than one of prompt, image and z is given, or one of them cannot be used.
        """
        if sum(given is not None for given in (prompt, image, z)) > 1:
            raise ValueError("give a prompt, an image or z, not more than one of them")
        if not 1 <= num_avatars_per_prompt <= 1000:
            raise ValueError(f"num_avatars_per_prompt must lie between 1 and 1000; got {num_avatars_per_prompt}")
        if match_portrait and image is None:
            raise ValueError("match_portrait needs an image to match")
        if candidates is not None and not (isinstance(candidates, int) and 1 <= candidates <= 64):
            raise ValueError(f"candidates must be a whole number from 1 to 64; got {candidates}")
        prompts = checked_prompts(prompt)
        images = checked_images(image)
        rows = len(prompts) or len(images) or (1 if z is None else len(z))
        seeds = noise_seeds(generator, rows * num_avatars_per_prompt)
        latents = self._latents(prompts, images, z, seeds, num_avatars_per_prompt)
        facts = [{"prompt": text} if text else {} for text in prompts or [""] * rows
                 for _ in range(num_avatars_per_prompt)]
        asked = bool(prompts or images) or z is not None
        avatars = self._make(latents, seeds, facts, self._settings(num_inference_steps, guidance_scale, guidance_stop,
                                                                   upsampler_steps), callback_on_step_end,
                             (candidates or self.index.candidates) if asked else 1)
        if images and match_portrait is not False:
            avatars = [closer(avatar, images[i // num_avatars_per_prompt], always=bool(match_portrait),
                              seed=editing.seed_of(avatar), bar=self._progress_bar) for i, avatar in enumerate(avatars)]
        return RodinPipelineOutput(avatars)

    @torch.no_grad()
    def edit(self, avatar: Avatar, text: str, *, strength: float | None = None, source: str | None = None,
             num_inference_steps: int | None = None, guidance_scale: float | None = None,
             guidance_stop: float | None = None, upsampler_steps: int | None = None,
             callback_on_step_end: StepCallback | None = None) -> Avatar:
        """The same avatar with what `text` says ("blonde hair"), changed by `strength` (1: as far as the words go).

            z' = |z| normalize(z + strength d),  d = z(text) - z(source)      (after Rodin, section 3.5)

        without what d says of other attributes than those that `text` names (`editing.disentangled`). Without a
        strength it goes as far as it takes until the picture shows what was asked for (`editing.Goal`).
        `source` says what `text` is to replace ("black hair"); without it, that is read from the avatar's z if `text`
        names something known and the conditioner can do so (`editing.spoken`). The avatar's noise stays, and with it
        the person: its seed if it knows one, else the noise that `invert` finds for its planes, its z being looked up
        in its front picture. Only the part of the head that the words point to is changed (`rodin_model.regions`),
        everything if they point nowhere. Several edits follow one another. A strength of 0 changes nothing. Raises
        ValueError for an empty text, TypeError for what is no text.
        """
        text = check_prompt(text, "the edit")
        z, names = self._latent_of(avatar), named_attributes(text)
        starts, target = (editing.spoken(self.conditioner, z, text) if source is None
                          else ([check_prompt(source, "source")], text))
        wanted = self._encode_text(target)[0]
        start = torch.cat([self._encode_text(words) for words in starts]).mean(0)
        direction = editing.disentangled(self.conditioner, wanted - start, names)
        settings = self._settings(num_inference_steps, guidance_scale, guidance_stop, upsampler_steps, avatar.metadata)
        facts = {**{name: value for name, value in avatar.metadata.items() if name in ("prompt", "noise_seed")},
                 **settings, "edits": [*avatar.metadata.get("edits", []), text]}
        if strength == 0:
            return dataclasses.replace(avatar, metadata={**avatar.metadata, **facts, "z": z})
        goal = editing.Goal.of(self.conditioner, avatar, names, wanted)
        for tried in goal.strengths(self.index.edit_strength) if strength is None else [strength]:
            moved = z + tried * direction
            moved = moved * (z.norm() / moved.norm().clamp_min(1e-8))
            after = self._changed(avatar, z, moved, settings, {**facts, "z": moved, "edit_strength": tried},
                                  callback_on_step_end)
            made = after
            if editing.comparable(avatar, after):
                made = editing.composed(avatar, after, names, goal.shown, goal.read(moved),
                                        clear=self.index.clearing > 0)
            if strength is not None or goal.reached(made, moved):
                break
        return self._finished(after) if made is after else made

    def _changed(self, avatar: Avatar, z: Tensor, moved: Tensor, settings: dict[str, Any], facts: dict[str, Any],
                 callback: StepCallback | None) -> Avatar:
        """The avatar of `moved` [512] that the noise of `avatar` gives."""
        steps, fine_steps, seed = settings["num_inference_steps"], settings["upsampler_steps"], editing.seed_of(avatar)
        feedback = feedback_of(avatar, self.index.feedback)
        with self._reporting(steps + drawings(feedback) * fine_steps, callback) as report:
            coarse = editing.changed(self.base, editing.noise_of(self.base, avatar, z, steps), z[None], moved[None],
                                     steps=steps, guidance_scale=settings["guidance_scale"],
                                     guidance_stop=settings["guidance_stop"], emphasis=self.index.edit_emphasis,
                                     progress=report("base"))
            fine, used = self._fine(coarse, moved[None], [()], self._fine_noise([seed]), fine_steps, feedback,
                                    report("upsampler"))
        return self._avatar(fine[0], {**facts, "feedback": used[0]})

    @torch.no_grad()
    def interpolate(self, a: Avatar, b: Avatar, n: int, *, callback_on_step_end: StepCallback | None = None,
                    ) -> list[Avatar]:
        """`n` avatars on the way from `a` to `b`, both included: z and noise on the great circles between theirs.

        What edits or a portrait made of the ends beyond that fades from one into the other.
        """
        if n < 2:
            raise ValueError(f"n must be at least 2, the two ends; got {n}")
        shares = [i / (n - 1) for i in range(n)]
        za, zb = self._latent_of(a), self._latent_of(b)
        z = torch.stack([editing.slerp(za, zb, share) for share in shares])
        settings = self._settings(None, None, None, None, a.metadata)
        seeds, made = (editing.seed_of(a), editing.seed_of(b)), []
        said = [sorted(feedback_of(avatar, self.index.feedback)) for avatar in (a, b)]
        fa, fb = (feedback[len(feedback) // 2] for feedback in said)
        between = [fa + share * (fb - fa) for share in shares]
        total = sum(settings["num_inference_steps"] + drawings([f]) * settings["upsampler_steps"] for f in between)
        with self._reporting(total, callback_on_step_end) as report:
            for row, share, feedback in zip(z, shares, between, strict=True):
                noise, fine_noise = (editing.noise_between(model, stage, seeds, share) for model, stage in (
                    (self.base, "base"), (self.upsampler, "upsampler")))
                coarse = self.base.sample(row[None], generators=[], noise=noise, progress=report("base"),
                                          steps=settings["num_inference_steps"],
                                          guidance_scale=settings["guidance_scale"],
                                          guidance_stop=settings["guidance_stop"])
                fine, _ = self._fine(coarse, row[None], [()], fine_noise, settings["upsampler_steps"], [feedback],
                                     report("upsampler"))
                facts = {**settings, "z": row.clone(), "noise_seed": seeds[share == 1], "feedback": feedback}
                made.append(self._finished(self._avatar(fine[0], facts)))
        more = [own.planes.to(drawn.planes) - drawn.planes if editing.comparable(own, drawn) else 0 * drawn.planes
                for own, drawn in ((a, made[0]), (b, made[-1]))]
        return [dataclasses.replace(avatar, planes=avatar.planes + torch.lerp(more[0], more[1], share))
                for avatar, share in zip(made, shares, strict=True)]

    def _modules(self) -> list[torch.nn.Module]:
        parts = (self.conditioner, self.prior, self.base, self.upsampler, self.decoder, self.refiner)
        return [part for part in parts if isinstance(part, torch.nn.Module)]

    def _settings(self, steps: int | None, guidance: float | None, stop: float | None, upsampler_steps: int | None,
                  before: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the caller said; else how the avatar was made; else what the model recommends."""
        said = {"num_inference_steps": steps, "guidance_scale": guidance, "guidance_stop": stop,
                "upsampler_steps": upsampler_steps}
        if stop is not None and not 0 <= stop <= 1:
            raise ValueError(f"guidance_stop must lie between 0 and 1; got {stop}")
        return {name: next(v for v in (value, (before or {}).get(name), getattr(self.index, name)) if v is not None)
                for name, value in said.items()}

    def _encode_text(self, text: str) -> Tensor:
        return self.conditioner.encode_text([text]).float()

    def _latents(self, prompts: list[str], images: list[Tensor], z: Tensor | None, seeds: list[int],
                 each: int) -> Tensor:
        """One row of z for every seed: [len(seeds), 512]. Rows are encoded singly, so that neighbours change no bit."""
        if prompts:
            rows = torch.cat([self._encode_text(text) for text in prompts]).repeat_interleave(each, 0)
            return self._from_prior(seeds, rows) if self.index.text_prior else rows
        if images:
            rows = torch.cat([self.conditioner.encode_image(picture[None].to(self.device)) for picture in images])
            return rows.repeat_interleave(each, 0)
        if z is None:
            return self._from_prior(seeds, None)
        if z.ndim != 2 or z.shape[1] != LATENT_SIZE or not len(z) or not bool(z.isfinite().all()):
            raise ValueError(f"z must be finite numbers [B, {LATENT_SIZE}]; got {tuple(z.shape)}")
        return z.to(self.device, torch.float32).repeat_interleave(each, 0)

    def _from_prior(self, seeds: list[int], text_z: Tensor | None) -> Tensor:
        rows = [self.prior.sample([stage_generator(seed, "latent")], None if text_z is None else text_z[i:i + 1],
                                  guidance_scale=self.index.prior_scale) for i, seed in enumerate(seeds)]
        return torch.cat(rows).float()

    def _latent_of(self, avatar: Avatar) -> Tensor:
        z = avatar.metadata.get("z")
        if isinstance(z, Tensor) and z.shape == (LATENT_SIZE,):
            return z.to(self.device, torch.float32)
        front = avatar.turntable(1, PORTRAIT_SIZE, background=1.0)
        return self.conditioner.encode_image(front.permute(0, 3, 1, 2).to(self.device)).float()[0]

    def _make(self, z: Tensor, seeds: list[int], facts: list[dict[str, Any]], settings: dict[str, Any],
              callback: StepCallback | None, candidates: int = 1) -> list[Avatar]:
        """z [B, 512] with one noise seed a row through both diffusions."""
        size = self.batch_size or (1 if self.device.type == "cpu" else BATCH)
        together = max(1, BATCH // size)
        steps, fine_steps = settings["num_inference_steps"], settings["upsampler_steps"]
        drawn = -(-candidates // together) * steps
        batches, feedback = -(-len(z) // size), self.index.feedback
        names = [named_attributes(fact.get("prompt", "")) for fact in facts]
        avatars: list[Avatar] = []
        with self._reporting(batches * (drawn + drawings(feedback) * fine_steps), callback) as report:
            for start in range(0, len(z), size):
                part, named = z[start:start + size], names[start:start + size]
                coarse, some = self._coarse(part, named, seeds[start:start + size], settings, candidates, together,
                                            report("base"))
                fine, used = self._fine(coarse, part, named, self._fine_noise(some), fine_steps, feedback,
                                        report("upsampler"))
                for planes, row, seed, own, fact in zip(fine, part, some, used, facts[start:], strict=False):
                    avatars.append(self._avatar(planes, {**settings, **fact, "z": row.clone(), "noise_seed": seed,
                                                         "feedback": own}))
        return [self._finished(avatar) for avatar in avatars]

    def _finished(self, avatar: Avatar) -> Avatar:
        """An avatar whose back of the head is looked after."""
        return cleared(avatar, self.index.clearing, seed=editing.seed_of(avatar), bar=self._progress_bar)

    def _fine_noise(self, seeds: list[int]) -> Tensor:
        """The upsampler's noise [B, 3, C, R, R]."""
        size = self.upsampler.config.resolution
        return sample_noise((3, self.upsampler.channels, size, size),
                            [stage_generator(seed, "upsampler") for seed in seeds], self.device)

    def _fine(self, coarse: Tensor, z: Tensor, names: Names, noise: Tensor, steps: int, feedback: Sequence[float],
              progress: Progress) -> tuple[Tensor, list[float]]:
        """Fine planes [B, 3, C, R, R] of coarse ones and z [B, 512], and with which `feedback` each row was drawn."""
        return drawn_again(lambda told: self.upsampler.sample(coarse, told, generators=[], noise=noise, steps=steps,
                                                              progress=progress),
                           z, self._seen, partial(likeness, self.conditioner, z, names), feedback)

    def _seen(self, planes: Tensor) -> Tensor:
        """What the conditioner sees in the front pictures of planes [B, 3, C, R, R]: z [B, 512]."""
        return torch.cat([editing.seen(self.conditioner, self._avatar(p, {})) for p in planes]).to(planes)

    @contextlib.contextmanager
    def _reporting(self, total: int, callback: StepCallback | None) -> Iterator[Callable[[str], Progress]]:
        """A progress bar of `total` steps, and what makes the `progress` of a stage, by the stage's name."""
        with tqdm(**{"total": total, "desc": "avatar", "leave": False, **self._progress_bar}) as bar:

            def report(stage: str) -> Progress:
                def progress(done: int, _: int, planes: Tensor) -> None:
                    bar.update()
                    if callback is not None:
                        callback(self, done, stage, {"planes": planes})
                return progress

            yield report

    def _coarse(self, z: Tensor, names: Names, seeds: list[int], settings: dict[str, Any], candidates: int,
                together: int, progress: Callable[[int, int, Tensor], None]) -> tuple[Tensor, list[int]]:
        """Coarse planes for every z, the best of `candidates`, drawn `together` at a time; and their noise seeds."""
        noises = [[candidate_seed(seed, index) for seed in seeds] for index in range(candidates)]
        tried: list[Tensor] = []
        for first in range(0, candidates, together):
            some = noises[first:first + together]
            drawn = self.base.sample(z.repeat(len(some), 1),
                                     generators=[stage_generator(s, "base") for row in some for s in row],
                                     steps=settings["num_inference_steps"], guidance_scale=settings["guidance_scale"],
                                     guidance_stop=settings["guidance_stop"], progress=progress)
            tried += drawn.split(len(z))
        planes, best = nearest(tried, self._seen, partial(likeness, self.conditioner, z, names))
        return planes, [noises[chosen][row] for row, chosen in enumerate(best)]

    def _avatar(self, planes: Tensor, metadata: dict[str, Any]) -> Avatar:
        layout = tuple(self.conventions["layout"])
        marked = {"digital_source_type": SOURCE_TYPE, "generator": software(), "model": self.index.name, **metadata}
        return Avatar(planes.contiguous(), self.decoder, layout, self.conventions["reduce"],  # type: ignore[arg-type]
                      self.conventions["align_corners"], self.conventions["padding_mode"], marked)
