"""`python -m rodin_model.train.assemble`: put trained parts together into one model folder that the pipeline loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rodin_model.model_index import ModelIndex


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    defaults = ModelIndex()
    parser = argparse.ArgumentParser(prog="python -m rodin_model.train.assemble", description=__doc__)
    parser.add_argument("--towers", required=True, help="folder written by rodin_model.train.towers")
    parser.add_argument("--prior", required=True, help="folder written by rodin_model.train.prior")
    parser.add_argument("--decoder", required=True, help="folder written by rodin_model.train.fit joint")
    parser.add_argument("--base", required=True, help="the folder model/ of rodin_model.train.base")
    parser.add_argument("--upsampler", required=True, help="the folder model/ of rodin_model.train.upsample")
    parser.add_argument("--refiner", help="the folder model/ of rodin_model.train.refine; without it, no refiner")
    parser.add_argument("--output", required=True)
    parser.add_argument("--name", default=defaults.name)
    parser.add_argument("--text-prior", action="store_true", help="send words through the latent prior")
    parser.add_argument("--prior-scale", type=float, default=defaults.prior_scale)
    parser.add_argument("--steps", type=int, default=defaults.num_inference_steps)
    parser.add_argument("--guidance", type=float, default=defaults.guidance_scale)
    parser.add_argument("--guidance-stop", type=float, default=defaults.guidance_stop)
    parser.add_argument("--upsampler-steps", type=int, default=defaults.upsampler_steps)
    parser.add_argument("--edit-strength", type=float, default=defaults.edit_strength)
    parser.add_argument("--candidates", type=int, default=defaults.candidates)
    parser.add_argument("--feedback", type=float, nargs="+", default=defaults.feedback)
    parser.add_argument("--clearing", type=int, default=defaults.clearing)
    args = parser.parse_args(arguments)
    from rodin_model.conditioning import TowerConditioner
    from rodin_model.decoder import load_decoder
    from rodin_model.diffusion import BaseDiffusion
    from rodin_model.latent_prior import LatentPrior
    from rodin_model.pipeline import RodinPipeline
    from rodin_model.refiner import Refiner
    from rodin_model.upsampler import Upsampler

    try:
        decoder, _, conventions = load_decoder(args.decoder)
        index = ModelIndex(name=args.name, text_prior=args.text_prior, prior_scale=args.prior_scale,
                           num_inference_steps=args.steps,
                           guidance_scale=args.guidance, guidance_stop=args.guidance_stop,
                           upsampler_steps=args.upsampler_steps, edit_strength=args.edit_strength,
                           candidates=args.candidates, feedback=tuple(args.feedback), clearing=args.clearing)
        pipe = RodinPipeline(TowerConditioner.from_folder(args.towers), LatentPrior.from_folder(args.prior),
                             BaseDiffusion.from_folder(args.base), Upsampler.from_folder(args.upsampler),
                             decoder, conventions, index,
                             Refiner.from_folder(args.refiner) if args.refiner else None)
        pipe.save_pretrained(args.output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
