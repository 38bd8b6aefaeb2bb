"""Operators on tri-planes for neural radiance fields and 3D diffusion: the 3D-aware convolution, sampling, rendering.

Every operator has a plain-PyTorch specification (`<name>_reference`), a fast path for machines without a GPU and, where
this version has them, Triton kernels; `backend=` chooses. This page is the table of contents.
"""

from .layouts import (
    EG3D,
    EG3D_FIXED,
    RODIN,
    RODINHD,
    Layout,
    check_layout,
    cross_sources,
    plane_axes,
    roll_out,
    unroll,
)
from .rollout_conv import (
    RODINHD_SLOTS,
    SIN3DM_SLOTS,
    RolloutConv,
    own_plane_method,
    reorder_slots,
    rollout_conv,
    rollout_conv_reference,
)
from .triplane_sample import sample_triplane, sample_triplane_reference
from .volume_render import (
    DecoderConfig,
    OccupancyGrid,
    Rendered,
    TinyDecoder,
    composite,
    composite_reference,
    density_grid,
    render_triplane,
    render_triplane_reference,
    sample_pdf,
    sample_pdf_reference,
    volume_weights,
    volume_weights_reference,
)

__version__ = "0.1.0"

__all__ = [
    "EG3D",
    "EG3D_FIXED",
    "RODIN",
    "RODINHD",
    "RODINHD_SLOTS",
    "SIN3DM_SLOTS",
    "DecoderConfig",
    "Layout",
    "OccupancyGrid",
    "Rendered",
    "RolloutConv",
    "TinyDecoder",
    "__version__",
    "check_layout",
    "composite",
    "composite_reference",
    "cross_sources",
    "density_grid",
    "own_plane_method",
    "plane_axes",
    "render_triplane",
    "render_triplane_reference",
    "reorder_slots",
    "roll_out",
    "rollout_conv",
    "rollout_conv_reference",
    "sample_pdf",
    "sample_pdf_reference",
    "sample_triplane",
    "sample_triplane_reference",
    "unroll",
    "volume_weights",
    "volume_weights_reference",
]
