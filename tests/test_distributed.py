"""The loss over several gloo processes: the same value and gradients as one process, and what is communicated."""

import copy
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simclr_fast import NTXentLoss, ntxent_loss
from tests.gloo_ranks import on_ranks, refusals_of
from tests.helpers import relative_error

SAMPLES, FEATURES = 12, 9
# The gather of equal shards has two names; the first came with torch 2.13.
GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
COLLECTIVES = (GATHER, "all_gather", "all_reduce", "reduce_scatter_tensor", "broadcast")


class Model(nn.Module):
    """A head and its loss, with a temperature that is learned."""

    def __init__(self, reduction: str, backend: str):
        super().__init__()
        self.head = nn.Linear(FEATURES, 7)
        temperature = nn.Parameter(torch.tensor(0.2))
        self.loss = NTXentLoss(temperature, gather_distributed=True, reduction=reduction, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        z0, z1 = self.head(x).chunk(2)
        return self.loss(z0, z1)


def batch() -> Tensor:
    """Both views of the whole batch: [2, SAMPLES, FEATURES]."""
    return torch.randn(2, SAMPLES, FEATURES, generator=torch.Generator().manual_seed(1))


def row_weights() -> Tensor:
    return torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(2))


def model_of(reduction: str, backend: str) -> Model:
    torch.manual_seed(0)
    return Model(reduction, backend)


def ddp_step(reduction: str, backend: str, rank: int, world: int) -> list[Tensor]:
    """Value and averaged parameter gradients of this rank's share of the batch."""
    model = DistributedDataParallel(model_of(reduction, backend))
    share = batch().chunk(world, dim=1)[rank]
    loss = model(share.reshape(-1, FEATURES))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.module.parameters())]


def weighted_rows(backend: str, rank: int, world: int) -> list[Tensor]:
    """Losses of this rank's rows, and the gradient of all ranks' weighted sums by its embeddings: [2, n, ...]."""
    z = batch().chunk(world, dim=1)[rank].clone().requires_grad_()
    losses = ntxent_loss(z[0], z[1], 0.2, reduction="none", group=dist.group.WORLD, backend=backend)
    losses.backward(row_weights().chunk(world, dim=1)[rank].flatten())
    return [losses.detach().view(2, -1), z.grad]


def second_derivative(rank: int, world: int) -> Tensor:
    """The derivative, by this rank's embeddings [2, n, D], of all ranks' products of gradient and batch."""
    group = dist.group.WORLD if world > 1 else None
    z = batch().double().chunk(world, dim=1)[rank].clone().requires_grad_()
    losses = ntxent_loss(z[0], z[1], 0.2, reduction="none", group=group, backend="reference")
    weights = row_weights().double().chunk(world, dim=1)[rank].flatten()
    (gradient,) = torch.autograd.grad(losses, z, weights, create_graph=True)
    return torch.autograd.grad((gradient * gradient.detach().cos()).sum(), z)[0]


def record_collectives(reduction: str) -> dict[str, list[tuple[str, int]]]:
    """(name, elements of the result) of every collective of forward and backward."""
    calls: list[tuple[str, int]] = []
    originals = {name: getattr(dist, name) for name in COLLECTIVES}

    def recording(name: str):
        def call(result, *args, **kwargs):
            calls.append((name, result.numel()))
            return originals[name](result, *args, **kwargs)

        return call

    z0, z1 = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    for name in COLLECTIVES:
        setattr(dist, name, recording(name))
    try:
        loss = ntxent_loss(z0, z1, 0.2, reduction=reduction, group=dist.group.WORLD, backend="cpp")
        forward = calls.copy()
        calls.clear()
        loss.sum().backward()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return {"forward": forward, "backward": calls}


def warnings_of(reduction: str) -> list[str]:
    """What Python is warned of while the loss and its gradient are computed."""
    z0, z1 = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ntxent_loss(z0, z1, 0.2, reduction=reduction, group=dist.group.WORLD, backend="cpp").sum().backward()
    return [str(warning.message) for warning in caught]


def refusals(rank: int) -> list[str]:
    """What this rank is told where the ranks' calls differ in one thing: see EXPECTED_REFUSALS."""
    first = rank == 0
    settings = [
        {"shape": (4 + first, 5)},
        {"shape": (4, 5 + (rank == 1))},
        {"dtype": torch.float64 if first else torch.float32},
        {"reduction": "sum" if first else "none"},
        {"eps": 1e-6 if first else 1e-8},
        {"temperature": 0.1 if first else 0.2},
        {"temperature": torch.tensor(0.1 if first else 0.2, requires_grad=True)},
    ]

    def call(shape: tuple[int, int] = (4, 5), dtype: torch.dtype = torch.float32, **options) -> None:
        z = torch.randn(shape, dtype=dtype)
        ntxent_loss(z, z, group=dist.group.WORLD, **options)

    return refusals_of(partial(call, **options) for options in settings)


def compiled_refusal(rank: int) -> str:
    """What a compiled loss says where the ranks' temperatures differ."""
    z = torch.randn(4, 5)
    compiled = torch.compile(ntxent_loss, fullgraph=True, backend="aot_eager")
    try:
        compiled(z, z, torch.tensor(0.1 + 0.1 * rank), group=dist.group.WORLD)
    except RuntimeError as error:
        return str(error)
    return ""


