"""`python -m rodin_model.train.likeness`: teach a trained upsampler's details that its avatars look like what z says.

Labelled points tell where a surface is, and say little of what makes lips thin or a nose pointed: that is a matter of
few points. Here the frozen picture tower looks at a front view of the planes, as it looks at a portrait. What it sees
should be the z that the planes were drawn from (CLIP's similarity as a loss, Jain et al. 2022, Dream Fields), and what
the towers' heads read in both should agree; the tower looks twice, the second time at a changed picture, since what
only pleases it does not outlast the change, and other towers (`--observers`) may look, too. Planes of a portrait are
also compared with it, in what the tower's layers make of both (a perceptual loss, as Rodin's upsampler has; Zhang et
al. 2018), and so is a view from elsewhere, mostly from behind, where the plane that shows the face would show it again.
The planes are those of use: from latents of pictures and of captions, from coarse planes that the base diffusion draws.
The U-Net stays as it is, and what it makes of them is computed once. The avatars' points, and rays through their
pictures, keep the rest of the head in its place. The judge of `rodin_model.evaluate` is another network and has no say.
Under `torchrun` every process takes a share of the avatars. Resumable like `rodin_model.train.base`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rodin_kernels import TinyDecoder, render_triplane
from rodin_model.avatars.attributes import CHOICES
from rodin_model.avatars.dataset import shard_paths
from rodin_model.cameras import Camera, box_near_far, face_of
from rodin_model.conditioning import TowerConditioner
from rodin_model.config import PRESETS, PlanesConfig
from rodin_model.decoder import load_decoder
from rodin_model.diffusion import BaseDiffusion
from rodin_model.fit import FitConfig, conventions, decode_points, point_loss
from rodin_model.fit import picture_loss as ray_loss
from rodin_model.fit_data import (
    Cloud,
    Views,
    draw_points,
    draw_rays,
    read_cloud,
    read_views,
    shell_samples,
    stored_ray_depths,
)
from rodin_model.noise import beside
from rodin_model.towers import Towers
from rodin_model.train.changes import augment, plain
from rodin_model.train.denoiser import (
    DenoiserSettings,
    DenoiserTrainer,
    draw_keys,
    step_randomness,
)
from rodin_model.train.detail import Windows
from rodin_model.train.latents import Latents
from rodin_model.train.perceptual import FeatureDistance
from rodin_model.train.resume import add_bounds, add_settings, settings_of, status_of
from rodin_model.train.upsample import remade
from rodin_model.upsampler import Upsampler

#: Pixels of the first look, which finds the surface, and its samples along a ray.
GLANCE, GLANCE_SAMPLES = 64, 40
#: Degrees, as standard deviations, by which the view leaves that of a portrait.
YAW, PITCH = 4.0, 3.0
#: Blocks of the tower's branches whose maps are compared.
DEPTH = 3


def portrait_camera(size: int, rng: np.random.Generator) -> Camera:
    """About the camera of portraits: a little aside, and a part of a pixel away, so that no grid of pixels counts."""
    camera = Camera.orbit(float(rng.normal(0, YAW)), 5.0 + float(rng.normal(0, PITCH)), size)
    x, y = rng.uniform(-0.5, 0.5, 2)
    return Camera(camera.cam2world, camera.fx, camera.fy, camera.cx + float(x), camera.cy + float(y), size, size)


def portrait(planes: Tensor, decoder: TinyDecoder, camera: Camera, config: PlanesConfig, *, samples: int = 16,
             generator: torch.Generator | None = None) -> Tensor:
    """A picture [1, 4, S, S], premultiplied RGBA in [0, 1], of planes [1, 3, C, R, R] through a square camera.

    Differentiable in the planes.

    A glance at `GLANCE`^2 pixels finds about how deep the surface lies; then only rays near the avatar are marched,
    most of their samples beside that surface and the others before it, jittered.
    """
    size, device, shared = camera.width, planes.device, conventions(config)
    depth, hit = (F.interpolate(part, (size, size)).flatten() for part in _glance(planes, decoder, camera, shared))
    index = (hit > 0).nonzero()[:, 0]
    origins, directions = (rays[index][None] for rays in camera.rays(device))
    near, far = box_near_far(origins, directions)
    jitter = torch.rand(1, len(index), samples, **beside(generator)).to(device)
    seen = render_triplane(planes, origins, directions, decoder, near=near, far=far, num_samples=samples,
                           t=shell_samples(depth[index][None], near, far, jitter), outputs=("rgb", "opacity"), **shared)
    rgba = torch.cat([cast(Tensor, seen.rgb)[0], cast(Tensor, seen.opacity)[0, :, None]], 1)
    picture = planes.new_zeros(size * size, 4).index_copy(0, index, rgba)
    return picture.T.reshape(1, 4, size, size).clamp(0, 1)


@torch.no_grad()
def _glance(planes: Tensor, decoder: TinyDecoder, camera: Camera, shared: dict) -> tuple[Tensor, Tensor]:
    """Depth of the surface, 0 where there is none, and where rays meet the avatar or pass close by: [1, 1, G, G]."""
    origins, directions = (rays[None] for rays in camera.resized(GLANCE).rays(planes.device))
    near, far = box_near_far(origins, directions)
    seen = render_triplane(planes, origins, directions, decoder, near=near, far=far, num_samples=GLANCE_SAMPLES,
                           outputs=("depth", "opacity"), image_width=GLANCE, **shared)
    opacity, depth = (cast(Tensor, part).view(1, 1, GLANCE, GLANCE) for part in (seen.opacity, seen.depth))
    depth = torch.where(opacity > 0.3, depth / opacity.clamp_min(1e-3), 0.0)
    wide = F.max_pool2d(depth, 3, 1, 1)
    return torch.where(depth > 0, depth, wide), F.max_pool2d((opacity > 0.02).float(), 3, 1, 1)


def disagreement(towers: Towers, seen: Tensor, z: Tensor) -> Tensor:
    """How differently the heads read two latents [B, 512]: Kullback-Leibler divergence from what z says, [].

    Mean over the attributes. Differentiable in `seen`.
    """
    (ours, _), (wanted, _) = towers.heads(seen), towers.heads(z)
    return torch.stack([F.kl_div(ours[name].log_softmax(-1), wanted[name].log_softmax(-1), reduction="batchmean",
                                 log_target=True) for name in CHOICES]).mean()


class Known(NamedTuple):
    """Avatars that are learned from: what the U-Net makes of them, their points, their pictures and its depths.

    The windows are the whole planes float16 [N, V, 3, C, R, R], each beside the z [N, V, 512] that it was drawn from.
    """

    windows: Windows
    cloud: Cloud
    views: Views
    depths: Tensor


class LikenessLosses:
    """What the tower sees against z, and points and rays of the avatars themselves; all drawn from (seed, step)."""

    def __init__(self, known: Known, decoder: TinyDecoder, towers: Towers, config: FitConfig,
                 settings: DenoiserSettings, *, likeness: float = 1.0, reading: float = 0.5, perceptual: float = 1.0,
                 around: float = 0.0, observers: Sequence[Towers] = (), points: int = 4096, rays: int = 768) -> None:
        self.known, self.config, self.settings = known, config, settings
        self.decoder, self.towers = decoder.requires_grad_(False), towers.eval().requires_grad_(False)
        self.likeness, self.reading, self.perceptual, self.around = likeness, reading, perceptual, around
        self.observers = [other.eval().requires_grad_(False) for other in observers]
        self.whole, self.face = (FeatureDistance(branch, DEPTH) for branch in (towers.image.whole, towers.image.face))
        self.points, self.rays = points, rays

    def __call__(self, model: Upsampler, step: int) -> dict[str, Tensor]:
        settings, known, device = self.settings, self.known, model.mean.device
        rng, generator = step_randomness(settings.seed, step, device)
        rows, variant = (torch.from_numpy(rng.integers(0, n, settings.batch)).to(device)
                         for n in known.windows.z.shape[:2])
        planes, cond, z = (part[rows, variant].float() for part in known.windows)
        for detail in model.details:
            planes = detail(planes, cond, z)
        planes = model.denormalize(planes)
        with torch.autocast(device.type, enabled=False):
            pictured, views = ~worded(variant), Views(*(part[rows] for part in known.views))
            found = self._seen(planes, z, views.rgb[:, 0], pictured, rng, generator)
            if self.around and bool(pictured.any()):
                some = Views(*(part[pictured] for part in views))
                found["around"] = self.around * float(pictured.float().mean()) * self._elsewhere(planes[pictured], some,
                                                                                                rng, generator)
            keys = draw_keys(generator, settings.seed, rows, step)
            drawn = draw_points(Cloud(*(part[rows] for part in known.cloud)), self.points, keys, 0.2,
                                face_share=0.15, feature_share=0.3, behind_share=0.15)
            decoded = decode_points(planes, drawn.points, self.decoder, self.config)
            found["points"] = point_loss(*decoded, drawn, self.config.losses).mean()
            keys = draw_keys(generator, settings.seed, rows, step, 1)
            rays = draw_rays(views, known.depths[rows].float(), self.rays, 20, keys)
            found["rays"] = settings.image_weight * ray_loss(planes, self.decoder, rays, self.config).mean()
        return found

    def _seen(self, planes: Tensor, z: Tensor, fronts: Tensor, pictured: Tensor, rng: np.random.Generator,
              generator: torch.Generator) -> dict[str, Tensor]:
        """What the tower says of front views of planes; those whose z is `pictured` [B] also against true `fronts`.

        Fronts are uint8 [B, S, S, 3]; what is compared with them is seen through the very same camera.
        """
        size, of_pictures = self.towers.config.image_size, pictured.tolist()
        front = Camera.orbit(0.0, 5.0, size)
        rgba = torch.cat([portrait(own[None], self.decoder, front if exact else portrait_camera(size, rng),
                                   self.config.planes, generator=generator)
                          for own, exact in zip(planes, of_pictures, strict=True)])
        pictures = plain(rgba)
        looks, wanted = torch.cat([pictures, augment(rgba, generator, white=0.8)]), torch.cat([z, z])
        seen = self.towers.image(looks)
        found = {"likeness": self.likeness * (1 - (seen * wanted).sum(-1)).mean(),
                 "reading": self.reading * disagreement(self.towers, seen, wanted)}
        if self.observers:
            true = resized(fronts, size)
            said = [disagreement(other, other.image(looks), other.image(true).repeat(2, 1)) for other in self.observers]
            found["observers"] = self.reading * torch.stack(said).mean()
        if self.perceptual and any(of_pictures):
            share = sum(of_pictures) / len(of_pictures)
            found["perceptual"] = self.perceptual * share * self._apart(pictures[pictured], fronts[pictured])
        return found

    def _elsewhere(self, planes: Tensor, views: Views, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """How far planes are from true pictures in the tower's layers, through one camera of each avatar's `views`.

        Not the front; the further behind a camera stands, the likelier it is chosen.
        """
        size, pictures, chosen = self.towers.config.image_size, [], []
        for i, own in enumerate(planes):
            place = F.normalize(views.cam2world[i, 1:, :3, 3], dim=-1)[:, 2].double().cpu().numpy()
            weight = 1.05 - place
            view = 1 + int(rng.choice(len(weight), p=weight / weight.sum()))
            height, width = views.alpha.shape[-2:]
            fx, fy, cx, cy = views.intrinsics[i, view].tolist()
            camera = Camera(views.cam2world[i, view], fx, fy, cx, cy, width, height)
            pictures.append(portrait(own[None], self.decoder, camera.resized(size), self.config.planes,
                                     generator=generator))
            chosen.append(view)
        true = views.rgb[torch.arange(len(planes)), torch.tensor(chosen)]
        return self._apart(plain(torch.cat(pictures)), true)

    def _apart(self, ours: Tensor, true: Tensor) -> Tensor:
        """Distance of pictures [B, 3, S, S] from true ones uint8 [B, H, W, 3] in the layers of both branches."""
        true = resized(true, ours.shape[-1])
        return (self.face(face_of(ours), face_of(true)) + self.whole(F.avg_pool2d(ours, 2), F.avg_pool2d(true, 2))) / 2


def resized(pictures: Tensor, size: int) -> Tensor:
    """Stored pictures uint8 [B, H, W, 3] as [B, 3, size, size] in [0, 1]."""
    return F.interpolate(pictures.permute(0, 3, 1, 2).float() / 255, (size, size), mode="bilinear", antialias=True)


@torch.no_grad()
def drawn(model: Upsampler, base: BaseDiffusion, z: Tensor, seed: int, batch: int) -> Windows:
    """What `model`, without details, makes of latents z [N, V, 512] as in use: of coarse planes that `base` draws.

    They come from noise alone, by the base's principal components where it has some, which say nearly all.
    """
    device, (count, variants, _) = base.mean.device, z.shape
    size = model.config.resolution
    shape = (count, variants, 3, model.channels, size, size)
    planes, cond = (torch.empty(shape, dtype=torch.float16, device=device) for _ in range(2))
    for start in tqdm(range(0, count, batch), disable=None, desc="planes"):
        some = z[start:start + batch].float().flatten(0, 1)
        _, generator = step_randomness(seed, start, device)
        last = torch.full((len(some),), base.noise.steps - 1, device=device)
        coarse = remade(base, base.mean.expand(len(some), -1, -1, -1, -1), some, last, generator, quick=True)
        told = model.condition(coarse)
        noise = torch.randn(told.shape, generator=generator, device=device)
        made = model.first_estimate(noise, some, told)
        for kept, whole in ((planes, made), (cond, told)):
            kept[start:start + batch] = whole.unflatten(0, (-1, variants)).half()
    return Windows(planes, cond, z)


def worded(variant: Any) -> Any:
    """Whether latents of these numbers, an int or a tensor, are of captions; the others are of pictures."""
    return variant % 2 == 1


def chosen_latents(latents: Latents, rows: Sequence[int], variants: int, seed: int) -> Tensor:
    """z [N, variants, 512] of the avatars in `rows`: of pictures and of captions in turn."""
    rng = np.random.default_rng([seed, 0x11CE])
    return torch.stack([latents.draw(list(rows), rng, text_share=float(worded(i))) for i in range(variants)], 1)


def gathered(args: argparse.Namespace, trained: Upsampler, settings: DenoiserSettings) -> Known:
    """What this process's share of the data set is known by; `trained` has no details left."""
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    base, latents = BaseDiffusion.from_folder(args.base).to(args.device), Latents.load(args.latents).to(args.device)
    rows = range(rank, len(latents.pictures), world)
    z = chosen_latents(latents, rows, args.variants, settings.seed)
    windows = drawn(trained, base, z, settings.seed, 4 if torch.device(args.device).type == "cpu" else 32)
    clouds, pictures, first = [], [], 0
    for shard in tqdm(shard_paths(args.data), disable=None, desc="avatars"):
        cloud, views = read_cloud(shard), read_views(shard)
        own = [i for i in range(len(cloud.points)) if first + i in rows]
        clouds.append(Cloud(*(part[own].to(args.device) for part in cloud)))
        pictures.append(Views(*(part[own].to(args.device) for part in views)))
        first += len(cloud.points)
    if first != len(latents.pictures):
        raise ValueError(f"--data has {first} avatars; --latents knows {len(latents.pictures)}")
    cloud = Cloud(*(torch.cat(part) for part in zip(*clouds, strict=True)))
    views = Views(*(torch.cat(part) for part in zip(*pictures, strict=True)))
    return Known(windows, cloud, views, stored_ray_depths(views))


