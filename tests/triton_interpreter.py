"""Triton's interpreter, made to run with the NumPy versions that its release did not know."""

import os


def start() -> None:
    """Have kernels interpreted in this process; call it before any of them is defined.

    The interpreter holds every scalar as an array of one element, and Triton 3.6 makes a Python integer of it, as
    for the bound of a loop, by int(array), which NumPy 2.4 refuses. The conversion below is that of Triton 3.8.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor: type, *scope: object) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patch_tensor_and_index
