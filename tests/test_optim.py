"""The optimizers of the options: updates, groups, state, learning-rate scaling, the schedule's closed form."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from simclr_fast.backbones.family import Spec
from simclr_fast.backbones.registry import build_without_memory
from simclr_fast.config import OptimizationOptions
from simclr_fast.lars import LARS
from simclr_fast.optim import (
    build_optimizer,
    load_optimizer_state,
    lr_at,
    optimizer_state,
    parameter_groups,
    peak_lr,
    set_learning_rate,
)
from tests.optim_in_numpy import adamw_in_numpy, lars_in_numpy, sgd_in_numpy


def test_biases_and_norms_are_neither_decayed_nor_adapted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    decayed, plain = parameter_groups(model, weight_decay=0.1)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert {id(p) for p in plain["params"]} == {id(p) for p in (model[0].bias, *model[1].parameters(), model[3].bias)}
    assert (decayed["weight_decay"], plain["weight_decay"], plain["adapt"]) == (0.1, 0.0, False)
    optimizer = build_optimizer(model, OptimizationOptions(opt="lars"))
    assert [group["adapt"] for group in optimizer.param_groups] == [True, False]
    model[0].requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [1, 3]


# Of each family's backbones: what has several dimensions and is no weight all the same.
SCALES_TOKENS_POSITIONS = {
    "resnet18": set(),
    "convnext_tiny": {"layer_scale"},
    "swin_t": {"relative_position_bias_table"},
    "swin_v2_t": {"logit_scale"},
    "vit_b_16": {"class_token", "pos_embedding"},
    "timm/vit_tiny_patch16_224": {"cls_token", "pos_embed"},
    "timm/swin_tiny_patch4_window7_224": {"relative_position_bias_table"},
    "timm/beit_base_patch16_224": {"cls_token", "relative_position_bias_table"},
}


@pytest.mark.parametrize("name", SCALES_TOKENS_POSITIONS)
def test_scales_tokens_and_positions_are_neither_decayed_nor_adapted(name: str) -> None:
    module = build_without_memory(Spec(name, size=224))
    decayed, plain = ({id(p) for p in group["params"]} for group in parameter_groups(module, 0.1))
    named = dict(module.named_parameters())
    assert len(decayed) + len(plain) == len(named)
    layers = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    weights = {
        id(p)
        for m in module.modules()
        if isinstance(m, layers)
        for name, p in m.named_parameters(recurse=False)
        if name.endswith("weight")
    }
    assert decayed == weights, "what a layer multiplies by, and nothing else"
    shaped = {key.rpartition(".")[2] for key, p in named.items() if p.ndim > 1 and id(p) in plain}
    assert shaped == SCALES_TOKENS_POSITIONS[name]


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
