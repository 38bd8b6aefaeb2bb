"""`python -m rodin_model.train.fit joint|coarse|fine`: fit tri-planes to a data set of avatars.

`joint` learns the decoder and the mean planes from some avatars; `coarse` then fits small planes for all of them and
`fine` large ones, shard by shard. A finished shard is one file `planes-00000.safetensors` (planes float16
[A, 3, C, R, R], avatars int64 [A], what else there is to know as JSON in its metadata); a killed run leaves no part of
one, and the same command goes on where it stopped, with the same result. Several processes share the work with
`--worker 0/2`, `--worker 1/2`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rodin_kernels import TinyDecoder

from .. import checkpoints
from ..cameras import Camera
from ..config import PRESETS
from ..decoder import TENSOR_FILE, load_decoder, save_decoder
from ..diffusion import BaseDiffusion
from ..fit import FitConfig, JointTrainer, coarse_start, conventions, enlarge, fine_start, fit_planes, fit_within
from ..fit_data import Cloud, Views, read_cloud, read_views
from ..metrics import psnr, ssim
from ..triplane import Avatar

#: Views kept from the fit to measure it, counted from the end.
HELD_OUT = 2
#: Avatars in one shard of the data set, and so in one shard of planes.
SHARD = 16


def load_shard(folder: Path, shard: int) -> tuple[Cloud, Views]:
    """Points and pictures of all avatars in one shard of the data set in `folder`."""
    path = folder / f"shard-{shard:05d}.safetensors"
    return read_cloud(path), read_views(path)


def shards_of(folder: Path, first: int, count: int) -> list[int]:
    """The shards that hold avatars first ... first + count - 1; ValueError if the range does not start a shard."""
    if first % SHARD or count < 1:
        raise ValueError(f"--first must be a multiple of {SHARD} and --count at least 1; got {first} and {count}")
    wanted = range(first // SHARD, (first + count + SHARD - 1) // SHARD)
    there = [shard for shard in wanted if (folder / f"shard-{shard:05d}.safetensors").is_file()]
    if not there:
        raise FileNotFoundError(f"{folder} has no shards for avatars {first} to {first + count - 1}")
    return there


def planes_file(folder: Path, shard: int) -> Path:
    """Where the planes of one shard are kept."""
    return folder / f"planes-{shard:05d}.safetensors"


def load_planes(folder: str | Path, shard: int) -> tuple[Tensor, Tensor]:
    """Planes float32 [A, 3, C, R, R] of one shard and the avatars' numbers int64 [A]."""
    tensors, _ = checkpoints.load_tensors(planes_file(Path(folder), shard))
    return tensors["planes"].float(), tensors["avatars"]


def camera_of(views: Views, avatar: int, view: int) -> Camera:
    """The camera of one picture."""
    height, width = views.alpha.shape[-2:]
    fx, fy, cx, cy = (float(v) for v in views.intrinsics[avatar, view])
    return Camera(views.cam2world[avatar, view].float(), fx, fy, cx, cy, width, height)


def look(avatar: Avatar, views: Views, row: int) -> tuple[dict[str, float], Tensor]:
    """Compare `avatar` with the truth in the held-out views: mean PSNR and SSIM; a strip of truth over fit.

    The strip [2 H, n W, 3] shows view 0 and the held-out views.
    """
    total = views.alpha.shape[1]
    chosen = [0, *range(max(1, total - HELD_OUT), total)]
    fits = torch.stack([avatar.picture(camera_of(views, row, view)) for view in chosen]).cpu()
    truth = views.rgb[row, chosen].float() / 255
    held = slice(1, None) if len(chosen) > 1 else slice(None)
    scores = {"psnr": float(psnr(fits[held], truth[held]).mean()), "ssim": float(ssim(fits[held], truth[held]).mean()),
              "psnr_front": float(psnr(fits[0], truth[0]))}
    strip = torch.cat([torch.cat(list(truth), 1), torch.cat(list(fits), 1)], 0)
    return {name: round(min(value, 99.0), 4) for name, value in scores.items()}, strip


