"""The 3D-aware convolution on three planes, for the price of a 2D one."""

from .module import RolloutConv
from .op import rollout_conv
from .reference import rollout_conv_reference

__all__ = ["RolloutConv", "rollout_conv", "rollout_conv_reference"]
