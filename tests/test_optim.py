"""LARS against an independent implementation, parameter groups, learning-rate scaling, the schedule's closed form."""

import copy
import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from simclr_fast.config import OptimizationOptions
from simclr_fast.lars import BLOCK, LARS
from simclr_fast.optim import (
    build_optimizer,
    load_optimizer_state,
    lr_at,
    optimizer_state,
    parameter_groups,
    peak_lr,
    set_learning_rate,
)


def lars_in_numpy(w, grads, lrs, momentum, weight_decay, eta, adapt):
    """The update of google-research/simclr's lars_optimizer.py (classic momentum), one tensor, float64."""
    w, v = w.astype(np.float64), np.zeros(w.shape)
    for g, lr in zip(grads, lrs):
        g = g.astype(np.float64) + weight_decay * w
        trust = 1.0
        w_norm, g_norm = np.sqrt((w * w).sum()), np.sqrt((g * g).sum())
        if adapt and w_norm > 0 and g_norm > 0:
            trust = eta * w_norm / g_norm
        v = momentum * v + lr * trust * g
        w = w - v
    return w


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


def test_lars_leaves_parameters_without_gradient() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    used.grad = torch.ones(2)
    LARS([used, unused], lr=0.1).step()
    assert torch.equal(unused.detach(), torch.ones(2))
    assert not torch.equal(used.detach(), torch.ones(2))


@pytest.mark.parametrize(("name", "value"), [("lr", -1.0), ("momentum", 1.0), ("weight_decay", -1e-6), ("eta", 0.0)])
def test_lars_refuses_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        LARS([nn.Parameter(torch.ones(1))], **({"lr": 0.1} | {name: value}))


def test_biases_and_norms_are_neither_decayed_nor_adapted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    decayed, plain = parameter_groups(model, weight_decay=0.1)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert {id(p) for p in plain["params"]} == {id(p) for p in (model[0].bias, *model[1].parameters(), model[3].bias)}
    assert (decayed["weight_decay"], plain["weight_decay"], plain["adapt"]) == (0.1, 0.0, False)
    optimizer = build_optimizer(model, OptimizationOptions(opt="lars"))
    assert [group["adapt"] for group in optimizer.param_groups] == [True, False]


def test_lars_groups_have_their_own_learning_rates() -> None:
    rng = np.random.default_rng(0)
    starts, grads = rng.normal(size=(3, 2, 4)), rng.normal(size=(5, 3, 2, 4))
    lrs = rng.uniform(0.1, 2.0, size=(5, 3))
    options = [{"weight_decay": 0.1}, {"weight_decay": 0.0, "adapt": False}, {"momentum": 0.5, "eta": 0.1}]
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


def sgd_in_numpy(w, grads, lr, momentum, weight_decay):
    """Classic momentum as torch.optim documents it, the learning rate outside the buffer; one tensor."""
    v = np.zeros(w.shape)
    for g in grads:
        v = momentum * v + g + weight_decay * w
        w = w - lr * v
    return w


