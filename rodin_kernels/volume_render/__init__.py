"""Rendering of tri-planes: decoder, marching along rays, occupancy, importance samples, and the parts by themselves."""

from .composite import (
    composite,
    composite_reference,
    sample_pdf,
    sample_pdf_reference,
    volume_weights,
    volume_weights_reference,
)
from .decoder import DecoderConfig, TinyDecoder
from .dense import density_grid
from .occupancy import OccupancyGrid
from .op import render_triplane
from .rays import Rendered
from .reference import render_triplane_reference

__all__ = [
    "DecoderConfig",
    "OccupancyGrid",
    "Rendered",
    "TinyDecoder",
    "composite",
    "composite_reference",
    "density_grid",
    "render_triplane",
    "render_triplane_reference",
    "sample_pdf",
    "sample_pdf_reference",
    "volume_weights",
    "volume_weights_reference",
]
