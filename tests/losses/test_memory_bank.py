"""NTXentLoss with a memory bank: values, the order in which the bank is filled, checkpoints, compilation."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from simclr_fast import LearnedTemperature, NTXentLoss
from simclr_fast.losses.arguments import default_precision
from tests.helpers import relative_error
from tests.ntxent_truth import EPS, KINDS, TEMPERATURES, embeddings, gradient_error

BACKENDS = ("cpp", "reference")
SIZES = (1, 2, 3, 5, 7, 16, 17)
BATCHES = (1, 2, 3, 7, 16)


def unit(z: Tensor) -> Tensor:
    return z / torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(EPS)


def formula(out0: Tensor, out1: Tensor, bank: Tensor, t: float | Tensor) -> Tensor:
    """He et al. 2020, equation 1, of every row of out0: its own row of out1 against that and the bank's rows."""
    u = unit(out0)
    s_pos = (u * unit(out1)).sum(dim=1, keepdim=True) / t
    return torch.logaddexp(torch.logsumexp(u @ bank.T / t, dim=1) - s_pos[:, 0], torch.zeros(()))


class Queue:
    """The bank by the loop that defines it, on the host."""

    def __init__(self, rows: Tensor):
        self.rows, self.next = rows.clone(), 0

    def put(self, batch: Tensor) -> None:
        for row in batch:
            if self.next == len(self.rows):  # full: what is left of the batch is dropped
                break
            self.rows[self.next] = row
            self.next += 1
        if self.next == len(self.rows):
            self.next = 0


def leaves(views: Tensor) -> tuple[Tensor, Tensor]:
    out0, out1 = (view.detach().clone().requires_grad_() for view in views)
    return out0, out1


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradients_equal_the_formula(backend: str, kind: str, temperature: float) -> None:
    for n, d, size in ((1, 5, 1), (2, 1, 3), (33, 123, 150)):
        views = embeddings(kind, n, d, torch.float32)
        t = nn.Parameter(torch.tensor(temperature))
        module = NTXentLoss(t, memory_bank_size=(size, d), backend=backend)
        bank = module.memory_bank.bank.double().clone()
        out0, out1 = leaves(views)
        wide0, wide1 = leaves(views.double())
        wide_t = t.detach().double().requires_grad_()
        loss, truth = module(out0, out1), formula(wide0, wide1, bank, wide_t).mean()
        assert abs(loss.item() - truth.item()) <= 5e-6 * max(1.0, abs(truth.item()))
        loss.backward()
        truth.backward()
        vanishing = n == 1 or d == 1 or kind in ("equal", "opposed")  # gradients: compare with their natural scale
        for view, dz, dz_true in ((out0, out0.grad, wide0.grad), (out1, out1.grad, wide1.grad)):
            if vanishing:
                natural = 1 / (temperature * n * view.detach().double().norm(dim=1, keepdim=True).clamp_min(EPS))
                assert ((dz - dz_true) / natural).norm(dim=1).max() <= 3e-5
            else:
                stacked = (torch.cat([x, x]) for x in (dz, dz_true, view.detach()))
                assert gradient_error(*stacked, temperature, kind) <= 3e-5
        scale = temperature**-2 if d == 1 else wide_t.grad.abs()  # of one column the terms of dt cancel
        assert abs(t.grad - wide_t.grad) <= 3e-5 * scale + 1e-30


@pytest.mark.parametrize("size", SIZES)
def test_rows_enter_in_order_and_what_goes_beyond_the_end_is_dropped(size: int) -> None:
    module = NTXentLoss(0.2, memory_bank_size=(size, 4))
    queue = Queue(module.memory_bank.bank)
    for n in BATCHES * 2:
        out0, out1 = leaves(torch.randn(2, n, 4))
        expected = formula(out0.double(), out1.double(), queue.rows.double(), 0.2).mean()
        loss = module(out0, out1)
        assert relative_error(loss, expected) <= 5e-6, "the batch's own rows are no negatives yet"
        loss.backward()
        queue.put(F.normalize(out1.detach()))
        assert torch.allclose(module.memory_bank.bank, queue.rows, atol=1e-6)
        assert module.memory_bank.bank_ptr.tolist() == [queue.next]


def test_it_starts_with_random_unit_rows() -> None:
    torch.manual_seed(3)
    expected = F.normalize(torch.randn(50, 8), dim=-1)
    torch.manual_seed(3)
    bank = NTXentLoss(memory_bank_size=(50, 8)).memory_bank
    assert torch.equal(bank.bank, expected)
    assert (bank.bank_ptr.tolist(), bank.bank_ptr.dtype) == ([0], torch.int64)


