"""LARS, the optimizer of SimCLR, in a fixed number of kernels: torch has none."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Elements of a workspace that one trust ratio scales: every tensor is padded to a multiple of it. Twice as many would
# pad most biases to four times their size; half as many double the table of blocks.
BLOCK = 1024

# What torch's fused SGD is to leave out.
PLAIN_SGD = {"weight_decay": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False, "grad_scale": None}

_Kind = tuple[torch.device, torch.dtype]
_Layout = tuple[torch.Size, tuple[int, ...]]  # shape and strides
_Member = tuple[Tensor, dict[str, Any]]  # a parameter and its group


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv:1708.03888), as SimCLR's published code has it.

    For a parameter w with gradient g and weight decay wd:
        g <- g + wd w
        trust = eta |w| / |g| if both norms are positive else 1       (1 as well in groups with `adapt=False`)
        v <- momentum v + lr trust g
        w <- w - v
    The learning rate is inside the momentum buffer, so a change of it acts on new gradients only. It may be a tensor on
    the parameters' device, and may then be changed between replays of a CUDA graph of the step. All parameters are
    updated by four multi-tensor kernels; nothing waits for the device. As torch's fused optimizers do, `step` leaves
    parameters and state as they are where the tensor `found_inf` [], if this object has one, holds 1.

    A workspace as large as the parameters that are trained holds the scaled gradients. The model may change its memory
    layout, dtype or device between steps: workspace and momentum follow. Parameters must be dense (ValueError).
    """

    # torch.amp.GradScaler then sets `found_inf` and `grad_scale` instead of reading on the host whether to step.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        eta: float = 0.001,
        adapt: bool = True,
    ):
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": adapt}
        _check(settings)
        self._workspaces: dict[_Kind, _Workspace] = {}
        super().__init__(params, settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _check(self.defaults | param_group)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._workspaces = {}  # which are not copied with the state

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members: dict[_Kind, list[_Member]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad or p.grad is not None:
                    members.setdefault((p.device, p.dtype), []).append((p, group))
        self._workspaces = {kind: work for kind, work in self._workspaces.items() if kind in members}
        for kind, its_members in members.items():
            self._update(kind, its_members)
        return loss

    def _update(self, kind: _Kind, members: list[_Member]) -> None:
        """Update those parameters of one device and dtype that have a gradient; all come in their groups' order."""
        params = [p for p, _ in members]
        present = [k for k, p in enumerate(params) if p.grad is not None]
        if not present:
            return
        # What the workspace holds for the others is scaled with the rest and goes nowhere: one workspace serves every
        # set of gradients, at an address that a CUDA graph can rely on.
        work = self._workspace(kind, params)
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        # 1. g <- g + wd w
        torch._foreach_copy_([work.grads[k] for k in present], [params[k].grad for k in present])
        if grad_scale is not None:
            work.flat.div_(grad_scale)
        for decay, chosen in _by_setting(members, present, "weight_decay").items():
            if decay != 0:
                torch._foreach_add_([work.grads[k] for k in chosen], [params[k] for k in chosen], alpha=decay)
        # 2. g <- lr trust g
        work.scale(self._rates(members, work))
        # 3. v <- momentum v + g and w <- w - v: SGD with momentum at a learning rate of 1
        for momentum, chosen in _by_setting(members, present, "momentum").items():
            torch._fused_sgd_(
                [params[k] for k in chosen],
                [work.grads[k] for k in chosen],
                [self._momentum_buffer(params[k], kind, work.layouts[k]) for k in chosen],
                # At a momentum of 0 the kernel takes no buffers; its first step, at any other momentum, sets v <- g.
                momentum=momentum if momentum != 0 else 1.0,
                lr=1.0,
                is_first_step=momentum == 0,
                found_inf=found_inf,
                **PLAIN_SGD,
            )

    def _workspace(self, kind: _Kind, params: list[Tensor]) -> "_Workspace":
        work = self._workspaces.get(kind)
        if work is None or work.layouts != [(p.shape, p.stride()) for p in params]:
            work = self._workspaces[kind] = _Workspace(params)
        return work

    def _momentum_buffer(self, p: Tensor, kind: _Kind, layout: _Layout) -> Tensor:
        """The state v of a parameter, laid out as the parameter: the fused kernel goes through both in memory order."""
        state = self.state[p]
        v = state.get("momentum_buffer")
        if v is None:
            v = state["momentum_buffer"] = torch.zeros_like(p)
        elif (v.shape, v.stride()) != layout or (v.device, v.dtype) != kind:
            if v.shape != p.shape:
                raise ValueError(f"momentum {list(v.shape)} of a parameter {list(p.shape)}: load this model's state")
            v = state["momentum_buffer"] = torch.empty_like(p).copy_(v)
        return v

    @staticmethod
    def _rates(members: list[_Member], work: "_Workspace") -> Tensor:
        """lr * trust of each parameter [P]."""
        adapted = [k for k, (_, group) in enumerate(members) if group["adapt"]]
        tensors = [members[k][0] for k in adapted] + [work.grads[k] for k in adapted]
        if tensors:
            norms = torch.stack(torch._foreach_norm(tensors)).view(2, -1)  # of the weights, of the gradients
            both_positive = (norms > 0).all(0)
            ratio = norms[0] / norms[1]
        rates, first = [], 0
        for _, run in itertools.groupby(members, key=lambda member: id(member[1])):
            group = (run := list(run))[0][1]
            trust = work.ones[: len(run)]
            if group["adapt"]:
                part = slice(first, first := first + len(run))
                trust = torch.where(both_positive[part], group["eta"] * ratio[part], trust)
            rates.append(trust * group["lr"])
        return torch.cat(rates)


class _Workspace:
    """Gradients of one dtype and device in one buffer, where one multiplication scales each by a number of its own.

    flat: [blocks, BLOCK], each row of one tensor; grads: the tensors in it, laid out as their parameters; layouts:
    their shapes and strides; ones: [P].
    """

    def __init__(self, params: list[Tensor]):
        for p in params:
            if torch.empty_like(p).stride() != p.stride():
                raise ValueError(f"parameter {list(p.shape)} with strides {p.stride()}: pass dense parameters")
        self.layouts = [(p.shape, p.stride()) for p in params]
        blocks = [-(-p.numel() // BLOCK) for p in params]
        device = params[0].device
        self.flat = torch.zeros(sum(blocks), BLOCK, dtype=params[0].dtype, device=device)
        begins = itertools.accumulate(blocks, initial=0)
        self.grads = [self.flat.as_strided(p.shape, p.stride(), begin * BLOCK) for p, begin in zip(params, begins)]
        self.ones = torch.ones(len(params), dtype=params[0].dtype, device=device)
        tensor_of_block = [k for k, number in enumerate(blocks) for _ in range(number)]
        self._tensor_of_block = torch.tensor(tensor_of_block, dtype=torch.int64, device=device)

    def scale(self, factors: Tensor) -> None:
        """Multiply each tensor by its entry of factors [P]."""
        self.flat.mul_(factors.index_select(0, self._tensor_of_block).unsqueeze(1))


def _check(settings: dict[str, Any]) -> None:
    """Raise ValueError for a group's setting that is no number or out of its range."""
    for name in ("lr", "weight_decay"):
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"{name}={settings[name]}: pass a finite number >= 0")
    if not 0 <= settings["momentum"] < 1:
        raise ValueError(f"momentum={settings['momentum']}: pass a fraction in [0, 1)")
    if not 0 < settings["eta"] < math.inf:
        raise ValueError(f"eta={settings['eta']}: pass a finite number > 0")


def _by_setting(members: list[_Member], chosen: list[int], name: str) -> dict[float, list[int]]:
    """The indices of the chosen members by their groups' value of a setting."""
    found: dict[float, list[int]] = {}
    for k in chosen:
        found.setdefault(members[k][1][name], []).append(k)
    return found
