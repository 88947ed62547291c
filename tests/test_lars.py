"""LARS against an independent implementation, on whatever parameters, layouts and settings; its launches and memory."""

import copy
import functools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from simclr_fast.config import OptimizationOptions
from simclr_fast.lars import BLOCK, LARS
from simclr_fast.optim import build_optimizer
from tests.host_reads import NoHostReads
from tests.optim_in_numpy import lars_in_numpy


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("adapt", [True, False])
def test_lars_agrees_with_the_published_update(seed: int, adapt: bool) -> None:
    rng = np.random.default_rng(seed)
    momentum, weight_decay, eta = rng.uniform(0.5, 0.95), 10 ** rng.uniform(-6, -1), 10 ** rng.uniform(-3, -1)
    shapes = [(4, 3), (5,), (2, 3, 3, 3)]
    starts = [rng.normal(size=shape) for shape in shapes]
    lrs = rng.uniform(0.1, 2.0, size=6)
    grads = [[rng.normal(size=shape) for shape in shapes] for _ in lrs]
    params = [nn.Parameter(torch.tensor(w)) for w in starts]
    optimizer = LARS(params, lr=1.0, momentum=momentum, weight_decay=weight_decay, eta=eta, adapt=adapt)
    for lr, step_grads in zip(lrs, grads):
        optimizer.param_groups[0]["lr"] = lr
        for p, g in zip(params, step_grads):
            p.grad = torch.tensor(g)
        optimizer.step()
    for k, p in enumerate(params):
        expected = lars_in_numpy(starts[k], [g[k] for g in grads], lrs, momentum, weight_decay, eta, adapt)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12)


def test_lars_moves_a_zero_weight_without_adaptation() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    p.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    LARS([p], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(p.detach(), torch.tensor([-0.1, 0.2, -0.05], dtype=torch.float64))


def test_lars_calls_a_closure_with_gradients_and_has_the_published_defaults() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = LARS([p], lr=0.5)
    defaults = {"lr": 0.5, "momentum": 0.9, "weight_decay": 1e-6, "eta": 0.001, "adapt": True}
    assert optimizer.defaults == defaults

    def closure() -> torch.Tensor:
        loss = (p - 1).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == -2
    assert p.tolist() == [-0.5, -0.5]


def test_lars_leaves_parameters_without_gradient() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.ones(2)
    LARS([used, unused], lr=0.1).step()
    assert torch.equal(unused.detach(), torch.ones(2))
    assert not torch.equal(used.detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("momentum", 1.0), ("momentum", -0.1), ("weight_decay", -1e-6), ("eta", 0.0)]
    + [(name, value) for name in ("lr", "momentum", "weight_decay", "eta") for value in (math.nan, math.inf)],
)
def test_lars_refuses_values_out_of_range(name: str, value: float) -> None:
    refuses = functools.partial(pytest.raises, ValueError, match=rf"{name}=.*: pass a ")
    group = {"params": [nn.Parameter(torch.ones(1))]}
    with refuses():
        LARS([group], **({"lr": 0.1} | {name: value}))
    with refuses():
        LARS([group], **({"lr": 0.1} | {name: torch.tensor(value)}))
    with refuses():
        LARS([group | {name: value}], lr=0.1)
    with refuses():
        LARS([group | {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "eta": 0.1}], **({"lr": 0.1} | {name: value}))
    optimizer = LARS([nn.Parameter(torch.ones(1))], lr=0.1)
    with refuses():
        optimizer.add_param_group(group | {name: value})
    assert len(optimizer.param_groups) == 1


def test_lars_groups_have_their_own_learning_rates() -> None:
    rng = np.random.default_rng(0)
    starts, grads = rng.normal(size=(4, 2, 4)), rng.normal(size=(5, 4, 2, 4))
    lrs = rng.uniform(0.1, 2.0, size=(5, 4))
    options = [{"weight_decay": 0.1}, {"weight_decay": 0.0, "adapt": False}, {"momentum": 0.5, "eta": 0.1}]
    options += [{"momentum": 0.0}]
    params = [nn.Parameter(torch.tensor(w)) for w in starts]
    groups = [{"params": [p], **option} for p, option in zip(params, options)]
    optimizer = LARS(groups, lr=1.0, momentum=0.9, weight_decay=0.01, eta=0.02)
    for step_lrs, step_grads in zip(lrs, grads):
        for group, lr, p, g in zip(optimizer.param_groups, step_lrs, params, step_grads):
            group["lr"] = lr
            p.grad = torch.tensor(g)
        optimizer.step()
    for k, (p, option) in enumerate(zip(params, options)):
        settings = {"momentum": 0.9, "weight_decay": 0.01, "eta": 0.02, "adapt": True} | option
        expected = lars_in_numpy(starts[k], grads[:, k], lrs[:, k], **settings)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12)