def save_sheet(path: Path, strips: Sequence[Tensor], columns: int = 4) -> None:
    """Write strips [H, W, 3] in [0, 1] of one size as one PNG, `columns` beside each other."""
    blank = torch.ones_like(strips[0])
    rows = [[*strips[i:i + columns]] for i in range(0, len(strips), columns)]
    rows[-1] += [blank] * (min(columns, len(strips)) - len(rows[-1]))
    picture = torch.cat([torch.cat(row, 1) for row in rows], 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with checkpoints.atomic_file(path) as file:
        Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()).save(file, "PNG")


def log_stats(folder: Path, record: dict[str, Any]) -> None:
    """Append one line to `stats.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "stats.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def run_joint(args: argparse.Namespace, config: FitConfig) -> None:
    """Learn decoder and mean planes, with a state every `--save-every` steps to go on from."""
    data, output = Path(args.data), Path(args.output)
    loaded = [load_shard(data, shard) for shard in shards_of(data, args.first, args.count)]
    parts = zip(*(points for points, _ in loaded), strict=True)
    cloud = Cloud(*(torch.cat(part)[:args.count].to(args.device) for part in parts))
    trainer = JointTrainer(len(cloud.points), config, args.seed, args.device)
    if found := checkpoints.load_state(output / "state", args.device):
        trainer.load_state(found[1], found[0])
    began, bar = time.time(), tqdm(total=config.joint.steps, initial=trainer.step, disable=None, desc="joint")
    losses: list[float] = []
    while trainer.step < config.joint.steps:
        losses.append(trainer.train_step(cloud))
        bar.update()
        if trainer.step % 100 == 0:
            mean = sum(losses[-100:]) / len(losses[-100:])
            log_stats(output, {"stage": "joint", "step": trainer.step, "loss": round(mean, 5),
                               "seconds": round(time.time() - began, 1)})
            bar.set_postfix(loss=f"{mean:.4f}")
        if args.save_every and trainer.step % args.save_every == 0 and trainer.step < config.joint.steps:
            checkpoints.save_state(output / "state", trainer.step, trainer.state(), keep=1)
    learned = trainer.result()
    facts = {**conventions(config.planes), "coarse_resolution": config.planes.coarse_resolution, "seed": args.seed,
             "avatars": len(cloud.points), "fit": dataclasses.asdict(config)}
    save_decoder(output, learned.decoder, learned.mean, facts)
    strips, few = [], min(args.evaluate, SHARD, len(cloud.points))
    fine = fine_start(learned.mean, learned.coarse[:few]) + learned.residual[:few]
    for name, planes in (("coarse", learned.coarse[:few]), ("fine", fine)):
        scores, drawn = judge(planes, learned.decoder, loaded[0][1], config)
        strips += drawn
        for row, score in enumerate(scores):
            log_stats(output, {"stage": "joint", "avatar": args.first + row, "size": name, **score})
    if strips:
        save_sheet(output / "sheets" / "joint.png", strips)


def fit_shard(args: argparse.Namespace, config: FitConfig, shard: int, decoder: TinyDecoder, mean: Tensor,
              within: BaseDiffusion | None = None) -> Tensor:
    """The planes float16 [A, 3, C, R, R] of the avatars of one shard, `--batch` of them at a time."""
    cloud, views = load_shard(Path(args.data), shard)
    keep = min(len(cloud.points), args.first + args.count - shard * SHARD)
    stage, done = getattr(config, args.verb), []
    for start in range(0, keep, args.batch):
        rows = slice(start, min(start + args.batch, keep))
        some = Cloud(*(tensor[rows].to(args.device) for tensor in cloud))
        seen = Views(*(tensor[rows, :-HELD_OUT].to(args.device) for tensor in views)) if stage.rays else None
        ids = range(shard * SHARD + rows.start, shard * SHARD + rows.stop)
        if within is not None:
            done.append(fit_within(within, decoder, some, config, ids, seed=args.seed, views=seen).half().cpu())
            continue
        if args.verb == "coarse":
            begin = coarse_start(mean, config.planes.coarse_resolution).expand(len(some.points), -1, -1, -1, -1)
        else:
            begin = fine_start(mean, load_planes(args.coarse, shard)[0][rows].to(args.device))
        done.append(fit_planes(begin, decoder, some, stage, config, ids, seed=args.seed, views=seen).half().cpu())
    return torch.cat(done)


def judge(planes: Tensor, decoder: TinyDecoder, views: Views,
          config: FitConfig) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Scores and strips (see `look`) of planes [A, 3, C, R, R] beside the first A avatars of `views`."""
    device = next(decoder.parameters()).device
    seen = [look(Avatar(own.float().to(device), decoder, **conventions(config.planes)), views, row)
            for row, own in enumerate(planes)]
    return [scores for scores, _ in seen], [strip for _, strip in seen]


