"""The temperature of a contrastive loss: what it may be, and one to learn."""

import math
import numbers
import sys

import torch
from torch import Tensor, nn

LARGEST = sys.float_info.max  # whole numbers above it, as 10**400, are no floats


class LearnedTemperature(nn.Module):
    """A temperature t that is learned: NTXentLoss(temperature=LearnedTemperature(0.1)).

    Its one parameter is log t, so that a step changes t by a factor and never makes it negative. Before every use log t
    is put back between the logarithms of `low` and `high`, as CLIP bounds its scale: a smaller t is always possible
    where the pairs are already aligned, and raises the gradients by 1/t.

    The parameter has the shape [1], because FullyShardedDataParallel and fully_shard take no scalars. Built on the meta
    device, it gets its value from `reset_parameters` (after `to_empty`), as PyTorch's own modules do.

    Several processes: put the loss (or this module) inside the module that DistributedDataParallel wraps. It then
    starts from rank 0's value, and the mean of the ranks' gradients, which DDP takes, is that of the whole batch's
    loss. Keep weight decay off it.

    Args:
        initial: the first value, in [low, high].
        low, high: bounds, 0 < low < high.

    Raises:
        TypeError, ValueError: a number is not as above.
    """

    def __init__(self, initial: float = 0.1, *, low: float = 0.01, high: float = 1.0):
        super().__init__()
        self.low, self.high = (check_temperature(value, name=name) for name, value in (("low", low), ("high", high)))
        initial = check_temperature(initial, name="initial")
        if not self.low <= initial <= self.high or self.low == self.high:
            raise ValueError(f"initial={initial}, low={low}, high={high}: pass low <= initial <= high with low < high")
        self.initial = initial
        self.log = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Puts the first value back."""
        nn.init.constant_(self.log, math.log(self.initial))

    def forward(self) -> Tensor:
        """The temperature, a 0-dim tensor that requires grad."""
        # As data: FullyShardedDataParallel's parameters are views, of which autograd takes no change in place.
        self.log.data.clamp_(math.log(self.low), math.log(self.high))
        return self.log.exp().sum()

    def extra_repr(self) -> str:
        """The bounds, for print(module)."""
        return f"low={self.low}, high={self.high}"


def check_temperature(
    temperature: object, z: Tensor | None = None, name: str = "temperature", of: str = "z0"
) -> float | Tensor:
    """A positive, finite number as a float, or a 0-dim float tensor as it is; else TypeError or ValueError.

    A tensor's value is checked only where it can be read, and that does not wait for a device. z: the rows, which users
    call `of`, whose device it must be on.
    """
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0 or not temperature.is_floating_point():
            raise ValueError(
                f"{name} has shape {tuple(temperature.shape)} and dtype {temperature.dtype}: "
                "pass a float or a 0-dim float tensor"
            )
        if z is not None and temperature.device != z.device:
            raise ValueError(f"{name} is on {temperature.device} and {of} is on {z.device}: move one of them")
        if not is_readable(temperature):
            return temperature
        value = temperature.item()
    elif isinstance(temperature, bool) or not isinstance(temperature, (int, float, numbers.Real)):
        raise TypeError(f"{name} is a {type(temperature).__name__}: pass a float or a 0-dim tensor")
    else:
        if not isinstance(temperature, (int, float)):
            temperature = float(temperature)  # of NumPy
        value = temperature
    if not 0 < value <= LARGEST:  # two comparisons, of which torch.compile can make guards; it takes none for < inf
        raise ValueError(f"{name}={value}: pass a positive, finite number (0.1 to 0.5 is usual)")
    return temperature


def is_readable(number: Tensor) -> bool:
    """Whether a tensor has one value that the host has at hand: of a vmap it has many."""
    if torch.compiler.is_compiling() or number.device.type != "cpu":
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(number):  # each transform of torch.func wraps it once more
        if torch._C._functorch.is_batchedtensor(number):
            return False
        number = torch._C._functorch.get_unwrapped(number)
    return True


def is_symbolic(number: float | Tensor) -> bool:
    """Whether torch.compile or torch.export traces this number as a variable, as it does from a second value on."""
    if isinstance(number, Tensor) or not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # a second of imports, needed only here

    return not has_static_value(number)
