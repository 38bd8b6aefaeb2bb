"""The planes' gradient by Triton kernels: points scattered onto texels."""
