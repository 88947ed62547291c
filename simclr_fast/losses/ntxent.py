"""The public NT-Xent loss and its variants: `ntxent_loss`, and the module `NTXentLoss`, also with a memory bank."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simclr_fast.backends import resolve_backend
from simclr_fast.losses.arguments import (
    Backend,
    Precision,
    Reduction,
    check_flags,
    check_options,
    check_rows,
    check_together,
    common_dtype,
    default_precision,
    for_backward,
    ready_temperature,
    widened_half,
)
from simclr_fast.losses.memory_bank import MemoryBank, bank_size
from simclr_fast.losses.module import ContrastiveLoss
from simclr_fast.losses.ntxent_rows import (
    Call,
    loss_of_rows,
    rows_of_pairs,
    rows_of_queries,
    weights_of_rows,
)
from simclr_fast.losses.ranks import Shared, check_same_call, flag, presence
from simclr_fast.losses.rows import reduce_rows
from simclr_fast.losses.statistics import NTXentStatistics
from simclr_fast.losses.sup_con import loss_of_classes
from simclr_fast.ops.ntxent.limits import is_large
from simclr_fast.ops.ntxent.ops import ntxent
from simclr_fast.ops.ntxent.reference import compute_dtype


def ntxent_loss(
    z0: Tensor,
    z1: Tensor | None = None,
    temperature: float | Tensor = 0.5,
    *,
    decoupled: bool = False,
    weights: Tensor | None = None,
    return_stats: bool = False,
    reduction: Reduction = "mean",
    group: "torch.distributed.ProcessGroup | None" = None,
    eps: float = 1e-8,
    precision: Precision | None = None,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, NTXentStatistics]:
    """The NT-Xent loss of two views or more, exact, in memory linear in N.

    Row i of z0 and row i of z1 are a positive pair; all other rows of both views are negatives. With unit rows
    u_i = z_i / max(|z_i|, eps) and s_ij = u_i . u_j / temperature, the loss of row i is
    -log(exp(s_ip) / sum_{j != i} exp(s_ij)), p being its positive. Chance level is log(2N - 1).

    Args:
        z0, z1: [N, D], N >= 1, D >= 1; float16, bfloat16, float32 or float64, any strides. Under autocast the two may
            differ in dtype, and the narrower is widened. Or views [V, N, D] alone: of V > 2 views row i's loss is its
            mean over the V - 1 positives, all in the denominator (Khosla et al. 2020, eq. 2, a sample being a class).
        temperature: a positive float, or a 0-dim tensor on the views' device, which may require grad. A tensor on CUDA
            is never read by the host, hence its value is not checked: a temperature <= 0 gives a meaningless loss.
            torch.compile makes a graph for the first float it meets, and one for all floats after it.
        decoupled: leaves the positive out of the denominator: log sum_{j != i, p} exp(s_ij) - s_ip (Yeh et al. 2022,
            "Decoupled Contrastive Learning", eq. 6). Of two views; needs a second sample.
        weights: [N], a factor on the losses of all rows of a sample. "mean" still divides by the number of rows, not by
            the sum of the weights. Any real dtype; differentiable.
        return_stats: also return the batch's `NTXentStatistics`. Of two views.
        reduction: "mean" or "sum" over the 2N rows, or "none" for the row losses [2N], view 0 before view 1; of V views
            V N.
        group: processes whose rows are also negatives; all of them must call with equal shapes and options. "mean" and
            "sum" then return the loss of the whole batch on every rank, and the mean of the ranks' gradients, which
            DistributedDataParallel takes, is that loss's gradient. "none" returns this rank's rows.
        eps: rows shorter than this are divided by it (> 0).
        precision: for float32 on CUDA, "ieee" multiplies with float32 accuracy, "tf32" rounds factors to 10 bits. None
            follows torch.get_float32_matmul_precision(). The CPU always multiplies float32 as float32.
        backend: "auto", "cpp" (compiled extension), "triton" or "reference" (plain PyTorch, O(N^2) memory).

    Returns:
        The loss, and with `return_stats` (loss, statistics). float32 (float64 for float64 views), never negative unless
        decoupled; differentiable once in the views, temperature and weights (as often as wanted with
        backend="reference"). A NaN in a view gives NaN.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, dtype, device or value.
        RuntimeError: the named backend cannot serve the views.
    """
    if z1 is None:
        _check_stack(z0)
        if z0.shape[0] > 2:
            if decoupled or return_stats:
                name = "decoupled" if decoupled else "return_stats"
                raise ValueError(f"{name}=True with z0 {tuple(z0.shape)}: it is defined for two views; leave it False")
            options = {"group": group, "eps": eps, "precision": precision, "backend": backend}
            options |= {"called": "ntxent_loss of more than two views", "of": "z0"}
            samples = z0.transpose(0, 1)  # [N, V, D]
            loss = loss_of_classes(samples, None, temperature, weights=weights, reduction=reduction, **options)
            return loss.T.flatten() if reduction == "none" else loss
        z0, z1 = z0.unbind()
    _check_views(("z0", "z1"), z0, z1)
    fused = not (decoupled or return_stats)
    call = Call(temperature, decoupled, return_stats, reduction, eps, precision, backend, group)
    own = _own(call, weights)
    z0, z1, call = _ready("ntxent_loss", "z0", z0, z1, call, "ntxent_fwd" if fused else "similarity_fwd", own)
    if weights is not None:
        weights = weights_of_rows(weights, z0, views=2, of="z0")
    if not fused:
        return loss_of_rows(rows_of_pairs(z0, z1, call), weights, call)
    loss = ntxent(
        z0,
        z1,
        call.temperature,
        reduction=reduction if weights is None else "none",
        eps=call.eps,
        precision=call.precision,
        backend=call.backend,
        group=group,
    )
    if weights is None:
        return loss
    return reduce_rows(loss * weights, reduction, group, dtype=compute_dtype(z0.dtype))


class NTXentLoss(ContrastiveLoss):
    """`ntxent_loss` as a module, call-compatible with lightly's: `loss = NTXentLoss(temperature=0.5)(z0, z1)`.

    Args:
        temperature: a positive float; a tensor, which moves with the module; an nn.Parameter, which is learned with it;
            or a module that is called for it, as `LearnedTemperature`.
        memory_bank_size: (K, D), or K alone where the first call is to tell D: the negatives of out0 are then the K
            rows of a `MemoryBank` and no others, as in MoCo, the positives still the rows of out1, and out1's rows do
            not compete: the loss is the mean of -log(exp(s_ip) / (exp(s_ip) + sum over the bank of exp(s_ij))) over the
            N rows of out0. Afterwards out1's rows enter the bank, where out0 requires grad: an evaluation leaves it
            alone. The bank is part of the state dict, and takes two views.
        gather_distributed: compare with the rows of all processes (of the default group; alone without one).
        decoupled, return_stats, reduction, eps, precision, backend: those of `ntxent_loss`.

    Raises:
        TypeError, ValueError: an option is of the wrong type or value.
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        decoupled: bool = False,
        return_stats: bool = False,
        reduction: Reduction = "mean",
        eps: float = 1e-8,
        precision: Precision | None = None,
        backend: Backend = "auto",
    ):
        super().__init__(
            temperature, gather_distributed, reduction=reduction, eps=eps, precision=precision, backend=backend
        )
        size = bank_size(memory_bank_size)
        self.memory_bank = MemoryBank(*size, gather_distributed=gather_distributed) if size else None
        check_flags(decoupled=decoupled, return_stats=return_stats)
        self.decoupled = decoupled
        self.return_stats = return_stats

    def forward(
        self,
        out0: Tensor,
        out1: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        return_stats: bool | None = None,
    ) -> Tensor | tuple[Tensor, NTXentStatistics]:
        """The loss of the views out0, out1 [N, D], which are z0, z1 of `ntxent_loss` under lightly's names.

        return_stats: whether this call is to return the statistics, too; None: as the module's option says.
        """
        return_stats = self.return_stats if return_stats is None else return_stats
        options = self.options()
        options["decoupled"] = self.decoupled
        options["return_stats"] = return_stats
        if self.memory_bank is None:
            return ntxent_loss(out0, out1, weights=weights, **options)
        return _loss_with_bank(out0, out1, self.memory_bank, weights, Call(**options))


