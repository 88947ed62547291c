"""LARS, the optimizer of SimCLR, in a fixed number of kernels: torch has none."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Elements of a workspace that one trust ratio scales: every tensor is padded to a multiple of it. Twice as many would
# pad most biases to four times their size; half as many double the table of blocks.
BLOCK = 1024


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

    A workspace as large as the parameters holds the scaled gradients. Parameters must be dense (ValueError).
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
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name}={value}: pass a number >= 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: pass a fraction in [0, 1)")
        if eta <= 0:
            raise ValueError(f"eta={eta}: pass a number > 0")
        self._workspaces: dict[tuple[int, ...], _Workspace] = {}
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "adapt": adapt}
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._workspaces = {}  # of no copy's and no file's parameters

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for kind in dict.fromkeys((p.device, p.dtype) for p, _ in members):
            self._update([(p, group) for p, group in members if (p.device, p.dtype) == kind])
        return loss

    def _update(self, members: list[tuple[Tensor, dict[str, Any]]]) -> None:
        """Update parameters of one device and dtype, which come with their groups and in the groups' order."""
        params = [p for p, _ in members]
        work = self._workspace(params)
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        # 1. g <- g + wd w
        torch._foreach_copy_(work.grads, [p.grad for p in params])
        if grad_scale is not None:
            work.flat.div_(grad_scale)
        for decay, places in _places(members, "weight_decay").items():
            if decay != 0:
                torch._foreach_add_([work.grads[k] for k in places], [params[k] for k in places], alpha=decay)
        # 2. g <- lr trust g
        work.scale(self._rates(members, work))
        # 3. v <- momentum v + g and w <- w - v: SGD with momentum at a learning rate of 1
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        for momentum, places in _places(members, "momentum").items():
            torch._fused_sgd_(
                [params[k] for k in places],
                [work.grads[k] for k in places],
                [self.state[params[k]]["momentum_buffer"] for k in places],
                weight_decay=0.0,
                momentum=momentum,
                lr=1.0,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                grad_scale=None,
                found_inf=found_inf,
            )

    def _workspace(self, params: list[Tensor]) -> "_Workspace":
        key = tuple(map(id, params))
        if key not in self._workspaces:
            self._workspaces[key] = _Workspace(params)
        return self._workspaces[key]

    @staticmethod
    def _rates(members: list[tuple[Tensor, dict[str, Any]]], work: "_Workspace") -> Tensor:
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

    flat: [blocks, BLOCK], each row of one tensor; grads: the tensors in it, laid out as their parameters; ones: [P].
    """

    def __init__(self, params: list[Tensor]):
        for p in params:
            if torch.empty_like(p).stride() != p.stride():
                raise ValueError(f"parameter {list(p.shape)} with strides {p.stride()}: pass dense parameters")
        blocks = [-(-p.numel() // BLOCK) for p in params]
        device = params[0].device
        self.flat = torch.zeros(sum(blocks), BLOCK, dtype=params[0].dtype, device=device)
        begins = itertools.accumulate(blocks, initial=0)
        self.grads = [self.flat.as_strided(p.shape, p.stride(), begin * BLOCK) for p, begin in zip(params, begins)]
        self.ones = torch.ones(len(params), dtype=params[0].dtype, device=device)
        tensor_of_block = torch.repeat_interleave(torch.arange(len(params)), torch.tensor(blocks))
        self._tensor_of_block = tensor_of_block.to(device)

    def scale(self, factors: Tensor) -> None:
        """Multiply each tensor by its entry of factors [P]."""
        self.flat.mul_(factors.index_select(0, self._tensor_of_block).unsqueeze(1))


def _places(members: list[tuple[Tensor, dict[str, Any]]], name: str) -> dict[float, list[int]]:
    """The places of the members by their groups' value of a setting."""
    places: dict[float, list[int]] = {}
    for k, (_, group) in enumerate(members):
        places.setdefault(group[name], []).append(k)
    return places
