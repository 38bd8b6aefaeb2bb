"""Kernels for the lines of the 3D-aware convolution: means and sums of planes, and the convolutions along them."""
