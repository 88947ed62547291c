"""The last block of launches on tensors of more than 2^31 elements, which only a GPU could run as a whole.

Memory that nothing touches costs nothing: the tensors are mappings of which the last pages are used.
"""

import ctypes

import pytest
import torch
from torch import Tensor

from proof.simt import augment as simt
from proof.simt.build import ROOT
from proof.simt.library import Kernels, Schedule
from proof.simt.ntxent_accuracy import SOURCES
from simclr_fast.ops.augment import ImageBatch
from simclr_fast.ops.ntxent.ops import split_rows
from tests import ntxent_launchers
from tests.helpers import relative_error, sparse
from tests.ntxent_launchers import Device, NtxentLaunchers
from tests.ops.augment.compare import noise
from tests.ops.augment.triton_cases import last_of_very_many

LAST = Schedule(last_block_only=True)


# Of a file: how finely its launch cuts the columns at most, and how finely here.
FINER = {
    "csrc/cuda/ntxent_plan.h": ("constexpr int kFwdMaxSlots = 64;", "constexpr int kFwdMaxSlots = 1 << 20;"),
    "csrc/cuda/ntxent_splits.h": ("constexpr int kBwdMaxSplits = 8;", "constexpr int kBwdMaxSplits = 1 << 14;"),
}


@pytest.fixture
def ntxent(monkeypatch: pytest.MonkeyPatch) -> NtxentLaunchers:
    """The loss's launchers, whose outputs and workspaces take memory where they are written.

    The launches are cut finer than a GPU's: a strip of columns, of which a block of 64 strips would walk over millions
    in minutes, is one tile of 128 in the forward, and at most 95 of 64 in the backward.
    """

    class SparseWorkspace:
        def __init__(self, size: int) -> None:
            self.data = sparse(size, dtype=torch.uint8)

        def check(self, what: str) -> None:
            """Sanitizers and the ordinary workspace see to what is written behind it."""

    texts = {path: (ROOT / path).read_text() for path in FINER}
    assert all(texts[path].count(cut) == 1 for path, (cut, _) in FINER.items())
    monkeypatch.setattr(ntxent_launchers, "filled", lambda *shape, dtype: sparse(*shape, dtype=dtype))
    monkeypatch.setattr(ntxent_launchers, "Guarded", SparseWorkspace)
    library = Kernels(SOURCES, replaced={path: texts[path].replace(*finer) for path, finer in FINER.items()})
    return NtxentLaunchers(library, device=Device(2**18, 232448), options={"schedule": LAST})


def test_the_last_rows_of_a_very_large_batch(ntxent: NtxentLaunchers) -> None:
    n, d, rows = 2**20 + 64, 1024, 8  # eight warps of the last block, a row each
    z0, z1 = (sparse(n, d, dtype=torch.float16) for _ in range(2))
    z1[-rows:] = torch.randn(rows, d).half()
    u, inv_norm = ntxent.normalize(z0, z1)
    assert u.numel() > 2**31
    norms = z1[-rows:].double().norm(dim=1)
    assert relative_error(inv_norm[-rows:], 1 / norms) <= 1e-6
    assert relative_error(u[-rows:].double(), z1[-rows:].double() / norms[:, None]) <= 1e-3


def unit_rows(rows: int, d: int, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, d)).to(dtype)


# The last block's tile holds the diagonal: rows are the columns, 2^21 of 1024; or 16 rows at the end of the columns.
@pytest.mark.parametrize(("n", "columns", "d"), [(2**20 + 64, 2**21 + 128, 1024), (8, 2**24 + 64, 128)])
def test_the_last_tile_of_very_many_logits(ntxent: NtxentLaunchers, n: int, columns: int, d: int) -> None:
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


# 2^10 pairs at the end of the columns, or columns that are the rows. strip: the columns of the last strip.
@pytest.mark.parametrize(
    ("dtype", "n", "multiprocessors", "strip"),
    [(torch.float16, 2**10, 2**18, 320), (torch.float32, 2**10, 2**18, 128), (torch.float16, 2**23 + 32, 2**27, 6080)],
)
def test_the_last_strip_of_very_many_columns_in_the_backward(
    ntxent: NtxentLaunchers, dtype: torch.dtype, n: int, multiprocessors: int, strip: int
) -> None:
    columns, d, t, weight, eps = 2**24 + 64, 128, 0.2, 0.3, 1e-8
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


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [60, 100], ids=["whole", "tiles"])
def test_the_last_of_very_many_views(size: int, channels_last: bool) -> None:
    kernels, image = Kernels(simt.SOURCES), noise(1, 3, 70, 75)
    images, packed, params = last_of_very_many(image, size)
    batch = len(images)
    out = sparse(batch, size, size, 3, dtype=torch.float16).permute(0, 3, 1, 2)
    out = out if channels_last else out.permute(0, 2, 3, 1).reshape(batch, 3, size, size)
    args = simt.augment_args(ImageBatch.of(images), packed, out, 1)
    scratch = sparse(kernels.value("augment_scratch_doubles", ctypes.byref(args)) + 1, dtype=torch.float64)
    kernels.call("augment", ctypes.byref(args), scratch, schedule=LAST)
    expected = simt.augment(kernels, ImageBatch.of(image), params, (size, size), 1, torch.float16, channels_last)
    own = slice(-1, None) if size == 100 else slice(None)  # of tiles, the last block has the last corner alone
    assert expected[0, :, own, own].count_nonzero() > 0
    assert torch.equal(out[-1, :, own, own], expected[0, :, own, own])
