"""What every loss asks of its arguments, and how they are made ready for an op."""

import numbers
from typing import Literal, get_args

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import compute_dtype
from simclr_fast.temperature import LARGEST, check_temperature, is_symbolic

Reduction = Literal["mean", "sum", "none"]
Precision = Literal["ieee", "tf32"]
Backend = Literal["auto", "cpp", "triton", "reference"]
REDUCTIONS, PRECISIONS, BACKENDS = (get_args(options) for options in (Reduction, Precision, Backend))
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_rows(name: str, z: Tensor, empty: bool = False, stack: str | None = None) -> None:
    """Raises TypeError or ValueError unless z is a dense float tensor [N, D] with D >= 1, and N >= 1 unless `empty`.

    stack: of a tensor of three dimensions, the last being D, what they are: "[V, N, D]".
    """
    dimensions, shapes = (2, "[N, D], one embedding per row") if stack is None else (3, stack)
    if not isinstance(z, Tensor):
        raise TypeError(f"{name} is a {type(z).__name__}: pass a torch.Tensor {stack or '[N, D]'}")
    if z.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} has dtype {z.dtype}: pass float16, bfloat16, float32 or float64, e.g. {name}.float()")
    if z.layout != torch.strided:
        raise ValueError(f"{name} has layout {z.layout}: pass a dense tensor, e.g. {name}.to_dense()")
    shape = z.shape
    if len(shape) != dimensions:
        raise ValueError(f"{name} has shape {tuple(shape)}: pass {shapes}")
    if shape[-1] == 0 or (not empty and (shape[0] == 0 or shape[-2] == 0)):
        raise ValueError(f"{name} has shape {tuple(shape)}: it is empty; pass at least one row and one column")


def check_together(names: tuple[str, str], z0: Tensor, z1: Tensor) -> None:
    """Raises unless the two are on one device and, outside autocast, of one dtype."""
    if z0.device != z1.device:
        raise ValueError(f"{names[0]} is on {z0.device} and {names[1]} is on {z1.device}: move one of them")
    if z0.dtype != z1.dtype and (z0.device.type == "meta" or not torch.is_autocast_enabled(z0.device.type)):
        raise TypeError(f"{names[0]} is {z0.dtype} and {names[1]} is {z1.dtype}: convert one of them")


def check_options(reduction: str, eps: float, precision: str | None) -> None:
    """Raises TypeError or ValueError for an option that the losses share."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        check_choice("reduction", reduction, REDUCTIONS)
    if isinstance(eps, bool) or not isinstance(eps, (int, float, numbers.Real)):
        raise TypeError(f"eps is a {type(eps).__name__}: pass a float; the default is 1e-8")
    value = eps if isinstance(eps, (int, float)) else float(eps)  # of NumPy, whose float32 does not hold LARGEST
    if not 0 < value <= LARGEST:
        raise ValueError(f"eps={eps}: pass a positive, finite number; the default is 1e-8")
    if precision is not None:
        check_choice("precision", precision, PRECISIONS)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError, which lists the choices, for a value that is none of them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")


def check_flags(**flags: bool) -> None:
    """Raises TypeError for an option that is to be True or False and is neither."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} is a {type(value).__name__}: pass True or False")


# A constant of the graph where torch.compile traces: it cannot trace the getter.
@torch.compiler.assume_constant_result
def default_precision() -> str:
    """What torch.get_float32_matmul_precision() asks of float32 products."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def for_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each, or a copy where autograd could not save it: one made under inference_mode, as a frozen teacher's view."""
    if (
        torch.compiler.is_dynamo_compiling()
    ):  # which traces no is_inference; where autograd refuses, torch says to clone
        return tensors
    if torch.is_inference_mode_enabled() or not any(map(Tensor.is_inference, tensors)):
        return tensors
    return tuple(x.clone() if x.is_inference() else x for x in tensors)


def common_dtype(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes: autocast may leave one branch of a model in float32."""
    if z0.dtype == z1.dtype:
        return z0, z1
    wider = torch.promote_types(z0.dtype, z1.dtype)
    return z0.to(wider), z1.to(wider)


def widened_half(z: Tensor) -> Tensor:
    """z in float32 where it is of a half type, for losses in which two gradients of z meet: each would be rounded.

    Not on CUDA, whose kernels multiply halves at several times the speed of float32.
    """
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) and z.device.type != "cuda" else z


def ready_temperature(temperature: float | Tensor, z: Tensor, of: str = "z0") -> float | Tensor:
    """The temperature, checked, as an op takes it: a float, or a 0-dim tensor of the dtype of z's statistics.

    of: what users call z.
    """
    temperature = check_temperature(temperature, z, of=of)
    if isinstance(temperature, Tensor):
        return for_backward(temperature)[0].to(compute_dtype(z.dtype))
    if is_symbolic(temperature):
        # An operator's float argument is a constant of the graph: every value would be compiled anew.
        return z.new_ones((), dtype=compute_dtype(z.dtype)) * temperature
    return temperature
