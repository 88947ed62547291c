"""The last block of launches on tensors of more than 2^31 elements, which only a GPU could run as a whole.

Memory that nothing touches costs nothing: the tensors are mappings of which the last pages are used.
"""

import ctypes

import pytest
import torch

from proof.simt import augment as simt
from proof.simt.library import Kernels, Schedule
from proof.simt.ntxent_accuracy import SOURCES
from simclr_fast.ops.augment import ImageBatch
from tests import ntxent_launchers
from tests.helpers import relative_error, sparse
from tests.ntxent_launchers import NtxentLaunchers
from tests.ops.augment.compare import noise
from tests.ops.augment.triton_cases import last_of_very_many

LAST = Schedule(last_block_only=True)


def test_the_last_rows_of_a_very_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ntxent_launchers, "filled", lambda *shape, dtype: sparse(*shape, dtype=dtype))
    ntxent = NtxentLaunchers(Kernels(SOURCES), options={"schedule": LAST})
    n, d, rows = 2**20 + 64, 1024, 8  # eight warps of the last block, a row each
    z0, z1 = (sparse(n, d, dtype=torch.float16) for _ in range(2))
    z1[-rows:] = torch.randn(rows, d).half()
    u, inv_norm = ntxent.normalize(z0, z1)
    assert u.numel() > 2**31
    norms = z1[-rows:].double().norm(dim=1)
    assert relative_error(inv_norm[-rows:], 1 / norms) <= 1e-6
    assert relative_error(u[-rows:].double(), z1[-rows:].double() / norms[:, None]) <= 1e-3


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
