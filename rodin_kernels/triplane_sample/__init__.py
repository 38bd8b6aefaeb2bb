"""Sampling features from three planes at points in space."""

from .op import sample_triplane
from .reference import sample_triplane_reference

__all__ = ["sample_triplane", "sample_triplane_reference"]
