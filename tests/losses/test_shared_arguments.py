"""What every loss makes of arguments that all of them have: the group, eps, a temperature that changes, short rows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from simclr_fast import NTXentLoss, clip_loss, info_nce_loss, ntxent_loss, similarity_logsumexp, sup_con_loss
from tests.helpers import relative_error

EPS = 0.25  # in every float type, and so is the length of a row of it and zeros
CALLS: dict[str, Callable[..., Tensor]] = {
    "ntxent": lambda z, **options: ntxent_loss(*z, **options),
    "decoupled": lambda z, **options: ntxent_loss(*z, decoupled=True, **options),
    "info_nce": lambda z, **options: info_nce_loss(*z, **options),
    "clip": lambda z, temperature=1.0, **options: clip_loss(*z, 1 / temperature, **options),
    "sup_con": lambda z, **options: sup_con_loss(z.transpose(0, 1), None, **options),
    "primitive": lambda z, **options: similarity_logsumexp(*z, **options).sum(),
}


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