# Of two ranks, in the order of `refusals`.
EXPECTED_REFUSALS = (
    "rows of z0 must be the same on all ranks of the group; by rank: [5.0, 4.0]; use a sampler",
    "columns of z0 must be the same on all ranks of the group; by rank: [5.0, 6.0]; use the same model",
    "dtype of z0 must be the same on all ranks of the group; by rank: [torch.float64, torch.float32]; use the same",
    "reduction must be the same on all ranks of the group; by rank: ['sum', 'none']; pass the same",
    "eps must be the same on all ranks of the group; by rank: [1e-06, 1e-08]; pass the same",
    "temperature must be the same on all ranks of the group; by rank: [0.1, 0.2]; pass the same",
    "temperature must be the same on all ranks of the group; by rank: [0.10000000149011612, 0.20000000298023224]",
)


def compiled_step(rank: int, world: int) -> list[list[Tensor]]:
    z = batch().chunk(world, dim=1)[rank]
    results = []
    for function in (ntxent_loss, torch.compile(ntxent_loss, fullgraph=True, backend="aot_eager")):
        z0, z1 = (view.clone().requires_grad_() for view in z)
        loss = function(z0, z1, 0.2, group=dist.group.WORLD)
        results.append([loss, *torch.autograd.grad(loss, (z0, z1))])
    return results


def work(rank: int, world: int) -> dict:
    return {
        "ddp": {(r, b): ddp_step(r, b, rank, world) for r in ("mean", "sum") for b in ("cpp", "reference")},
        "rows": {backend: weighted_rows(backend, rank, world) for backend in ("cpp", "reference")},
        "collectives": {reduction: record_collectives(reduction) for reduction in ("mean", "sum", "none")},
        "warnings": [warnings_of(reduction) for reduction in ("mean", "sum", "none")],
        "refusals": refusals(rank) if world > 1 else [],
        # Compiling takes every process seconds; three ranks call what two call, with another number.
        "compiled": compiled_step(rank, world) if world < 3 else None,
        "compiled refusal": compiled_refusal(rank) if world < 3 else None,
    }


COUNTED = "{} processes".format


@pytest.fixture(scope="module", params=[1, 2, 3], ids=COUNTED)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What every rank of a group of this size computed."""
    return on_ranks(work, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ddp_equals_one_process(ranks: list[dict], reduction: str, backend: str) -> None:
    model = copy.deepcopy(model_of(reduction, backend)).double()
    loss = model(batch().double().reshape(-1, FEATURES))
    loss.backward()
    expected = [loss.detach(), *(p.grad for p in model.parameters())]
    for rank in ranks:
        for actual, truth in zip(rank["ddp"][reduction, backend], expected, strict=True):
            assert relative_error(actual, truth) <= 1e-6


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_rows_with_their_own_weights(ranks: list[dict], backend: str) -> None:
    z = batch().double().requires_grad_()
    losses = ntxent_loss(z[0], z[1], 0.2, reduction="none", backend="reference").view(2, -1)
    losses.backward(row_weights().double())
    for index, truth in enumerate((losses, z.grad)):
        actual = torch.cat([rank["rows"][backend][index] for rank in ranks], dim=1)
        assert relative_error(actual, truth) <= 1e-6


def test_collectives(ranks: list[dict]) -> None:
    world = len(ranks)
    rows = world * 2 * 4
    check, embeddings, statistics = ((GATHER, size) for size in (world * 15, rows * 5, rows * 2))
    for rank in ranks:
        for reduction, calls in rank["collectives"].items():
            assert calls["forward"] == ([check, embeddings, statistics] if world > 1 else [])
            gathers_upstream = reduction == "none" and world > 1
            assert calls["backward"] == ([(GATHER, rows)] if gathers_upstream else [])


def test_no_step_warns(ranks: list[dict]) -> None:
    for rank in ranks:
        assert rank["warnings"] == [[], [], []]


def test_unequal_calls_are_refused_on_every_rank(ranks: list[dict]) -> None:
    for rank in ranks:
        assert len(rank["refusals"]) == (len(EXPECTED_REFUSALS) if len(ranks) > 1 else 0)
        for message, expected in zip(rank["refusals"], EXPECTED_REFUSALS):
            assert message.startswith(expected if len(ranks) == 2 else expected.partition(";")[0])


@pytest.mark.parametrize("ranks", [1, 2], ids=COUNTED, indirect=True)
def test_unequal_calls_are_refused_by_a_compiled_loss(ranks: list[dict]) -> None:
    for rank in ranks:
        assert ("ranks of the group must have the same loss, " in rank["compiled refusal"]) == (len(ranks) > 1)


@pytest.mark.parametrize("ranks", [1, 2], ids=COUNTED, indirect=True)
def test_compiles_with_its_collectives(ranks: list[dict]) -> None:
    for rank in ranks:
        eager, compiled = rank["compiled"]
        assert all(relative_error(c, e) <= 1e-6 for e, c in zip(eager, compiled))


def test_second_derivatives_of_the_reference_are_those_of_one_process(tmp_path: Path) -> None:
    expected = second_derivative(0, 1)
    actual = torch.cat(on_ranks(second_derivative, 2, tmp_path), dim=1)
    assert relative_error(actual, expected) < 1e-12