def test_only_a_call_that_trains_updates_it() -> None:
    module = NTXentLoss(0.2, memory_bank_size=(6, 4))
    before = module.memory_bank.bank.clone()
    out0, out1 = torch.randn(2, 3, 4)
    module(out0, out1.requires_grad_())  # as lightly: out0 decides
    with torch.no_grad():
        module(out0.requires_grad_(), out1)
    with torch.inference_mode():
        module(out0, out1)
    assert torch.equal(module.memory_bank.bank, before)
    module(out0, out1.detach()).backward()
    assert torch.equal(module.memory_bank.bank[3:], before[3:])
    assert not torch.equal(module.memory_bank.bank[:3], before[:3])


def test_the_width_is_that_of_the_first_rows_even_of_an_evaluation() -> None:
    module = NTXentLoss(0.2, memory_bank_size=6)
    assert module.memory_bank.bank.shape == (6, 0)
    with torch.inference_mode():
        module(*torch.randn(2, 3, 4))
    assert module.memory_bank.bank.shape == (6, 4)
    module(*leaves(torch.randn(2, 3, 4))).backward()
    assert module.memory_bank.bank_ptr.item() == 3
    with pytest.raises(ValueError, match="out0 has D = 5, and the memory bank D = 4: use one D"):
        module(*torch.randn(2, 3, 5))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_variants_with_a_bank(reduction: str) -> None:
    out0, out1 = leaves(torch.randn(2, 6, 4))
    weights = torch.rand(6)
    module = NTXentLoss(0.2, (9, 4), decoupled=True, return_stats=True, reduction=reduction)
    bank = module.memory_bank.bank.double().clone()
    loss, found = module(out0, out1, weights=weights)
    u, v = unit(out0.double()), unit(out1.double())
    negatives, s_pos = u @ bank.T / 0.2, (u * v).sum(dim=1) / 0.2
    rows = (torch.logsumexp(negatives, dim=1) - s_pos) * weights
    assert relative_error(loss, {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]) <= 5e-6
    expected = ((s_pos > negatives.amax(dim=1)).double(), s_pos, torch.exp(-formula(u, v, bank, 0.2)))
    assert all(relative_error(a, b.mean()) <= 1e-5 for a, b in zip(found, expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_views_of_other_types(dtype: torch.dtype) -> None:
    out0, out1 = (z.to(dtype).requires_grad_() for z in torch.randn(2, 5, 8))
    module = NTXentLoss(0.2, (7, 8))
    bank = module.memory_bank.bank.double().clone()
    expected = formula(out0.double(), out1.double(), bank, 0.2).mean()
    loss = module(out0, out1)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative_error(loss, expected) <= 5e-6
    loss.backward()
    assert out0.grad.dtype == dtype
    assert module.memory_bank.bank.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        module(out0.bfloat16(), out1.float())


def test_a_run_goes_on_from_its_state() -> None:
    batches = torch.randn(6, 2, 4, 5)

    def losses(module: NTXentLoss, of: range) -> list[float]:
        return [module(*leaves(batches[k])).item() for k in of]

    for size in (7, (7, 5)):
        module = NTXentLoss(0.2, size)
        losses(module, range(3))
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        assert state.keys() == {"memory_bank.bank", "memory_bank.bank_ptr"}
        expected = losses(module, range(3, 6))
        for fresh in (NTXentLoss(0.2, 7), NTXentLoss(0.2, (7, 5))):
            fresh.load_state_dict(state)
            assert losses(fresh, range(3, 6)) == expected


def test_a_checkpoint_from_before_the_first_call() -> None:
    empty = NTXentLoss(0.2, 7).state_dict()
    used = NTXentLoss(0.2, 7)
    used(*torch.randn(2, 3, 4))
    with torch.inference_mode():  # as a framework's evaluation loads it; training goes on from there
        used.load_state_dict(empty)
    assert used.memory_bank.bank.shape == (7, 0)
    assert not used.memory_bank.bank.is_inference()
    used(*torch.randn(2, 3, 6))
    with pytest.raises(RuntimeError, match="size mismatch for memory_bank.bank"):
        NTXentLoss(0.2, (7, 5)).load_state_dict(empty)
    with pytest.raises(RuntimeError, match="size mismatch for memory_bank.bank"):
        NTXentLoss(0.2, 8).load_state_dict(used.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        used.load_state_dict(NTXentLoss(0.2).state_dict())


def test_ranks_agree_anew_after_a_checkpoint_was_loaded() -> None:
    module = NTXentLoss(0.2, 7, gather_distributed=True)
    module.memory_bank.agreed = True
    module.load_state_dict(module.state_dict())
    assert not module.memory_bank.agreed


def test_rows_shorter_than_eps_enter_divided_by_it() -> None:
    module, (out0, out1) = NTXentLoss(0.2, (4, 3), eps=100.0), torch.randn(2, 2, 3)
    module(*leaves(torch.stack([out0, out1])))
    assert torch.equal(module.memory_bank.bank[:2], out1 / 100.0)


def test_copies_and_moves() -> None:
    module = NTXentLoss(LearnedTemperature(0.2), 7)
    module(*torch.randn(2, 3, 4))
    other = copy.deepcopy(module)
    other(*leaves(torch.randn(2, 3, 4)))
    assert not torch.equal(other.memory_bank.bank, module.memory_bank.bank)
    assert module.double().memory_bank.bank.dtype == torch.float64
    wide = NTXentLoss(0.2, 7).double()
    wide(*torch.randn(2, 3, 4))  # which makes the bank
    assert wide.memory_bank.bank.dtype == torch.float64
    for size in (7, (7, 4)):
        of_shapes = NTXentLoss(0.2, size)
        assert of_shapes(*torch.empty(2, 3, 4, device="meta")).device.type == "meta"
        assert {buffer.device.type for buffer in of_shapes.buffers()} == {"meta"}


def test_it_compiles_into_one_graph_for_each_of_its_states() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    eager, traced = (NTXentLoss(0.2, 6) for _ in range(2))
    compiled = torch.compile(traced, backend=counter, fullgraph=True)
    for n in (3, 9):  # the first call makes the bank; the last batch is longer than it
        views = torch.randn(2, n, 8)
        results = []
        for module in (eager, compiled):
            torch.manual_seed(1)
            out0, out1 = leaves(views)
            loss = module(out0, out1)
            results.append([loss, *torch.autograd.grad(loss, (out0, out1))])
        assert all(relative_error(a, b) <= 1e-6 for a, b in zip(*results))
        assert torch.equal(traced.memory_bank.bank, eager.memory_bank.bank)
        assert torch.equal(traced.memory_bank.bank_ptr, eager.memory_bank.bank_ptr)
    assert counter.frame_count == 2


@pytest.mark.parametrize("size", [0, (0,), (0, 8), [0, 8]])
def test_no_bank(size: object) -> None:
    module = NTXentLoss(0.2, memory_bank_size=size)
    z0, z1 = torch.randn(2, 5, 3)
    assert module(z0, z1) == NTXentLoss(0.2)(z0, z1)
    assert not module.state_dict()


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (-1, ValueError, r"memory_bank_size=-1: pass a number of rows K >= 0, or \(K, D\) with D >= 1"),
        ((10, -1), ValueError, r"memory_bank_size=\(10, -1\): pass a number"),
        ((10, 0), ValueError, r"memory_bank_size=\(10, 0\): rows without columns; pass \(K, D\)"),
        ([10, 0], ValueError, r"memory_bank_size=\[10, 0\]: rows without columns; pass \(K, D\)"),
        ((10, 2, 3), ValueError, r"memory_bank_size=\(10, 2, 3\): pass a number"),
        ((), ValueError, r"memory_bank_size=\(\): pass a number"),
        (True, TypeError, "memory_bank_size=True: pass a number"),
        (4.0, TypeError, "memory_bank_size=4.0: pass a number"),
        ((4, 2.0), TypeError, r"memory_bank_size=\(4, 2.0\): pass a number"),
        ("64", TypeError, "memory_bank_size='64': pass a number"),
    ],
)
def test_bad_sizes_are_named(size: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NTXentLoss(memory_bank_size=size)


def test_messages_call_the_views_and_the_loss_by_their_names() -> None:
    out0, out1 = torch.ones(2, 4, 3)
    for module, weights, message in (
        (NTXentLoss(0.1, 5), torch.ones(4, device="meta"), "weights is on meta and out0 is on cpu: move one"),
        (NTXentLoss(torch.ones((), device="meta"), 5), None, "temperature is on meta and out0 is on cpu: move one"),
        (NTXentLoss(0.1, 5, backend="triton"), None, "cannot serve NTXentLoss with a memory bank on cpu"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            module(out0, out1, weights=weights)


@pytest.mark.parametrize(
    ("views", "error", "message"),
    [
        ((torch.ones(4, 3),), ValueError, "out1 is None: a memory bank takes two views; pass out0 and out1"),
        ((torch.ones(4, 3), torch.ones(3, 3)), ValueError, r"out0 \(4, 3\) and out1 \(3, 3\) differ in shape"),
        ((torch.ones(4, 3), torch.ones(4, 3).double()), TypeError, "out0 is torch.float32 and out1 is torch.float64"),
        (([1.0], torch.ones(4, 3)), TypeError, "out0 is a list: pass a torch.Tensor"),
        ((torch.ones(4, 2), torch.ones(4, 2)), ValueError, "out0 has D = 2, and the memory bank D = 3: use one D"),
    ],
)
def test_bad_views_are_named(views: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NTXentLoss(memory_bank_size=(5, 3))(*views)


def test_the_backend_is_chosen_by_the_size_of_the_product_with_the_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("simclr_fast.losses.ntxent.is_large", lambda z, *how: asked.append((z.shape, *how)))
    NTXentLoss(0.2, memory_bank_size=7)(*torch.randn(2, 4, 3))
    NTXentLoss(0.2)(*torch.randn(2, 4, 3))
    assert asked == [((4, 3), default_precision(), None, (4, 7)), ((4, 3), default_precision(), None)]
