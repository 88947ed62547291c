"""How the losses call their autograd Functions: in eager mode without the price of what transforms of a call need.

torch.func and torch.compile want a Function whose forward knows no ctx and leaves to setup_context what is saved. To
call one costs more host time than the kernels of a small batch, because PyTorch inspects the signature of forward and
binds it at every call. Where no transform looks on, the same forward and setup_context run behind a forward with ctx;
and where autograd records nothing, as in a backward pass that nobody differentiates again, forward runs alone.
"""

from functools import cache
from typing import NoReturn

import torch
from torch.autograd import forward_ad


def apply(function: type[torch.autograd.Function], called: str, *inputs: object) -> tuple:
    """function.apply(*inputs), of a Function that has setup_context, and no jvp.

    Raises RuntimeError under forward-mode differentiation, and where torch.compile traces a transform (without
    fullgraph=True it then runs eagerly, which is right); `called` is what users call to run the function.
    """
    if not torch._C._are_functorch_transforms_active():  # as Function.apply asks
        # Within a dual level tensors may have tangents, for which autograd looks where gradients are disabled, too.
        if not torch.is_grad_enabled() and forward_ad._current_level < 0:
            return function.forward(*inputs)
        if not torch.compiler.is_compiling():
            function = _with_ctx(function)
    elif torch.compiler.is_compiling():  # which within a transform of torch.func gives a Function the gradient zero
        raise RuntimeError(f"torch.compile cannot trace {called} within a transform of torch.func: run that eagerly")
    return recorded(function, called, *inputs)


def recorded(function: type[torch.autograd.Function], called: str, *inputs: object) -> tuple:
    """function.apply(*inputs), of a Function that has no jvp: the last step of `apply`."""
    try:
        return function.apply(*inputs)
    except NotImplementedError as error:  # torch.compile traces no Function that has a jvp of its own to say this in
        if "jvp" not in str(error):
            raise
        raise RuntimeError(f"{called} has no forward-mode derivative; use backend='reference'") from error


def refuse_vmap(called: str) -> NoReturn:
    """Raises RuntimeError for a Function whose rows are compared with each other; `called` is what users call."""
    raise RuntimeError(
        f"{called} cannot be vmapped: its rows are compared with each other; loop over the batches, or use "
        "backend='reference'"
    )


def refuse_vmap_of_gradient(called: str) -> NoReturn:
    """Raises RuntimeError for the gradient of such a Function."""
    raise RuntimeError(
        f"the gradient of {called} cannot be vmapped (as jacrev and hessian do); loop over the rows, or use "
        "backend='reference'"
    )


def refuse_second_derivative(called: str) -> NoReturn:
    """Raises RuntimeError for a gradient that autograd is asked to differentiate, instead of dropping it silently."""
    raise RuntimeError(f"{called} is differentiable once; use backend='reference' for higher derivatives")


@cache
def _with_ctx(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The Function of the same name whose forward takes ctx, and does what forward and setup_context of this one do."""

    def forward(ctx, *inputs):
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    parts = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), parts)
