"""Optimizers of SimCLR: LARS as published, parameter groups, learning-rate scaling and the schedule."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from simclr_fast.config import OptimizationOptions


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv:1708.03888), as SimCLR's published code has it.

    For a parameter w with gradient g and weight decay wd:
        g <- g + wd w
        trust = eta |w| / |g| if both norms are positive else 1       (1 as well in groups with `adapt=False`)
        v <- momentum v + lr trust g
        w <- w - v
    The learning rate is inside the momentum buffer, so a change of it acts on new gradients only. All tensors of a
    group are updated by multi-tensor kernels; nothing synchronises with the device.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        eta: float = 0.001,
        adapt: bool = True,
    ):
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name}={value}: pass a number >= 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: pass a fraction in [0, 1)")
        if eta <= 0:
            raise ValueError(f"eta={eta}: pass a number > 0")
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": adapt}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            if group["weight_decay"] != 0:
                grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            if group["adapt"]:
                grads = torch._foreach_mul(grads, self._trust(params, grads, group["eta"]))
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            velocity = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_mul_(velocity, group["momentum"])
            torch._foreach_add_(velocity, grads, alpha=group["lr"])
            torch._foreach_sub_(params, velocity)
        return loss

    @staticmethod
    def _trust(params: list[Tensor], grads: list[Tensor], eta: float) -> list[Tensor]:
        weight_norm = torch.stack(torch._foreach_norm(params))
        grad_norm = torch.stack(torch._foreach_norm(grads))
        trust = torch.where((weight_norm > 0) & (grad_norm > 0), eta * weight_norm / grad_norm, 1.0)
        return list(trust.unbind())


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights; and biases and normalisation, all one-dimensional, which are neither decayed nor adapted."""
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]


def build_optimizer(model: nn.Module, options: OptimizationOptions) -> torch.optim.Optimizer:
    """The optimizer of the options over `model`'s parameters, fused where torch has a fused form."""
    groups = parameter_groups(model, options.weight_decay)
    lr = peak_lr(options)
    if options.opt == "lars":
        return LARS(groups, lr=lr, momentum=options.momentum)
    for group in groups:
        group.pop("adapt", None)
    if options.opt == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=options.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def peak_lr(options: OptimizationOptions) -> float:
    """--lr, or --lr-base scaled from --lr-base-size to the global batch size."""
    if options.lr is not None:
        return options.lr
    ratio = options.batch_size / options.lr_base_size
    return options.lr_base * (ratio if options.lr_base_scale == "linear" else math.sqrt(ratio))


def lr_at(step: int, peak: float, total_steps: int, warmup_steps: int) -> float:
    """Learning rate of step 0, 1, ..., total_steps - 1: linear warm-up to `peak`, then a cosine that would end at 0.

    The first step has peak / warmup_steps rather than 0, so that no step is spent standing still.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
