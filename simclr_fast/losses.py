"""The public NT-Xent loss: `ntxent_loss` and the module `NTXentLoss`."""

import math
from typing import Literal

from torch import Tensor, nn

from simclr_fast.ops.ntxent.reference import ntxent_reference

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")
BACKENDS = ("auto", "cpp", "triton", "reference")


def ntxent_loss(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    reduction: Reduction = "mean",
    eps: float = 1e-8,
    backend: str = "auto",
) -> Tensor:
    """NT-Xent loss of two views z0, z1 [N, D] (float16, bfloat16, float32 or float64), mean over the 2N rows by default.

    `temperature` is a positive float or a 0-dim tensor, which may require grad. Returns float32 (float64 for float64
    inputs): a scalar, or the row losses [2N] for reduction "none". Chance level is log(2N - 1).
    """
    _check_views(z0, z1)
    _check_temperature(temperature)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: choose one of {', '.join(REDUCTIONS)}")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend not in ("auto", "reference"):
        raise RuntimeError(f"backend={backend!r} is not available here; use backend='reference'")
    return ntxent_reference(z0, z1, temperature, eps=eps, reduction=reduction)


class NTXentLoss(nn.Module):
    """`ntxent_loss` as a module: `loss = NTXentLoss(temperature=0.5)(z0, z1)`; call-compatible with lightly's."""

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int = 0,
        gather_distributed: bool = False,
        *,
        reduction: Reduction = "mean",
        eps: float = 1e-8,
        backend: str = "auto",
    ):
        super().__init__()
        if memory_bank_size != 0:
            raise NotImplementedError(f"memory_bank_size={memory_bank_size}: only 0 (no memory bank) is implemented")
        if gather_distributed:
            raise NotImplementedError("gather_distributed=True is not implemented; use gather_distributed=False")
        self.temperature = temperature
        self.reduction = reduction
        self.eps = eps
        self.backend = backend

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        return ntxent_loss(z0, z1, self.temperature, reduction=self.reduction, eps=self.eps, backend=self.backend)


def _check_views(z0: Tensor, z1: Tensor) -> None:
    for name, z in (("z0", z0), ("z1", z1)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{name} is a {type(z).__name__}: pass a torch.Tensor [N, D]")
        if z.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(z.shape)}: pass [N, D], one embedding per row")
        if not z.is_floating_point():
            raise TypeError(f"{name} has dtype {z.dtype}: pass float16, bfloat16, float32 or float64")
        if z.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(z.shape)}: it is empty; pass N >= 1 rows of D >= 1 entries")
    if z0.shape != z1.shape:
        raise ValueError(f"z0 {tuple(z0.shape)} and z1 {tuple(z1.shape)} differ in shape: row i of both is one sample")
    if z0.dtype != z1.dtype:
        raise TypeError(f"z0 is {z0.dtype} and z1 is {z1.dtype}: convert one of them")
    if z0.device != z1.device:
        raise ValueError(f"z0 is on {z0.device} and z1 on {z1.device}: move one of them")


def _check_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0:
            raise ValueError(f"temperature has shape {tuple(temperature.shape)}: pass a float or a 0-dim tensor")
        return  # its value stays on its device: reading it would synchronise
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature={temperature}: pass a positive, finite number (0.1 to 0.5 is usual)")