def _loss_with_bank(out0: Tensor, out1: Tensor | None, memory_bank: MemoryBank, weights: Tensor | None, call: Call):
    if out1 is None:
        raise ValueError("out1 is None: a memory bank takes two views; pass out0 and out1")
    _check_views(("out0", "out1"), out0, out1)
    # The bank is float32: half rows are widened to it rather than it to them.
    wide0, wide1 = (out.to(torch.promote_types(out.dtype, memory_bank.bank.dtype)) for out in (out0, out1))
    fills = out0.requires_grad and torch.is_grad_enabled()
    own = (
        *_own(call, weights),
        Shared("rows of the memory bank", memory_bank.size, "make the same module on every rank"),
        flag("out0.requires_grad", fills),
        flag("memory_bank.agreed", memory_bank.agreed),
    )
    called, op, rows = "NTXentLoss with a memory bank", "similarity_fwd", memory_bank.size
    queries, keys, call = _ready(called, "out0", wide0, wide1, call, op, own, rows)
    bank = memory_bank(out0)
    if weights is not None:
        weights = weights_of_rows(weights, queries, views=1, of="out0")
    result = loss_of_rows(rows_of_queries(queries, keys, bank.to(queries.dtype), call), weights, call)
    if fills:
        memory_bank.enqueue(keys, call.eps)
    return result


