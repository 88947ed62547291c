"""What every loss makes of arguments that all of them have: the group, eps, a temperature that changes, short rows."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from simclr_fast import (
    CLIPLoss,
    InfoNCELoss,
    NTXentLoss,
    SupConLoss,
    clip_loss,
    info_nce_loss,
    ntxent_loss,
    similarity_logsumexp,
    sup_con_loss,
)
from simclr_fast.ops.ntxent import similarity
from tests.helpers import relative_error

EPS = 0.25  # in every float type, and so is the length of a row of it and zeros
# Of two views z [2, n, 3]; a third is made of them.
CALLS: dict[str, Callable[..., Tensor]] = {
    "ntxent": lambda z, **options: ntxent_loss(*z, **options),
    "decoupled": lambda z, **options: ntxent_loss(*z, decoupled=True, **options),
    "weights": lambda z, **options: ntxent_loss(*z, weights=torch.arange(1.0, 1 + z.shape[1]), **options),
    "views": lambda z, **options: ntxent_loss(torch.cat([z, z.flip(2)[:1]]), **options),
    "info_nce": lambda z, **options: info_nce_loss(*z, **options),
    "symmetric": lambda z, **options: info_nce_loss(*z, symmetric=True, **options),
    "unpaired": lambda z, **options: info_nce_loss(*z, z[0].flip(1), **options),
    "paired": lambda z, **options: info_nce_loss(*z, z.transpose(0, 1).flip(2), negative_mode="paired", **options),
    "clip": lambda z, temperature=1.0, **options: clip_loss(*z, 1 / temperature, normalize=True, **options),
    "sup_con": lambda z, **options: sup_con_loss(z.transpose(0, 1), None, **options),
    "classes": lambda z, **options: sup_con_loss(z[0], torch.arange(z.shape[1]) // 2, **options),
    "primitive": lambda z, **options: similarity_logsumexp(*z, **options).sum(),
}
MODULES: dict[str, tuple[type[nn.Module], dict]] = {
    "ntxent.ntxent_loss": (NTXentLoss, {"decoupled": True, "return_stats": True, "temperature": 0.3}),
    "info_nce.info_nce_loss": (InfoNCELoss, {"negative_mode": "paired", "symmetric": True, "temperature": 0.3}),
    "clip.clip_loss": (CLIPLoss, {"normalize": True}),
    "sup_con.sup_con_loss": (SupConLoss, {"temperature": 0.3}),
}


@pytest.mark.parametrize("of", [ntxent_loss, info_nce_loss, clip_loss, sup_con_loss, similarity_logsumexp])
def test_the_losses_have_one_set_of_defaults(of: Callable[..., Tensor]) -> None:
    module = {function.rpartition(".")[2]: made for function, (made, _) in MODULES.items()}.get(of.__name__)
    shared = {"reduction": "mean", "group": None, "eps": 1e-8, "precision": None, "backend": "auto"}
    flags = ("decoupled", "return_stats", "symmetric", "both", "gather_distributed", "local_loss", "gather_with_grad")
    shared |= dict.fromkeys((*flags, "cache_labels", "use_horovod"), False) | {"weights": None, "exclude": "none"}
    shared |= {"negative_mode": "unpaired", "memory_bank_size": 0, "rank": 0, "world_size": 1}
    shared |= {"normalize": of is similarity_logsumexp}
    shared |= {"temperature": 0.5 if of in (ntxent_loss, similarity_logsumexp) else 0.1}
    for one in (of, module) if module else (of,):
        defaults = {
            name: p.default for name, p in inspect.signature(one).parameters.items() if p.default is not p.empty
        }
        tensors = {"z1", "negative_keys", "labels", "columns"} & {*defaults}
        assert defaults == {name: None if name in tensors else shared[name] for name in defaults}


@pytest.mark.parametrize("function", MODULES)
def test_a_module_hands_every_option_to_its_loss(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict = {}
    monkeypatch.setattr(f"simclr_fast.losses.{function}", lambda *inputs, **options: seen.update(options))
    made, own = MODULES[function]
    options = own | {"reduction": "sum", "eps": EPS, "precision": "tf32", "backend": "reference"}
    module = made(**options)
    module(*torch.randn(2, 4, 3), *[10.0] * (made is CLIPLoss))
    assert seen.items() >= options.items()
    assert "reduction='sum', " in repr(module)
    assert "backend='reference'" in repr(module)


@pytest.mark.parametrize("name", CALLS)
def test_eps_and_precision_reach_every_part_of_a_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows shorter than eps the logits are z_i . z_j / (eps^2 temperature); the CPU has one precision."""
    seen = []
    recorded = lambda op: lambda *inputs, **how: (seen.append(how["precision"]), op(*inputs, **how))[1]
    ops = similarity.OPS["cpp"]
    monkeypatch.setitem(similarity.OPS, "cpp", type(ops)(*map(recorded, ops)))
    z = torch.randn(2, 6, 3, dtype=torch.float64) / 8
    found = [CALLS[name](z, temperature=t, eps=8.0 / t**0.5, precision="tf32") for t in (0.25, 1.0)]
    assert relative_error(*found) <= 1e-12
    assert relative_error(CALLS[name](z, temperature=0.25, eps=15.0, precision="ieee"), found[0]) > 1e-6
    assert seen == ["tf32"] * (len(seen) // 3 * 2) + ["ieee"] * (len(seen) // 3)
    assert bool(seen) == (name not in ("ntxent", "weights", "paired"))


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_group_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=r"group is a Tensor: pass a torch.distributed.ProcessGroup, or None"):
        CALLS[name](torch.randn(2, 4, 3), group=torch.ones(2))


