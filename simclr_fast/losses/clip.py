"""CLIP: `clip_loss` and the module `CLIPLoss`, images against texts and texts against images."""

import math
import numbers

import torch
from torch import Tensor, nn

from simclr_fast import distributed
from simclr_fast.backends import check_backend
from simclr_fast.losses.arguments import (
    Backend,
    Precision,
    Reduction,
    check_flags,
    check_options,
    check_rows,
    check_together,
    common_dtype,
    ready_temperature,
    widened_half,
)
from simclr_fast.losses.pairs import pair_logits
from simclr_fast.losses.ranks import check_same_call, flag
from simclr_fast.losses.rows import reduce_rows
from simclr_fast.losses.similarity import agreed_logsumexp
from simclr_fast.ops.ntxent.reference import compute_dtype, row_loss
from simclr_fast.temperature import LARGEST, is_readable


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    *,
    normalize: bool = False,
    reduction: Reduction = "mean",
    group: "torch.distributed.ProcessGroup | None" = None,
    eps: float = 1e-8,
    precision: Precision | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The loss of CLIP (Radford et al. 2021, figure 3), exact, in memory linear in N.

    With s_ij = logit_scale image_i . text_j, the loss of pair i is the mean of -log(exp(s_ii) / sum_j exp(s_ij)) and
    -log(exp(s_ii) / sum_j exp(s_ji)): the image among all texts, and the text among all images.

    Args:
        image_features, text_features: [N, D], N >= 1, D >= 1; float16, bfloat16, float32 or float64. Row i of both is
            a pair.
        logit_scale: 1 / temperature: a positive float, or a 0-dim tensor, which may require grad (CLIP learns its
            logarithm, and passes the exponential).
        normalize: False, as in open_clip, takes the rows as they are, unit rows or not. True divides them by
            max(|row|, eps).
        reduction: "mean" or "sum" over the N pairs, or "none" for their losses [N].
        group: processes whose rows are also negatives; all of them must call with equal shapes and options. "mean"
            and "sum" then return the whole batch's loss on every rank, and the mean of the ranks' gradients is that
            loss's gradient.
        eps, precision, backend: those of `ntxent_loss`.

    Returns:
        float32 (float64 for float64 features), never negative; differentiable once in the features and logit_scale (as
        often as wanted with backend="reference").

    Raises:
        TypeError, ValueError: an argument is of the wrong type, shape, dtype, device or value.
        RuntimeError: the named backend cannot serve the features.
    """
    check_rows("image_features", image_features)
    check_rows("text_features", text_features)
    check_together(("image_features", "text_features"), image_features, text_features)
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"image_features {tuple(image_features.shape)} and text_features {tuple(text_features.shape)} differ in "
            "shape: row i of both is a pair"
        )
    check_flags(normalize=normalize)
    check_options(reduction, eps, precision)
    images, texts = (widened_half(x) for x in common_dtype(image_features, text_features))
    temperature = ready_temperature(_temperature_of(logit_scale, images), images, "image_features")
    options = {"group": group, "eps": eps, "precision": precision, "backend": backend}
    own = (flag("normalize", normalize),)
    called = "clip_loss"
    check_same_call(called, "image_features", images, temperature, reduction=reduction, own=own, **options)

    # Autograd runs what came last first: the pairs' gradients are made when the kernels' unit rows are freed.
    s_pos = pair_logits(images, texts, temperature, eps=eps, normalize=normalize, backend=backend, called=called)  # [N]
    lse_images, lse_texts = agreed_logsumexp(
        images, texts, temperature, exclude="self", both=True, normalize=normalize, called=called, **options
    )
    losses = (row_loss(lse_images, s_pos) + row_loss(lse_texts, s_pos)) / 2
    return reduce_rows(losses, reduction, group, dtype=compute_dtype(images.dtype))


class CLIPLoss(nn.Module):
    """`clip_loss` as a module, call-compatible with `ClipLoss` of open_clip: the same values.

    With world_size > 1, value and gradient are those of the whole batch over the default group of torch.distributed:
    open_clip's with gather_with_grad=True, of which its value with local_loss=True is the rank's own part.

    Args:
        local_loss, gather_with_grad, cache_labels: taken for compatibility. The gradient is always exact, each rank
            always computes its own rows, and there are no labels.
        rank, world_size: of this process in the default group, as torch.distributed knows them.
        use_horovod: must be False.
        reduction, normalize, eps, precision, backend: those of `clip_loss`.

    Raises:
        ValueError: an option is of the wrong value, or world_size > 1 without a group of that size.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        normalize: bool = False,
        reduction: Reduction = "mean",
        eps: float = 1e-8,
        precision: Precision | None = None,
        backend: Backend = "auto",
    ):
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod=True: Horovod is not supported; run under torch.distributed, e.g. torchrun")
        check_flags(normalize=normalize)
        check_options(reduction, eps, precision)
        check_backend(backend)
        self.rank = rank
        self.world_size = world_size
        self.normalize = normalize
        self.reduction = reduction
        self.eps = eps
        self.precision = precision
        self.backend = backend

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss, alone or as {"contrastive_loss": loss}. A bias of all logits changes nothing: its gradient is 0."""
        if not (logit_bias is None or isinstance(logit_bias, (Tensor, numbers.Real))):
            raise TypeError(f"logit_bias is a {type(logit_bias).__name__}: pass a float, a tensor, or None")
        loss = clip_loss(
            image_features,
            text_features,
            logit_scale,
            normalize=self.normalize,
            reduction=self.reduction,
            group=self._group(),
            eps=self.eps,
            precision=self.precision,
            backend=self.backend,
        )
        if isinstance(logit_bias, Tensor) and logit_bias.requires_grad:
            # DistributedDataParallel waits for the gradient of every parameter. A sum of none of its elements is 0
            # where the bias is infinite, too, and has no say in the dtype of the loss.
            loss = loss + logit_bias.reshape(-1)[:0].sum().to(loss)
        return {"contrastive_loss": loss} if output_dict else loss

    def _group(self) -> "torch.distributed.ProcessGroup | None":
        if self.world_size == 1:
            return None
        group = distributed.default_group()
        known = distributed.rank_and_size(group)
        if known != (self.rank, self.world_size):
            raise ValueError(
                f"rank={self.rank}, world_size={self.world_size}: torch.distributed knows rank {known[0]} of "
                f"{known[1]}; call init_process_group first, and pass its numbers"
            )
        return group

    def extra_repr(self) -> str:
        """The options, for print(module)."""
        return (
            f"rank={self.rank}, world_size={self.world_size}, normalize={self.normalize}, "
            f"reduction={self.reduction!r}, backend={self.backend!r}"
        )


def _temperature_of(logit_scale: float | Tensor, rows: Tensor) -> float | Tensor:
    if isinstance(logit_scale, Tensor):
        if logit_scale.numel() != 1 or not logit_scale.is_floating_point() or logit_scale.layout != torch.strided:
            raise ValueError(
                f"logit_scale has shape {tuple(logit_scale.shape)} and dtype {logit_scale.dtype}: pass a float or a "
                "0-dim float tensor"
            )
        if logit_scale.device != rows.device:
            raise ValueError(
                f"logit_scale is on {logit_scale.device} and image_features is on {rows.device}: move one of them"
            )
        temperature = 1 / logit_scale.reshape(()).to(compute_dtype(rows.dtype))
        if is_readable(logit_scale):
            _check_scale(logit_scale.item(), temperature.item())
        return temperature
    if isinstance(logit_scale, bool) or not isinstance(logit_scale, numbers.Real):
        raise TypeError(f"logit_scale is a {type(logit_scale).__name__}: pass a float or a 0-dim tensor")
    if not isinstance(logit_scale, (int, float)):
        logit_scale = float(logit_scale)  # of NumPy
    temperature = 1 / logit_scale if logit_scale > 0 else math.nan
    _check_scale(logit_scale, temperature)
    return temperature


def _check_scale(value: float, temperature: float) -> None:
    if not 0 < value <= LARGEST or not 0 < temperature <= LARGEST:
        raise ValueError(f"logit_scale={value}: pass a positive, finite number (1 / temperature: 14.3 to 100 is usual)")
