"""The primitive over three gloo processes: the results and gradients of one process with all rows."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from simclr_fast.losses.similarity import similarity_logsumexp
from tests.gloo_ranks import on_ranks
from tests.helpers import relative_error
from tests.similarity_truth import CALLS

# Of `tests.similarity_truth.CALLS`, and whether the columns want no gradient.
CALLS_OF_GROUPS = [(call, False) for call in CALLS if call[0] != "pair"]
CALLS_OF_GROUPS += [(("none", True, False), True), (("self", True, False), True)]


def of_rank(rank: int, world: int, call: tuple[str, bool, bool], rows_alone: bool, temperature: float) -> list[Tensor]:
    """Results [n], [m] of this rank's share, and the gradients by it and by the temperature, under weights of all."""
    exclude, has_columns, both = call
    generator = torch.Generator().manual_seed(5)
    rows, columns = (torch.randn(6 * k, 4, dtype=torch.float64, generator=generator) for k in (3, 2))
    if exclude == "self":
        columns = columns.repeat(2, 1)[: len(rows)]  # one column per row
    weights = [torch.randn(len(x), dtype=torch.float64, generator=generator) for x in (rows, columns)]
    shares = [x.chunk(world)[rank].clone().requires_grad_() for x in ([rows, columns] if has_columns else [rows])]
    if rows_alone:
        shares[1].requires_grad_(False)
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    group = dist.group.WORLD if world > 1 else None
    results = similarity_logsumexp(
        shares[0], shares[1] if has_columns else None, t, exclude=exclude, both=both, group=group, backend="cpp"
    )
    results = list(results) if both else [results]
    objective = sum((x * w.chunk(world)[rank]).sum() for x, w in zip(results, weights))
    return [
        *(x.detach() for x in results),
        *torch.autograd.grad(objective, [x for x in (*shares, t) if x.requires_grad]),
    ]


def of_all_calls(rank: int, world: int) -> list[list[Tensor]]:
    return [of_rank(rank, world, *call, t) for call in CALLS_OF_GROUPS for t in (0.3, 0.02)]


def test_processes_equal_one(tmp_path: Path) -> None:
    ranks = on_ranks(of_all_calls, 3, tmp_path)
    expected = of_all_calls(0, 1)
    for call, whole, *shares in zip([c for c in CALLS_OF_GROUPS for _ in range(2)], expected, *ranks, strict=True):
        *tensors, dt = zip(*shares)
        assert relative_error(sum(dt), whole[-1]) <= 1e-12, call
        assert all(relative_error(torch.cat(x), e) <= 1e-12 for x, e in zip(tensors, whole)), call
