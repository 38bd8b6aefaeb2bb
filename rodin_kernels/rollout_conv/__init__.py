"""The 3D-aware convolution on three planes, for the price of a 2D one."""

from .choice import own_plane_method
from .module import RolloutConv
from .op import rollout_conv
from .reference import rollout_conv_reference
from .slots import RODINHD_SLOTS, SIN3DM_SLOTS, reorder_slots

__all__ = [
    "RODINHD_SLOTS",
    "SIN3DM_SLOTS",
    "RolloutConv",
    "own_plane_method",
    "reorder_slots",
    "rollout_conv",
    "rollout_conv_reference",
]
