"""LearnedTemperature: its value, bounds and gradient, in the loss and across processes' checks."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from simclr_fast import LearnedTemperature, NTXentLoss, ntxent_loss
from tests.helpers import relative_error


def test_value_and_gradient_of_the_logarithm() -> None:
    temperature = LearnedTemperature(0.2)
    assert [name for name, _ in temperature.named_parameters()] == ["log"]
    assert temperature().item() == pytest.approx(0.2, rel=1e-6)
    z0, z1 = torch.randn(2, 6, 4)
    (gradient,) = torch.autograd.grad(NTXentLoss(temperature)(z0, z1), temperature.log)
    t = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    (by_t,) = torch.autograd.grad(ntxent_loss(z0.double(), z1.double(), t), t)
    assert relative_error(gradient[0], 0.2 * by_t) <= 1e-5  # dL / d log t = t dL / dt


@pytest.mark.parametrize(("pushed_to", "bound", "back"), [(-9.0, 0.05, 1.0), (9.0, 0.7, -1.0)])
def test_it_stays_between_its_bounds_and_comes_back(pushed_to: float, bound: float, back: float) -> None:
    temperature = LearnedTemperature(0.2, low=0.05, high=0.7)
    with torch.no_grad():
        temperature.log.fill_(pushed_to)
    assert temperature().item() == pytest.approx(bound, rel=1e-6)
    assert temperature.log.item() == pytest.approx(math.log(bound), rel=1e-6)
    temperature().backward()
    assert temperature.log.grad > 0  # not cut off at the bound
    with torch.no_grad():
        temperature.log += 0.1 * back
    assert temperature().item() == pytest.approx(bound * math.exp(0.1 * back), rel=1e-5)


def test_the_module_learns_moves_and_is_saved() -> None:
    loss = NTXentLoss(LearnedTemperature(0.3, low=0.1))
    z = torch.randn(8, 4)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    before = loss(z, z)
    before.backward()
    optimizer.step()
    assert loss(z, z) < before  # aligned pairs: a lower temperature is better
    restored = NTXentLoss(LearnedTemperature(0.5, low=0.1))
    restored.load_state_dict(loss.state_dict())
    assert torch.equal(restored(z, z), loss(z, z))
    assert loss.double()(z.double(), z.double()).dtype == torch.float64
    assert "low=0.1" in repr(loss)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`", "ignore:DTensor random operators")
@pytest.mark.parametrize("flat", [False, True])
def test_it_is_sharded_with_the_model_and_takes_its_first_values_after_the_meta_device(flat: bool) -> None:
    """FullyShardedDataParallel (flat) calls reset_parameters itself; fully_shard leaves it to its user."""
    with torch.device("meta"):
        loss = NTXentLoss(LearnedTemperature(0.2, low=0.199, high=0.3), (7, 4))
    if flat:
        sharded = FullyShardedDataParallel(loss, device_id=torch.device("cpu"))
    else:
        sharded = fully_shard(loss).to_empty(device="cpu")
        for module in sharded.modules():
            getattr(module, "reset_parameters", nn.Identity)()
    assert loss.temperature().item() == pytest.approx(0.2, rel=1e-6)
    torch.testing.assert_close(loss.memory_bank.bank.norm(dim=1), torch.ones(7))
    assert loss.memory_bank.bank_ptr.tolist() == [0]
    optimizer = torch.optim.SGD(sharded.parameters(), lr=10.0)
    z0, z1 = torch.eye(3, 4), torch.eye(3, 4)
    for _ in range(2):  # the second call takes what the first step pushed beyond the bound
        optimizer.zero_grad()
        sharded(z0, z1).backward()
        optimizer.step()
    loss.memory_bank.reset_parameters()
    expected = ntxent_loss(z0, z1, 0.199)
    loss.memory_bank = None
    assert sharded(z0, z1).item() == pytest.approx(expected.item(), rel=1e-5)


def test_it_may_start_at_a_bound() -> None:
    defaults = LearnedTemperature()
    assert (defaults.low, defaults.high) == (0.01, 1.0)
    assert defaults().item() == pytest.approx(0.1, rel=1e-6)
    for bound in (0.05, 0.7):
        assert LearnedTemperature(bound, low=0.05, high=0.7)().item() == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"initial": 0.0}, ValueError, "initial=0.0: pass a positive, finite number"),
        ({"initial": "0.1"}, TypeError, "initial is a str: pass a float"),
        ({"initial": 2.0}, ValueError, r"initial=2.0, low=0.01, high=1.0: pass low <= initial <= high with low < high"),
        ({"initial": 0.1, "low": 0.2, "high": 0.05}, ValueError, "pass low <= initial <= high"),
        ({"initial": 0.1, "low": 0.1, "high": 0.1}, ValueError, "with low < high"),
        ({"low": -1.0}, ValueError, "low=-1.0: pass a positive, finite number"),
        ({"high": math.inf}, ValueError, "high=inf: pass a positive, finite number"),
    ],
)
def test_bad_bounds_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LearnedTemperature(**arguments)
