"""The NT-Xent loss: reference, registered operators, and the Triton kernels."""
