"""Kernels for the weight gradient of the 3D-aware convolution."""