def test_lars_agrees_in_every_shape_layout_and_dtype() -> None:
    """One element and none, a block to the element and one more, channels-last, two dtypes in turns."""
    rng = np.random.default_rng(2)
    shapes = [(1,), (0, 3), (BLOCK,), (3, BLOCK), (BLOCK + 1,), (4, 3, 3, 5), (2, BLOCK - 1)]
    starts, grads = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    for dtypes in ([torch.float64] * 7, [torch.float32, torch.float64] * 3 + [torch.float32]):
        params = [nn.Parameter(torch.tensor(w, dtype=dtype)) for w, dtype in zip(starts, dtypes)]
        params[5].data = params[5].data.to(memory_format=torch.channels_last)
        optimizer = LARS(params, lr=0.5, momentum=0.7, weight_decay=0.1, eta=0.02)
        for _ in range(3):
            for p, g in zip(params, grads):
                p.grad = torch.empty_like(p).copy_(torch.tensor(g))
            optimizer.step()
        for p, w, g in zip(params, starts, grads):
            expected = lars_in_numpy(w, [g] * 3, [0.5] * 3, 0.7, 0.1, 0.02, adapt=True)
            rtol, atol = (1e-12, 0) if p.dtype == torch.float64 else (1e-5, 1e-6)
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=rtol, atol=atol)
    assert params[5].stride() == optimizer.state[params[5]]["momentum_buffer"].stride() != (45, 15, 5, 1)


def test_lars_takes_no_parameter_with_holes() -> None:
    p = nn.Parameter(torch.ones(4, 4)[:, ::2])
    p.grad = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"parameter \[4, 2\] with strides \(4, 2\): pass dense parameters"):
        LARS([p], lr=0.1).step()


def test_lars_follows_a_momentum_that_changes_to_0_and_back() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = LARS([p], lr=1.0, weight_decay=0.0, adapt=False)
    w = v = 0.0
    for momentum, g in ((0.0, 1.0), (0.5, 2.0), (0.0, 4.0), (0.0, math.inf), (0.5, 8.0), (0.25, -1.0)):
        optimizer.param_groups[0]["momentum"] = momentum
        optimizer.found_inf = torch.tensor(float(g == math.inf))
        p.grad = torch.full_like(p, g)
        optimizer.step()
        if g != math.inf:
            v = momentum * v + g
            w -= v
        assert p.tolist() == [w] * 3


@pytest.mark.parametrize("change", ["channels last", "contiguous", "double", "state", "gradient"])
def test_lars_follows_a_model_that_changes_between_steps(change: str) -> None:
    """Memory layout, dtype, the state loaded, and gradients laid out otherwise than their parameters."""
    rng = np.random.default_rng(3)
    shapes = [(4, 3, 2, 5), (6, 5, 1, 1), (7,)]
    starts, grads = [rng.normal(size=shape) for shape in shapes], [[rng.normal(size=s) for s in shapes] for _ in "123"]
    model = nn.ParameterList([torch.tensor(w) for w in starts])
    if change == "contiguous":
        model.to(memory_format=torch.channels_last)
    elif change == "double":
        model.float()
    settings = {"lr": 0.5, "momentum": 0.7, "weight_decay": 0.1, "eta": 0.02}
    optimizer = LARS(model.parameters(), **settings)
    for k, step_grads in enumerate(grads):
        for p, g in zip(model, step_grads):
            p.grad = torch.empty_like(p).copy_(torch.tensor(g))
            if change == "gradient" and p.ndim == 4:
                p.grad = p.grad.to(memory_format=torch.channels_last)
        optimizer.step()
        if k == 0 and change == "channels last":
            model.to(memory_format=torch.channels_last)
        elif k == 0 and change == "contiguous":
            model.to(memory_format=torch.contiguous_format)
        elif k == 0 and change == "double":
            model.double()
        elif k == 0 and change == "state":
            content = copy.deepcopy(optimizer.state_dict())
            optimizer = LARS(model.to(memory_format=torch.channels_last).parameters(), **settings)
            optimizer.load_state_dict(content)
    for k, p in enumerate(model):
        expected = lars_in_numpy(starts[k], [g[k] for g in grads], [0.5] * 3, 0.7, 0.1, 0.02, adapt=True)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-5 if change == "double" else 1e-12)
        v = optimizer.state[p]["momentum_buffer"]
        assert (v.stride(), v.dtype) == (p.stride(), torch.float64)