def run_planes(args: argparse.Namespace, config: FitConfig) -> None:
    """Fit coarse or fine planes, shard by shard; shards that are there already are left alone."""
    data, output = Path(args.data), Path(args.output)
    decoder, mean, _ = load_decoder(args.decoder, args.device)
    if mean.shape[-1] < config.planes.resolution:  # a model's decoder folder holds the mean at the coarse size
        mean = enlarge(mean[None], config.planes.resolution)[0]
    within = BaseDiffusion.from_folder(args.within).to(args.device) if args.within else None
    own, of = (int(number) for number in args.worker.split("/"))
    about = {"stage": args.verb, "seed": args.seed, "within": within is not None, "fit": dataclasses.asdict(config),
             **conventions(config.planes),
             "decoder_sha256": hashlib.sha256((Path(args.decoder) / TENSOR_FILE).read_bytes()).hexdigest()}
    todo = [shard for shard in shards_of(data, args.first, args.count)
            if shard % of == own and not planes_file(output, shard).is_file()]
    for shard in tqdm(todo, disable=None, desc=args.verb):
        began = time.time()
        planes = fit_shard(args, config, shard, decoder, mean, within)
        seconds = round((time.time() - began) / len(planes), 3)
        scores, strips = judge(planes[:args.evaluate], decoder, load_shard(data, shard)[1], config)
        if strips:
            save_sheet(output / "sheets" / f"{args.verb}-{shard:05d}.png", strips)
        checkpoints.save_tensors(planes_file(output, shard),
                                 {"planes": planes, "avatars": torch.arange(len(planes)) + shard * SHARD},
                                 {"rodin": json.dumps(about, sort_keys=True)})
        for row, score in enumerate(scores):
            log_stats(output, {"stage": args.verb, "avatar": shard * SHARD + row, **score, "seconds": seconds})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.fit", description=__doc__.split("\n\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("joint", "learn decoder and mean planes"), ("coarse", "fit small planes"),
                       ("fine", "fit large planes")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("--data", required=True, help="folder of the data set (rodin_model.avatars.dataset)")
        sub.add_argument("--output", required=True, help="folder for the results")
        sub.add_argument("--preset", choices=sorted(PRESETS), default="mini", help="sizes of planes and decoder")
        sub.add_argument("--first", type=int, default=0, help=f"first avatar, a multiple of {SHARD}")
        sub.add_argument("--count", type=int, default=96, help="number of avatars")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--steps", type=int, help="steps of this stage instead of the default")
        sub.add_argument("--device", default="cpu")
        sub.add_argument("--threads", type=int, help="threads of this process")
        sub.add_argument("--evaluate", type=int, default=1, help="avatars (of each shard) to measure and to draw")
        if verb == "joint":
            sub.add_argument("--save-every", type=int, default=0, help="steps between states to resume from; 0: none")
            continue
        sub.add_argument("--decoder", required=True, help="folder that the verb joint wrote")
        sub.add_argument("--batch", type=int, default=4, help="avatars that are fitted at once")
        sub.add_argument("--worker", default="0/1", help="which part of the shards: i/n")
        sub.set_defaults(within=None)
        if verb == "coarse":
            sub.add_argument("--within", help="folder of a base diffusion: seek the planes in its principal components")
        if verb == "fine":
            sub.add_argument("--coarse", required=True, help="folder that the verb coarse wrote")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb."""
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    preset = PRESETS[args.preset]
    config = FitConfig(planes=preset.planes, decoder_hidden=preset.decoder_hidden)
    if args.steps:
        stage = dataclasses.replace(getattr(config, args.verb), steps=args.steps)
        config = dataclasses.replace(config, **{args.verb: stage})
    (run_joint if args.verb == "joint" else run_planes)(args, config)


if __name__ == "__main__":
    main()
