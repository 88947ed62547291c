"""The last block of launches on tensors of more than 2^31 elements, which only a GPU could run as a whole."""

import ctypes

import pytest
import torch

from proof import far_memory
from proof.simt import augment as simt
from proof.simt.build import ROOT
from proof.simt.library import Kernels, Schedule, SimtError
from proof.simt.ntxent_accuracy import SOURCES
from simclr_fast.ops.augment import ImageBatch
from tests.helpers import relative_error, sparse
from tests.ntxent_launchers import BwdArgs, Device, FwdArgs, FwdBwdArgs, NormalizeArgs, NtxentLaunchers
from tests.ops.augment.compare import noise
from tests.ops.augment.triton_cases import last_of_very_many
from tests.similarity_launchers import BwdArgs as SimilarityBwdArgs
from tests.similarity_launchers import FwdArgs as SimilarityFwdArgs
from tests.similarity_launchers import SimilarityLaunchers

LAST = Schedule(last_block_only=True)
DEVICE = Device(2**18, 232448)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Kernels whose launches are cut as far_memory.FINER says."""
    far_memory.make_sparse(monkeypatch)
    replaced = {}
    for file, old, new in far_memory.FINER:
        text = (ROOT / "csrc/cuda" / file).read_text()
        assert text.count(old) == 1
        replaced[f"csrc/cuda/{file}"] = text.replace(old, new)
    # These three files plan the launches, and hand the plans on.
    planned_in = (f"csrc/cuda/{name}.cu" for name in ("ntxent_fwd", "ntxent_bwd_finish", "similarity"))
    return Kernels(SOURCES, replaced=replaced, among=planned_in)


@pytest.fixture
def ntxent(kernels: Kernels) -> NtxentLaunchers:
    return NtxentLaunchers(kernels, device=DEVICE, options={"schedule": LAST})


def test_the_last_rows_of_a_very_large_batch(ntxent: NtxentLaunchers) -> None:
    n, d, rows = 2**20 + 64, 1024, 8  # eight warps of the last block, a row each
    z0, z1 = (sparse(n, d, dtype=torch.float16) for _ in range(2))
    z1[-rows:] = torch.randn(rows, d).half()
    u, inv_norm = ntxent.normalize(z0, z1)
    assert u.numel() > 2**31
    norms = z1[-rows:].double().norm(dim=1)
    assert relative_error(inv_norm[-rows:], 1 / norms) <= 1e-6
    assert relative_error(u[-rows:].double(), z1[-rows:].double() / norms[:, None]) <= 1e-3


# The last block's tile holds the diagonal: rows are the columns, 2^21 of 1024; or 16 rows at the end of the columns.
@pytest.mark.parametrize(("n", "columns", "d"), [(2**20 + 64, 2**21 + 128, 1024), (8, 2**24 + 64, 128)])
def test_the_last_tile_of_very_many_logits(ntxent: NtxentLaunchers, n: int, columns: int, d: int) -> None:
    far_memory.check_last_tile(ntxent, n, columns, d)


# 2^10 pairs at the end of the columns, or columns that are the rows. strip: the columns of the last strip.
@pytest.mark.parametrize(
    ("dtype", "n", "multiprocessors", "strip"),
    [(torch.float16, 2**10, 2**18, 320), (torch.float32, 2**10, 2**18, 128), (torch.float16, 2**23 + 32, 2**27, 6080)],
)
def test_the_last_strip_of_very_many_columns_in_the_backward(
    ntxent: NtxentLaunchers, dtype: torch.dtype, n: int, multiprocessors: int, strip: int
) -> None:
    far_memory.check_last_strip(ntxent, dtype, n, 2**24 + 64, 128, multiprocessors, strip)


def test_the_last_of_very_many_columns_of_the_primitive(kernels: Kernels) -> None:
    far_memory.check_last_columns(SimilarityLaunchers(kernels, device=DEVICE, options={"schedule": LAST}))


def test_the_last_of_very_many_float64_rows_of_the_primitive(kernels: Kernels) -> None:
    far_memory.check_last_rows(SimilarityLaunchers(kernels, device=DEVICE, options={"schedule": LAST}))


FWD = {"n": 1, "columns": 2, "u_columns": 8, "temperature": 0.1, "device": DEVICE}
SIMILARITY = {"row_count": 2, "column_count": 2, "u_columns": 8, "temperature": 0.1, "device": DEVICE}
TWO = ctypes.c_int64 * 2
NORMALIZE = {"n": TWO(2, 0), "d": 8, "u_columns": 8, "eps": 1e-8}


@pytest.mark.parametrize(
    ("launcher", "args"),
    [
        *(("ntxent_normalize", NormalizeArgs(**NORMALIZE | {"n": TWO(*n)})) for n in ((0, 2), (2, -1))),
        *(("ntxent_normalize", NormalizeArgs(**NORMALIZE | change)) for change in ({"d": 0}, {"d": 9}, {"z_dtype": 4})),
        *(("ntxent_fwd", FwdArgs(**FWD | change)) for change in ({"n": 0}, {"row_offset": -1}, {"u_columns": 0})),
        *(("ntxent_bwd", BwdArgs(**FWD | change)) for change in ({"d": 0}, {"d": 9}, {"d": 8, "row_offset": 1})),
        *(("ntxent_fwd_bwd", FwdBwdArgs(n=n, d=d, temperature=0.1, device=DEVICE)) for n, d in ((0, 8), (1, 0))),
        *(
            ("similarity_fwd", SimilarityFwdArgs(**SIMILARITY | change))
            for change in ({"column_count": 0}, {"u_columns": 0}, {"exclude": 3}, {"exclude": 2, "row_count": 3})
        ),
        *(("similarity_bwd", SimilarityBwdArgs(**SIMILARITY | {"d": d})) for d in (0, 9)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_that_cannot_be_are_refused(kernels: Kernels, launcher: str, args: ctypes.Structure) -> None:
    with pytest.raises(SimtError, match="returned 1: no message"):
        kernels.call(f"simclr_{launcher}", ctypes.byref(args), None)


# Below it, the sum of two numbers of rows or columns has 31 bits, which the kernels rely on.
@pytest.mark.parametrize(
    ("launcher", "args"),
    [
        ("ntxent_fwd", FwdArgs(n=1, columns=2**30, u_columns=8, temperature=0.1, device=DEVICE)),
        ("ntxent_bwd", BwdArgs(n=1, columns=2**30, d=8, u_columns=8, temperature=0.1, device=DEVICE)),
        ("ntxent_fwd_bwd", FwdBwdArgs(n=2**29, d=8, temperature=0.1, device=DEVICE)),
        ("similarity_fwd", SimilarityFwdArgs(row_count=2**30, column_count=1, u_columns=8, device=DEVICE)),
        ("similarity_fwd", SimilarityFwdArgs(row_count=1, column_count=2**30, u_columns=8, device=DEVICE)),
        (
            "similarity_fwd",
            SimilarityFwdArgs(row_count=2, row_offset=2**30 - 2, column_count=1, u_columns=8, exclude=1, device=DEVICE),
        ),
        ("similarity_bwd", SimilarityBwdArgs(row_count=2**30, column_count=1, d=8, u_columns=8, device=DEVICE)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_more_rows_or_columns_than_an_int_can_add_are_refused(
    kernels: Kernels, launcher: str, args: ctypes.Structure
) -> None:
    with pytest.raises(SimtError, match="returned 1: no message"):
        kernels.call(f"simclr_{launcher}", ctypes.byref(args), None)


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
