"""How well planes can show an avatar at all: PSNR and SSIM of fits to held-out avatars, on views kept from the fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rodin_model.avatars import dataset
from rodin_model.config import PlanesConfig
from rodin_model.fit import FitConfig, coarse_start, fine_start, fit_planes
from rodin_model.fit_data import Cloud, Views
from rodin_model.pipeline import RodinPipeline
from rodin_model.portraits import to_picture
from rodin_model.train.fit import HELD_OUT, judge, load_planes, load_shard

#: Views drawn of each avatar when there is no data set to fit, and their pixels.
VIEWS, SIZE = 14, 192


def measure_fits(pipe: RodinPipeline, count: int, seed: int, data: Path | None = None,
                 planes: Path | None = None) -> tuple[str, dict[str, Any], dict[str, Image.Image]]:
    """Lines, figures and sheets for `count` fits under the pipeline's decoder.

    With `planes`, all that `rodin_model.train.fit fine` wrote there for the data set `data` is measured; without, the
    first avatars of `data`, or of a data set drawn from `seed`, are fitted now (one shard of them at most).
    """
    config = config_of(pipe)
    scores: list[dict[str, float]] = []
    strips: list[Tensor] = []
    if planes is not None and data is not None:
        for file in sorted(planes.glob("planes-*.safetensors")):
            shard = int(file.stem.split("-")[1])
            found = judge(load_planes(planes, shard)[0], pipe.decoder, load_shard(data, shard)[1], config)
            scores, strips = scores + found[0], strips + found[1]
    else:
        with TemporaryDirectory() as place:
            if data is None:
                recipe = dataset.Recipe(seed, min(count, dataset.SHARD), VIEWS, SIZE)
                dataset.build(place, recipe, progress=False)
            cloud, views = load_shard(data or Path(place), 0)
        for row in tqdm(range(min(count, len(cloud.points))), desc="fitting", disable=None):
            one, seen = Cloud(*(t[row:row + 1] for t in cloud)), Views(*(t[row:row + 1] for t in views))
            found = judge(fit(pipe, one, seen, row, config), pipe.decoder, seen, config)
            scores, strips = scores + found[0], strips + found[1]
    if not scores:
        raise ValueError(f"there are no fits in {planes}")
    return _report(scores, strips)


def config_of(pipe: RodinPipeline) -> FitConfig:
    """How the training set was fitted, for planes of the sizes and conventions that the pipeline's have."""
    read = pipe.conventions
    planes = PlanesConfig(pipe.mean.shape[1], pipe.mean.shape[-1], pipe.base.config.resolution, tuple(read["layout"]),
                          read["reduce"], read["align_corners"], read["padding_mode"])
    return FitConfig(planes=planes)


def fit(pipe: RodinPipeline, cloud: Cloud, views: Views, number: int, config: FitConfig) -> Tensor:
    """Planes [A, 3, C, R, R] of held-out avatars: coarse, then fine, as the training set was fitted."""
    ids, mean, device = range(number, number + len(cloud.points)), pipe.mean, pipe.device
    cloud, views = Cloud(*(t.to(device) for t in cloud)), Views(*(t[:, :-HELD_OUT].to(device) for t in views))
    start = coarse_start(mean, config.planes.coarse_resolution).expand(len(ids), -1, -1, -1, -1)
    coarse = fit_planes(start, pipe.decoder, cloud, config.coarse, config, ids)
    return fit_planes(fine_start(mean, coarse), pipe.decoder, cloud, config.fine, config, ids, views=views)


def _report(scores: Sequence[dict[str, float]], strips: Sequence[Tensor]) -> tuple[str, dict[str, Any],
                                                                                   dict[str, Image.Image]]:
    """The mean of every score, in words, as data, and the first strips as one sheet."""
    mean = {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
    worst = min(score["psnr"] for score in scores)
    text = (f"Fit ({len(scores)} held-out avatars, {HELD_OUT} views each that the fit did not see)\n"
            f"  PSNR {mean['psnr']:.2f} dB (worst avatar {worst:.2f}), SSIM {mean['ssim']:.3f}")
    page = to_picture(torch.cat(list(strips[:8]), 0))
    return text, {"avatars": len(scores), **mean, "psnr_worst": worst}, {"fit.png": page}