def run(args: argparse.Namespace) -> None:
    """Train as the arguments say."""
    settings, preset = settings_of(args, DenoiserSettings), PRESETS[args.preset]
    model, trained = (Upsampler.from_folder(args.init).to(args.device) for _ in range(2))
    if not len(model.details):
        raise ValueError("--init has no details to teach: python -m rodin_model.train.detail adds them")
    model.requires_grad_(False)
    model.details.requires_grad_(True)
    trained.details = nn.ModuleList()
    decoder, _, _ = load_decoder(args.decoder, args.device)
    towers = TowerConditioner.from_folder(args.towers).towers.to(args.device)
    losses = LikenessLosses(gathered(args, trained, settings), decoder, towers, FitConfig(planes=preset.planes),
                            settings, likeness=args.likeness, reading=args.reading,
                            perceptual=args.perceptual, around=args.around, points=args.points, rays=args.rays,
                            observers=[TowerConditioner.from_folder(folder).towers.to(args.device)
                                       for folder in args.observers])
    trainer = DenoiserTrainer(args.output, model, settings, losses, args.device, args.minutes)
    trainer.run(args.until, save_every=args.save_every, log_every=args.log_every)
    print(f"wrote {Path(args.output) / 'model'} at step {trainer.step}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.likeness", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mini")
    parser.add_argument("--data", required=True, help="data set folder")
    parser.add_argument("--latents", required=True, help="its file from rodin_model.train.latents")
    parser.add_argument("--init", required=True, help="the folder model/ of a trained upsampler with details")
    parser.add_argument("--base", required=True, help="the folder model/ of rodin_model.train.base")
    parser.add_argument("--towers", required=True, help="folder of the trained towers")
    parser.add_argument("--decoder", required=True, help="decoder folder from rodin_model.train.fit joint")
    parser.add_argument("--output", required=True)
    parser.add_argument("--variants", type=int, default=2, help="latents of each avatar: of pictures, captions in turn")
    parser.add_argument("--likeness", type=float, default=1.0, help="weight of what the tower sees")
    parser.add_argument("--reading", type=float, default=0.5, help="weight of what the towers' heads read in it")
    parser.add_argument("--perceptual", type=float, default=1.0, help="weight of what the tower's layers see in it")
    parser.add_argument("--around", type=float, default=0.0,
                        help="weight of what the tower's layers see from elsewhere, mostly from behind")
    parser.add_argument("--observers", nargs="*", default=[],
                        help="folders of other towers, whose heads should read in both pictures the same")
    parser.add_argument("--points", type=int, default=4096, help="points of an avatar in a step")
    parser.add_argument("--rays", type=int, default=768, help="rays through its pictures in a step")
    add_bounds(parser, save_every=100)
    parser.add_argument("--log-every", type=int, default=25)
    add_settings(parser, DenoiserSettings)
    parser.set_defaults(batch=4, steps=4000, learning_rate=3e-4, warmup=20, weight_decay=0.0, ema=0.98,
                        image_weight=40.0, precision="fp32")
    args = parser.parse_args(arguments)
    return status_of(run, args)


if __name__ == "__main__":
    sys.exit(main())