def test_a_module_takes_no_group_for_yes() -> None:
    with pytest.raises(TypeError, match="gather_distributed is a Tensor: pass True or False"):
        NTXentLoss(gather_distributed=torch.ones(2))


@pytest.mark.parametrize("name", CALLS)
def test_whole_numbers_that_are_no_floats_are_named(name: str) -> None:
    z = torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match="=1000.*: pass a positive, finite number"):
        clip_loss(*z, 10**400) if name == "clip" else CALLS[name](z, temperature=10**400)
    if name != "clip":
        with pytest.raises(ValueError, match="eps=1000.*: pass a positive, finite number"):
            CALLS[name](z, eps=10**400)


def test_a_schedule_of_floats_that_ends_in_infinity_is_refused_when_compiled() -> None:
    """From the second value on, torch.compile knows no value, only the comparisons that were made with it."""
    z = torch.randn(2, 4, 3)
    compiled = torch.compile(ntxent_loss, backend="eager")
    for temperature in (0.5, 0.4, 0.3):
        assert relative_error(compiled(*z, temperature), ntxent_loss(*z, temperature)) <= 1e-6
    with pytest.raises(ValueError, match="temperature=.*: pass a positive, finite number"):
        compiled(*z, float("inf"))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_autocast_leaves_every_loss_alone(name: str, backend: str) -> None:
    """And the gradient of the kernels also where the backward pass runs within it, which torch advises against."""
    z, t = torch.randn(2, 6, 40, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = CALLS[name](z, temperature=t, backend=backend)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled and backend == "cpp"):
            results.append([loss, *torch.autograd.grad(loss, (z, t))])
    assert all(torch.equal(plain, cast) for plain, cast in zip(*results))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_float64_rows_whose_squares_overflow(name: str, backend: str) -> None:
    z, size = torch.randn(2, 6, 3, dtype=torch.float64), 1e200
    losses, gradients = [], []
    for factor in (1.0, size):
        wide = (z * factor).requires_grad_()
        losses.append(CALLS[name](wide, temperature=0.5, backend=backend))
        gradients.append(torch.autograd.grad(losses[-1], wide)[0] * factor)
    assert relative_error(losses[1], losses[0]) <= 1e-14
    assert relative_error(gradients[1], gradients[0]) <= 1e-12


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_a_row_as_long_as_eps_is_divided_by_it(name: str, backend: str) -> None:
    """The gradient is that of z / eps, which has a part along the row, as that of shorter rows."""
    z = torch.randn(2, 5, 3, dtype=torch.float64)
    z[0, 1] = torch.tensor([0.0, EPS, 0.0])
    z.requires_grad_()
    loss = CALLS[name](z, temperature=0.5, eps=EPS, backend=backend)
    (gradient,) = torch.autograd.grad(loss, z)
    # With an eps that is a little larger, the row is one of the shorter ones without question.
    larger = CALLS[name](z, temperature=0.5, eps=EPS * (1 + 1e-12), backend=backend)
    assert relative_error(gradient, torch.autograd.grad(larger, z)[0]) <= 1e-9
    assert gradient[0, 1, 1].abs() > 1e-3
