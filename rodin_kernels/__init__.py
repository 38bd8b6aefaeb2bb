"""Operators on tri-planes for neural radiance fields and 3D diffusion: the 3D-aware convolution, sampling, rendering.

Every operator has a plain-PyTorch specification (`<name>_reference`), a fast path for machines without a GPU and, where
this version has them, Triton kernels; `backend=` chooses. This page is the table of contents.
"""

from .layouts import EG3D, EG3D_FIXED, RODIN, RODINHD, Layout, check_layout, plane_axes, roll_out, unroll

__version__ = "0.1.0"

__all__ = [
    "EG3D",
    "EG3D_FIXED",
    "RODIN",
    "RODINHD",
    "Layout",
    "__version__",
    "check_layout",
    "plane_axes",
    "roll_out",
    "unroll",
]
