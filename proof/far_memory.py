"""Problems of more than 2^31 elements for the last block of a launch, whatever executes the kernels.

Memory that nothing touches costs nothing: the tensors are mappings of which the last pages are used. The launches are
cut finer than a GPU's: a strip of columns, of which a block of 64 strips would walk over millions in minutes, is one
tile in the forward, and some hundred columns in the backward.
"""

import pytest
import torch
from torch import Tensor

from simclr_fast.ops.ntxent.ops import split_rows
from tests import ntxent_launchers, similarity_launchers
from tests.helpers import relative_error, sparse
from tests.ntxent_launchers import NtxentLaunchers
from tests.similarity_launchers import SimilarityLaunchers

# Of a file in csrc/cuda: how finely its launch cuts the columns at most, and how finely here.
FINER = (
    ("ntxent_plan.h", "constexpr int kFwdMaxSlots = 64;", "constexpr int kFwdMaxSlots = 1 << 20;"),
    ("ntxent_splits.h", "constexpr int kBwdMaxSplits = 8;", "constexpr int kBwdMaxSplits = 1 << 14;"),
)


class _SparseWorkspace:
    def __init__(self, size: int) -> None:
        self.data = sparse(size, dtype=torch.uint8)

    def check(self, what: str) -> None:
        """Sanitizers and the ordinary workspace see to what is written behind it."""


def make_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets outputs and workspaces of the launchers take memory where they are written."""
    for launchers in (ntxent_launchers, similarity_launchers):
        monkeypatch.setattr(launchers, "filled", lambda *shape, dtype: sparse(*shape, dtype=dtype))
    monkeypatch.setattr(ntxent_launchers, "Guarded", _SparseWorkspace)


def unit_rows(rows: int, d: int, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, d)).to(dtype)


def check_last_tile(ntxent: NtxentLaunchers, n: int, columns: int, d: int) -> None:
    """The forward's statistics of the last rows, whose tile holds the diagonal."""
    t, tile = 0.2, columns % 128 or 128
    u = sparse(columns, d, dtype=torch.float16)
    u[-tile:] = unit_rows(tile, d, u.dtype)
    _, lse_neg, s_pos = ntxent.fwd(u, n, row_offset=columns - 2 * n, temperature=t, reduce=False)
    assert u.numel() > 2**31
    logits = u[-tile:].double() @ u[-tile:].double().T / t
    own, positive = torch.arange(tile), torch.arange(tile) - n
    logits[own, own] = -torch.inf
    logits[own[positive >= 0], positive[positive >= 0]] = -torch.inf
    finished = min(n, 32)  # samples of the last block of the second step
    assert relative_error(lse_neg[-finished:], logits.logsumexp(1)[-finished:]) <= 1e-5
    assert relative_error(s_pos[-finished:], (u[-finished:].double() * u[-finished - n : -n]).sum(1) / t) <= 1e-6


def check_last_strip(
    ntxent: NtxentLaunchers, dtype: torch.dtype, n: int, columns: int, d: int, multiprocessors: int, strip: int
) -> None:
    """The backward's gradient of the last rows. strip: the columns of the launch's last block."""
    t, weight, eps = 0.2, 0.3, 1e-8
    ntxent.device.multiprocessors = multiprocessors
    rows = 4  # of the second step's last block
    positives = slice(-rows - n, -n)
    z, unit, inv_norm = sparse(2, n, d, dtype=dtype), sparse(2 * n, d, dtype=torch.float64), sparse(2 * n)
    halves = dtype == torch.float16
    u = sparse(columns, *([d] if halves else [2, d]), dtype=torch.float16)
    lse_neg, s_pos = sparse(columns), sparse(columns)
    for some in (slice(-strip, None), positives):
        of_some = torch.randn_like(z.flatten(0, 1)[some])
        z.flatten(0, 1)[some] = of_some
        norms = of_some.double().norm(dim=1)
        unit[some], inv_norm[some] = of_some.double() / norms[:, None], (1 / norms).float()
        u[some] = unit[some].half() if halves else split_rows(unit[some].float())
        lse_neg[some], s_pos[some] = torch.rand(len(norms)) + 8, torch.rand(len(norms)) + 1
    _, dz1, _ = ntxent.bwd(
        torch.tensor(weight), *z, u, inv_norm, lse_neg, s_pos, row_offset=columns - 2 * n, eps=eps, temperature=t,
        need_dt=False,
    )  # fmt: skip
    assert u.numel() > 2**31

    logits = unit[-rows:] @ unit[-strip:].T / t
    lse = torch.logaddexp(lse_neg[-strip:], s_pos[-strip:]).double()
    coefficients = weight * ((logits - lse[-rows:, None]).exp() + (logits - lse).exp())
    coefficients[torch.arange(rows), torch.arange(strip - rows, strip)] = 0
    own_pull, positive_pull = (torch.sigmoid(lse_neg[some] - s_pos[some]) for some in (slice(-rows, None), positives))
    pull = weight * (own_pull + positive_pull).double()
    du = (coefficients @ unit[-strip:] - pull[:, None] * unit[positives]) / t
    dz = inv_norm[-rows:, None] * (du - (du * unit[-rows:]).sum(1, keepdim=True) * unit[-rows:])
    assert relative_error(dz1[-rows:].double(), dz) <= (2e-3 if halves else 1e-5)
    assert dz1[-2 * rows : -rows].count_nonzero() == 0


def check_last_columns(similarity: SimilarityLaunchers) -> None:
    """The forward's log-sum-exps of the last columns, each of which has more than 64 partials of the rows."""
    rows, columns, d, t, row_tile, column_tile = 2**14 + 16, 2**25 + 64, 64, 0.2, 16, 64
    x, y = sparse(rows, d, dtype=torch.float16), sparse(columns, d, dtype=torch.float16)
    x[-row_tile:], y[-column_tile:] = unit_rows(row_tile, d, x.dtype), unit_rows(column_tile, d, y.dtype)
    _, _, column_lse = similarity.fwd(x, y, both=True, temperature=t)
    assert y.numel() > 2**31
    want = (x[-row_tile:].double() @ y[-column_tile:].double().T / t).logsumexp(0)
    assert relative_error(column_lse[-column_tile:], want) <= 1e-5


def check_last_rows(similarity: SimilarityLaunchers) -> None:
    """Both directions of the last float64 rows, which go row by row."""
    rows, columns, d, t, last = 2**28 + 4, 5, 8, 0.2, 4
    x, y = sparse(rows, d, dtype=torch.float64), unit_rows(columns, d, torch.float64)
    x[-last:] = unit_rows(last, d, x.dtype)
    lse, _, _ = similarity.fwd(x, y, temperature=t)
    assert x.numel() > 2**31
    logits = x[-last:] @ y.T / t
    assert relative_error(lse[-last:], logits.logsumexp(1)) <= 1e-13

    drows, inv_norm = sparse(rows, dtype=torch.float64), sparse(rows, dtype=torch.float64)
    drows[-last:], inv_norm[-last:] = torch.rand(last).double(), 1.0
    no_columns = torch.zeros(columns, dtype=torch.float64), torch.full((columns,), torch.inf, dtype=torch.float64)
    dz, _ = similarity.bwd(drows, no_columns[0], x, x, inv_norm, y, lse, no_columns[1], temperature=t, need_dt=False)
    du = drows[-last:, None] * logits.softmax(1) @ y / t
    assert relative_error(dz[-last:], du - (du * x[-last:]).sum(1, keepdim=True) * x[-last:]) <= 1e-12