def test_lars_frees_the_workspace_of_a_dtype_that_is_gone() -> None:
    model = nn.Linear(4, 3)
    optimizer = LARS(model.parameters(), lr=0.1)
    for dtype in (torch.float32, torch.float64):
        for p in model.to(dtype).parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert list(optimizer._workspaces) == [(torch.device("cpu"), dtype)]


def test_lars_updates_a_parameter_frozen_after_its_gradient_as_torch_does() -> None:
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    LARS([p.requires_grad_(False)], lr=0.5).step()
    assert torch.equal(p, torch.full((3,), -0.5))


def test_a_copy_of_lars_goes_on_by_itself() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = LARS(model.parameters(), lr=0.1, eta=0.1)

    def step(model: nn.Module, optimizer: LARS, value: float) -> None:
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        optimizer.step()

    step(model, optimizer, 1.0)
    again, its_optimizer = copy.deepcopy((model, optimizer))
    step(again, its_optimizer, 2.0)
    assert not torch.equal(again.weight, model.weight)
    step(model, optimizer, 2.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_lars_refuses_the_momentum_of_another_shape() -> None:
    p = nn.Parameter(torch.ones(4, 3))
    p.grad = torch.ones(4, 3)
    optimizer = LARS([p], lr=0.1)
    optimizer.state[p]["momentum_buffer"] = torch.ones(1, 3)
    with pytest.raises(ValueError, match=r"momentum \[1, 3\] of a parameter \[4, 3\]"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(4, 3))


class CountOps(NoHostReads):
    """Counts what is called below autograd, by name, none of which may read values on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "profiler":
            self.counts[func.overloadpacket.__name__] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("layers", [1, 20])
def test_lars_takes_as_many_launches_for_any_number_of_parameters(layers: int) -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)) for _ in range(layers)))
    optimizer = build_optimizer(model, OptimizationOptions(opt="lars"))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()  # makes workspace and state
    with CountOps() as ops:
        optimizer.step()
    several = {name: count for name, count in ops.counts.items() if "foreach" in name or "fused" in name}
    assert several == {"_foreach_copy_": 1, "_foreach_add_": 1, "_foreach_norm": 1, "_fused_sgd_": 1}
    views = ("select", "slice", "view", "unsqueeze", "detach")
    small = {name: count for name, count in ops.counts.items() if name not in (*several, *views)}
    assert sum(small.values()) <= 11, small


def test_lars_has_one_workspace_for_every_set_of_gradients() -> None:
    rng = np.random.default_rng(4)
    starts = rng.normal(size=(8, 3, 4))
    params = [nn.Parameter(torch.tensor(w)) for w in starts]
    # A frozen parameter may have holes, and one of another dtype is alone there without a gradient.
    frozen = nn.Parameter(torch.ones(8, 8, dtype=torch.float64)[:, ::2], requires_grad=False)
    other = nn.Parameter(torch.ones(2))
    optimizer = LARS([*params, frozen, other], lr=0.5, momentum=0.7, weight_decay=0.1, eta=0.02)
    grads: list[list[np.ndarray]] = [[] for _ in params]
    with CountOps() as ops:
        for _ in range(30):
            for p, its_grads in zip(params, grads):
                p.grad = None
                if rng.random() < 0.5:
                    its_grads.append(rng.normal(size=(3, 4)))
                    p.grad = torch.from_numpy(its_grads[-1].copy())
            optimizer.step()
    assert ops.counts["zeros"] == 1
    assert torch.equal(other.detach(), torch.ones(2))
    for p, w, its_grads in zip(params, starts, grads):
        expected = lars_in_numpy(w, its_grads, [0.5] * 30, 0.7, 0.1, 0.02, adapt=True)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-11)


def test_lars_unscales_what_a_scaler_scaled() -> None:
    """Itself: the scaler, which would have to wait for the device, leaves the gradients scaled."""
    weights = []
    for scale in (1.0, 64.0):
        p = nn.Parameter(torch.ones(3, 4))
        optimizer = LARS([p], lr=torch.tensor(0.5), weight_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale((p * torch.arange(4.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(p.grad, scale * torch.arange(4.0).expand(3, 4))
        weights.append(p.detach())
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.ones(3, 4))
