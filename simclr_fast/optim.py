"""The optimizers of the options: parameter groups, state that fits, learning-rate scaling and the schedule."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from simclr_fast.config import OptimizationOptions
from simclr_fast.lars import LARS

# Parts of the names of learned positions, tokens and biases that have several dimensions: class_token, pos_embedding,
# relative_position_bias_table and timm's cls_token, pos_embed, rel_pos_h and the like.
_NOT_WEIGHTS = ("bias", "token", "pos_emb", "position", "rel_pos")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights; and biases, normalisation, scales, tokens and positions, neither decayed nor adapted."""
    params = [(is_weight(name, p), p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for chosen, p in params if chosen], "weight_decay": weight_decay},
        {"params": [p for chosen, p in params if not chosen], "weight_decay": 0.0, "adapt": False},
    ]


def is_weight(name: str, p: Tensor) -> bool:
    """Whether a layer multiplies its input by the parameter of this name, as a matrix or a convolution.

    What has one dimension is a bias or normalises; so is what a layer without a `weight` spreads over several, such as
    ConvNeXt's layer_scale [C, 1, 1] and Swin's logit_scale [heads, 1, 1].
    """
    own = name.rpartition(".")[2]
    if p.ndim <= 1 or any(part in own for part in _NOT_WEIGHTS):
        return False
    return own.endswith("weight") or p.numel() > max(p.shape)


def build_optimizer(model: nn.Module, options: OptimizationOptions) -> torch.optim.Optimizer:
    """The optimizer of the options over `model`'s parameters, fused, and fit for a CUDA graph where they are on CUDA.

    Its groups share one learning rate, a float32 tensor [] on the device: `set_learning_rate` changes it.
    """
    groups = parameter_groups(model, options.weight_decay)
    device = next(model.parameters()).device
    lr = torch.tensor(peak_lr(options), dtype=torch.float32, device=device)
    if options.opt == "lars":
        return LARS(groups, lr=lr, momentum=options.momentum)
    for group in groups:
        group.pop("adapt", None)
    if options.opt == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=options.momentum, fused=True)
        # torch makes the buffers in the first step, and leaves them uninitialised where the device skips it, as it does
        # when the first gradient in float16 overflows. From zeros the first step is the same.
        for p in (p for group in groups for p in group["params"]):
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer
    return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=device.type == "cuda")


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give all groups a learning rate; tensors are filled, which on CUDA is queued like any kernel."""
    filled: set[int] = set()
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            group["lr"] = lr
        elif id(group["lr"]) not in filled:
            filled.add(id(group["lr"]))
            group["lr"].fill_(lr)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict with learning rates as numbers, as it is in a checkpoint."""
    content = optimizer.state_dict()
    groups = [group | {"lr": float(group["lr"])} for group in content["param_groups"]]
    return content | {"param_groups": groups}


def load_optimizer_state(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> None:
    """Load a state dict made by `optimizer_state`, or by an optimizer whose learning rates are tensors.

    The groups' settings stay those that the optimizer was made with: how it works on this device is no state. State
    in another memory layout than its parameter's is laid out anew: fused kernels go through both in memory order.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(content)
    for group, own, stored in zip(optimizer.param_groups, settings, content["param_groups"]):
        group.update(own)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(float(stored["lr"]))
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[name] = torch.empty_like(p).copy_(value)


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
