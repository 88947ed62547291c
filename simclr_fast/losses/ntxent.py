"""The public NT-Xent loss: `ntxent_loss` and the module `NTXentLoss`."""

import torch
from torch import Tensor, nn

from simclr_fast.backends import resolve_backend
from simclr_fast.losses.arguments import (
    Backend,
    Precision,
    Reduction,
    check_options,
    check_rows,
    check_together,
    common_dtype,
    default_precision,
    for_backward,
    ready_temperature,
)
from simclr_fast.losses.module import ContrastiveLoss
from simclr_fast.ops.ntxent.limits import is_large
from simclr_fast.ops.ntxent.ops import ntxent


def ntxent_loss(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    reduction: Reduction = "mean",
    group: "torch.distributed.ProcessGroup | None" = None,
    eps: float = 1e-8,
    precision: Precision | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The NT-Xent loss of two views, exact, in memory linear in N.

    Row i of z0 and row i of z1 are a positive pair; all other rows of both views are negatives. With unit rows
    u_i = z_i / max(|z_i|, eps) and s_ij = u_i . u_j / temperature, the loss of row i is
    -log(exp(s_ip) / sum_{j != i} exp(s_ij)), p being its positive. Chance level is log(2N - 1).

    Args:
        z0, z1: [N, D], N >= 1, D >= 1; float16, bfloat16, float32 or float64, any strides. Under autocast the two may
            differ in dtype, and the narrower is widened.
        temperature: a positive float, or a 0-dim tensor on the views' device, which may require grad. A tensor on CUDA
            is never read by the host, hence its value is not checked: a temperature <= 0 gives a meaningless loss.
            torch.compile makes a graph for the first float it meets, and one for all floats after it.
        reduction: "mean" or "sum" over the 2N rows, or "none" for the row losses [2N], view 0 before view 1.
        group: processes whose rows are also negatives; all of them must call with equal N, D, temperature, reduction
            and eps. "mean" and "sum" then return the loss of the whole batch on every rank, and the mean of the ranks'
            gradients, which DistributedDataParallel takes, is that loss's gradient. "none" returns this rank's rows.
        eps: rows shorter than this are divided by it (> 0).
        precision: for float32 on CUDA, "ieee" multiplies with float32 accuracy, "tf32" rounds factors to 10 bits. None
            follows torch.get_float32_matmul_precision(). The CPU always multiplies float32 as float32.
        backend: "auto", "cpp" (compiled extension), "triton" or "reference" (plain PyTorch, O(N^2) memory).

    Returns:
        float32 (float64 for float64 views), never negative; differentiable once in z0, z1 and temperature (as often as
        wanted with backend="reference"). A NaN in a view gives NaN.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, dtype, device or value.
        RuntimeError: the named backend cannot serve the views.
    """
    _check_views(z0, z1)
    check_options(reduction, eps, precision)
    z0, z1 = common_dtype(z0, z1)
    temperature = ready_temperature(temperature, z0)
    precision = default_precision() if precision is None else precision
    return ntxent(
        for_backward(z0),
        for_backward(z1),
        temperature,
        reduction=reduction,
        eps=float(eps),
        precision=precision,
        backend=resolve_backend(backend, "ntxent_fwd", z0.device, z0.dtype, is_large(z0, precision, group)),
        group=group,
    )


class NTXentLoss(ContrastiveLoss):
    """`ntxent_loss` as a module, call-compatible with lightly's: `loss = NTXentLoss(temperature=0.5)(z0, z1)`.

    The options are those of `ntxent_loss` and `ContrastiveLoss`.
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.5,
        memory_bank_size: int = 0,
        gather_distributed: bool = False,
        *,
        reduction: Reduction = "mean",
        eps: float = 1e-8,
        precision: Precision | None = None,
        backend: Backend = "auto",
    ):
        if memory_bank_size != 0:
            raise NotImplementedError(
                f"memory_bank_size={memory_bank_size!r}: memory banks are not implemented; use 0 and a larger batch"
            )
        super().__init__(
            temperature, gather_distributed, reduction=reduction, eps=eps, precision=precision, backend=backend
        )

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss of the views out0, out1 [N, D], which are z0, z1 of `ntxent_loss` under lightly's names."""
        return ntxent_loss(out0, out1, **self.options())


def _check_views(z0: Tensor, z1: Tensor) -> None:
    check_rows("z0", z0)
    check_rows("z1", z1)
    if z0.shape != z1.shape:
        raise ValueError(f"z0 {tuple(z0.shape)} and z1 {tuple(z1.shape)} differ in shape: row i of both is one sample")
    check_together(("z0", "z1"), z0, z1)