def _own(call: Call, weights: Tensor | None) -> tuple[Shared, ...]:
    """What the ranks of a group, if there is one, must have alike."""
    if call.group is None:
        return ()
    return (
        flag("decoupled", call.decoupled),
        flag("return_stats", call.return_stats),
        presence("weights", weights),
    )


def _ready(
    called: str, name: str, z0: Tensor, z1: Tensor, call: Call, op: str, own: tuple[Shared, ...], bank: int = 0
) -> tuple[Tensor, Tensor, Call]:
    """Checked views, and a call with checked options, the same on all ranks, as this op takes them.

    bank: the columns of a call whose rows are z0's alone, and are compared with no other process's; 0: the views' rows.
    """
    check_flags(decoupled=call.decoupled, return_stats=call.return_stats)
    check_options(call.reduction, call.eps, call.precision)
    if z0.dtype != z1.dtype:
        z0, z1 = common_dtype(z0, z1)
    temperature = ready_temperature(call.temperature, z0, name)
    if call.group is not None:
        how = {"reduction": call.reduction, "eps": call.eps, "precision": call.precision, "backend": call.backend}
        check_same_call(called, name, z0, temperature, **how, group=call.group, own=own)
    if op == "similarity_fwd":
        z0, z1 = widened_half(z0), widened_half(z1)
    precision = default_precision() if call.precision is None else call.precision
    large = is_large(z0, precision, None, (z0.shape[0], bank)) if bank else is_large(z0, precision, call.group)
    backend = resolve_backend(call.backend, op, z0.device, z0.dtype, large, called)
    how = (call.reduction, float(call.eps), precision, backend, call.group, called)
    return *for_backward(z0, z1), Call(temperature, call.decoupled, call.return_stats, *how)


def _check_stack(views: Tensor) -> None:
    if not isinstance(views, Tensor) or views.ndim != 3 or views.shape[0] < 2:
        shape = tuple(views.shape) if isinstance(views, Tensor) else type(views).__name__
        raise ValueError(f"z0 is {shape} and z1 is None: pass z0 and z1 [N, D], or all views in one tensor [V, N, D]")
    check_rows("z0", views, stack="[V, N, D], N embeddings of each view")


def _check_views(names: tuple[str, str], z0: Tensor, z1: Tensor) -> None:
    for name, z in zip(names, (z0, z1)):
        check_rows(name, z)
    if z0.shape != z1.shape:
        shapes = [f"{name} {tuple(z.shape)}" for name, z in zip(names, (z0, z1))]
        raise ValueError(f"{' and '.join(shapes)} differ in shape: row i of both is one sample")
    check_together(names, z0, z1)