def adamw_in_numpy(w, grads, lr, weight_decay, beta1=0.9, beta2=0.999, eps=1e-8):
    """Loshchilov and Hutter 2019 (arXiv:1711.05101), algorithm 2, one tensor."""
    m, v = np.zeros(w.shape), np.zeros(w.shape)
    for t, g in enumerate(grads, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        w = w - lr * weight_decay * w
        w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w


@pytest.mark.parametrize(("opt", "kind"), [("lars", LARS), ("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_each_optimizer_makes_its_published_update(opt: str, kind: type) -> None:
    rng = np.random.default_rng(1)
    model = nn.Linear(4, 3).double()
    lr = float(np.float32(0.05))  # what the tensor holds
    options = OptimizationOptions(opt=opt, lr=0.05, momentum=0.8, weight_decay=0.1)
    optimizer = build_optimizer(model, options)
    assert type(optimizer) is kind
    starts = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    grads = {name: rng.normal(size=(6, *w.shape)) for name, w in starts.items()}
    for k in range(6):
        for name, p in model.named_parameters():
            p.grad = torch.tensor(grads[name][k])
        optimizer.step()
    for name, p in model.named_parameters():
        weight_decay = 0.1 if name == "weight" else 0.0
        if opt == "lars":
            adapt = name == "weight"
            expected = lars_in_numpy(starts[name], grads[name], [lr] * 6, 0.8, weight_decay, 0.001, adapt)
        elif opt == "sgd":
            expected = sgd_in_numpy(starts[name], grads[name], lr, 0.8, weight_decay)
        else:
            expected = adamw_in_numpy(starts[name], grads[name], lr, weight_decay)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-9)


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


class CountOps(TorchDispatchMode):
    """Counts what is called below autograd, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace != "profiler":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


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
    assert "_local_scalar_dense" not in small, "nothing is read on the host"


@pytest.mark.parametrize("opt", ["lars", "sgd", "adamw"])
def test_a_skipped_first_step_leaves_no_trace(opt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in float16, whose first gradients overflow; memory that nobody filled is made to show."""
    monkeypatch.setattr(torch, "empty_like", lambda like, **options: torch.full_like(like, 7.0, **options))
    results = []
    for skipped in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = build_optimizer(model, OptimizationOptions(opt=opt, lr=0.05))
        optimizer.found_inf = torch.ones(())
        for value in (math.inf, 0.5, 0.25) if skipped else (0.5, 0.25):
            optimizer.found_inf.fill_(float(value == math.inf))
            for p in model.parameters():
                p.grad = torch.full_like(p, value)
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("opt", ["lars", "sgd", "adamw"])
def test_a_step_is_skipped_where_the_device_says_so(opt: str) -> None:
    model = nn.Linear(4, 3)
    optimizer = build_optimizer(model, OptimizationOptions(opt=opt, lr=0.05))
    optimizer.found_inf = torch.zeros(())

    def step(value: float) -> None:
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        optimizer.step()

    def values() -> list[torch.Tensor]:
        states = [value.clone() for p in model.parameters() for value in optimizer.state[p].values()]
        return [p.detach().clone() for p in model.parameters()] + states

    step(1.0)
    before = values()
    optimizer.found_inf.fill_(1.0)
    step(math.nan)
    assert all(torch.equal(a, b) for a, b in zip(values(), before, strict=True))
    optimizer.found_inf.fill_(0.0)
    step(1.0)
    moved = values()
    assert all(value.isfinite().all() for value in moved)
    assert not torch.equal(moved[0], before[0])


def test_lars_unscales_what_a_scaler_scaled() -> None:
    weights = []
    for scale in (1.0, 64.0):
        p = nn.Parameter(torch.ones(3, 4))
        optimizer = LARS([p], lr=torch.tensor(0.5), weight_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale((p * torch.arange(4.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        weights.append(p.detach())
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.ones(3, 4))


@pytest.mark.parametrize("opt", ["lars", "sgd", "adamw"])
def test_groups_share_one_learning_rate_on_the_device(opt: str) -> None:
    model = nn.Linear(4, 3)
    optimizer = build_optimizer(model, OptimizationOptions(opt=opt, lr=0.05))
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert first is second
    assert (first.dtype, first.shape, first.item()) == (torch.float32, (), pytest.approx(0.05))
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[1]["lr"] is first
    assert first.item() == 0.25
    plain = torch.optim.SGD(model.parameters(), lr=1.0)
    set_learning_rate(plain, 0.5)
    assert plain.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("stored", ["number", "tensor"])
@pytest.mark.parametrize("opt", ["lars", "sgd", "adamw"])
def test_state_is_loaded_whatever_its_learning_rates_are(opt: str, stored: str) -> None:
    def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = build_optimizer(model, OptimizationOptions(opt=opt, lr=0.05))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return model, optimizer

    model, optimizer = trained()
    set_learning_rate(optimizer, 0.5)
    content = copy.deepcopy(optimizer_state(optimizer) if stored == "number" else optimizer.state_dict())
    assert isinstance(content["param_groups"][0]["lr"], float if stored == "number" else torch.Tensor)
    again, fresh = trained()
    lr = fresh.param_groups[0]["lr"]
    load_optimizer_state(fresh, content)
    assert all(group["lr"] is lr for group in fresh.param_groups)
    assert lr.item() == 0.5
    for each, its_optimizer in ((model, optimizer), (again, fresh)):
        for p in each.parameters():
            p.grad = torch.full_like(p, 0.3)
        its_optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


@pytest.mark.parametrize("opt", ["lars", "sgd", "adamw"])
def test_state_of_another_memory_layout_goes_to_the_same_weights(opt: str) -> None:
    """A run may go on with --channels-last changed; fused kernels pair weights and state by their places in memory."""
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Conv2d(4, 8, 3)
        optimizer = build_optimizer(model, OptimizationOptions(opt=opt, lr=0.05))
        grads = [torch.randn_like(p) for p in model.parameters()]
        for k in range(2):
            for p, g in zip(model.parameters(), grads):
                p.grad = torch.empty_like(p).copy_(g)
            optimizer.step()
            if k == 0:
                content = optimizer_state(optimizer)
                model = model.to(memory_format=layout)
                optimizer = build_optimizer(model, OptimizationOptions(opt=opt, lr=0.05))
                load_optimizer_state(optimizer, content)
        results.append(model.weight.detach())
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lr": 0.7}, 0.7),
        ({"lr_base": 0.3, "batch_size": 4096}, 4.8),
        ({"lr_base": 0.3, "batch_size": 1024, "lr_base_scale": "sqrt"}, 0.6),
        ({"lr_base": 1.0, "batch_size": 512, "lr_base_size": 512}, 1.0),
    ],
)
def test_peak_learning_rate(changes: dict, expected: float) -> None:
    assert peak_lr(dataclasses.replace(OptimizationOptions(), **changes)) == pytest.approx(expected)


def test_schedule_has_its_closed_form() -> None:
    total, warmup, peak = 100, 10, 2.0
    for step in range(total):
        if step < warmup:
            expected = peak * (step + 1) / warmup
        else:
            expected = peak * math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
        assert lr_at(step, peak, total, warmup) == pytest.approx(expected)
    rates = [lr_at(step, peak, total, warmup) for step in range(total)]
    assert max(rates) == rates[warmup] == peak
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_schedule_without_warmup_starts_at_the_peak() -> None:
    assert lr_at(0, 1.5, 10, 0) == 1.5
