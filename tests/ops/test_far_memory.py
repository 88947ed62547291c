"""Elements further apart than 2^31: strides of views and images, and the last program of a launch on huge tensors.

Memory that nothing touches costs nothing: the tensors are mappings of many gigabytes of which a few pages are used.
"""

import pytest
import torch

from simclr_fast import SimCLRAugment, ntxent_loss, similarity_logsumexp
from simclr_fast.ops.augment.triton_backend import TritonAugment
from simclr_fast.ops.ntxent.ops import split_rows
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_backward import ntxent_bwd_finish_kernel, ntxent_bwd_kernel
from simclr_fast.ops.ntxent.triton_similarity import TritonSimilarity
from simclr_fast.ops.ntxent.triton_tiles import Target
from simclr_fast.triton_launch import Launch, launch_on_device
from tests.helpers import IMAGE_STRIDES, VIEW_STRIDES, relative_error, sparse, spread
from tests.ntxent_truth import run_steps
from tests.ops.augment.compare import noise
from tests.ops.augment.triton_cases import drawn, last_of_very_many, views_of


@pytest.mark.parametrize("strides", IMAGE_STRIDES, ids=str)
def test_images_of_large_strides(strides: tuple[int, ...]) -> None:
    images, aug = noise(2, 3, 20, 24), SimCLRAugment(12, backend="cpp")
    assert torch.equal(aug(spread(images, strides), seed=1), aug(images, seed=1))


@pytest.mark.parametrize("strides", VIEW_STRIDES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])  # loss and gradient at once (ntxent_fwd_bwd), and in steps
def test_views_of_large_strides(reduction: str, strides: tuple[int, ...]) -> None:
    z0, z1 = torch.randn(2, 20, 9)
    results = []
    for first in (z0, spread(z0, strides)):
        first.requires_grad_()
        loss = ntxent_loss(first, z1, 0.1, reduction=reduction, backend="cpp")
        results.append((loss, torch.autograd.grad(loss.sum(), first)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("strides", VIEW_STRIDES, ids=str)
def test_rows_and_columns_of_large_strides(strides: tuple[int, ...]) -> None:
    rows, columns = torch.randn(2, 20, 9)
    results = []
    for form in (torch.clone, lambda x: spread(x, strides)):
        leaves = [form(x).requires_grad_() for x in (rows, columns)]
        sums = similarity_logsumexp(*leaves, 0.1, exclude="self", both=True, backend="cpp")
        results.append([*sums, *torch.autograd.grad(sums, leaves, [torch.ones(20), torch.ones(20)])])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.interpret
@pytest.mark.parametrize("strides", VIEW_STRIDES, ids=str)
def test_rows_and_columns_of_large_strides_in_triton(strides: tuple[int, ...]) -> None:
    target = lambda device: Target(80, 2)
    ops, (rows, columns), ones = TritonSimilarity(target=target), torch.randn(2, 20, 9), torch.ones(20)
    results = []
    for form in (torch.clone, lambda x: spread(x, strides)):
        z, y = form(rows), form(columns)
        u, inv_norm = TritonNtxent(target=target).normalize(z, y, 1e-8)
        lse, _, column_lse = ops.fwd(u[:20], u[20:], 0, "self", True, False, 0.1, None, "ieee")
        sides = (ones, ones, z, u[:20], inv_norm[:20], u[20:], lse, column_lse)
        results.append([lse, column_lse, *ops.bwd(*sides, 0, "self", 1e-8, 0.1, None, "ieee", True)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.interpret
@pytest.mark.parametrize("strides", IMAGE_STRIDES, ids=str)
def test_images_of_large_strides_in_triton(strides: tuple[int, ...]) -> None:
    images, triton = noise(2, 3, 20, 24), TritonAugment()
    params = drawn(images, 12)
    assert torch.equal(views_of(triton, spread(images, strides), 12, params), views_of(triton, images, 12, params))


@pytest.mark.interpret
@pytest.mark.parametrize("strides", VIEW_STRIDES, ids=str)
def test_views_of_large_strides_in_triton(strides: tuple[int, ...]) -> None:
    triton = TritonNtxent(target=lambda device: Target(80, 2))
    z0, z1 = torch.randn(2, 20, 9)
    results = []
    for first in (z0, spread(z0, strides)):
        values = run_steps(triton, first, z1, 0.1, need_dt=False)
        at_once = triton.fwd_bwd(first, z1, 1e-8, 0.1, None, "mean", "ieee", False)[:2]
        results.append((values.u, values.loss, values.dz0, values.dz1, *at_once))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def last_program(launch: Launch) -> None:
    """Triton's interpreter runs the last program alone of a launch of very many, along every axis."""
    from triton.runtime import interpreter

    def from_the_last(*bounds: int) -> range:
        is_an_axis = len(bounds) == 1 and bounds[0] in launch.grid and bounds[0] > 64
        return range(bounds[0] - 1, bounds[0]) if is_an_axis else range(*bounds)

    interpreter.range = from_the_last  # in place of the built-in, for the loops over the grid
    try:
        launch_on_device(launch)
    finally:
        del interpreter.range


@pytest.mark.interpret
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", [60, 66], ids=["whole", "tiles"])  # one program a view, and several
def test_the_last_of_very_many_views(size: int, channels_last: bool) -> None:
    image = noise(1, 3, 70, 75)
    images, packed, params = last_of_very_many(image, size)
    views = views_of(TritonAugment(last_program), images, size, packed, 1, torch.float16, channels_last)
    expected = views_of(TritonAugment(), image, size, params, 1, torch.float16, channels_last)
    own = slice(-1, None) if size == 66 else slice(None)  # of tiles, the last program has the last corner alone
    assert torch.equal(views[-1, :, own, own], expected[0, :, own, own])


@pytest.mark.interpret
def test_the_last_part_of_a_very_large_gradient() -> None:
    n, dim, splits, rows, columns = (
        16384,
        1024,
        74,
        16,
        64,
    )  # 74 splits of at most 7 tiles of 64 columns: the last has 1
    generator = torch.Generator().manual_seed(0)
    z = sparse(2 * n, dim)
    z[-columns:] = torch.nn.functional.normalize(torch.randn(columns, dim, generator=generator), dim=1)
    u = sparse(2 * n, 2, dim, dtype=torch.float16)
    u[-columns:] = split_rows(z[-columns:])
    part = sparse(splits, 2 * n, dim)
    assert part.numel() - dim > 2**31
    half, weight = torch.full((2 * n,), 0.5), torch.ones(2 * n + 1)
    shared = {"weight_ptr": weight, "n": n, "columns": 2 * n, "temperature": 0.5, "temperature_ptr": None}
    shared |= {"part_ptr": part, "dt_part_ptr": weight, "row_offset": 0}
    constants = {
        "D": dim,
        "NEED_DT": False,
        "ONLINE_MAX": False,
        "OPERAND": "ieee",
        "BLOCK_M": rows,
        "BLOCK_N": columns,
    }
    constants |= {"BLOCK_D": 128, "SLICES": 8, "HOLD_ROWS": True, "EVEN_D": True, "SPECIAL_FIRST": True, "SPECIAL": 16}
    statistics = {"u_ptr": u, "term_ptr": half, "lse_neg_ptr": half, "s_pos_ptr": half}
    last_program(Launch.of(ntxent_bwd_kernel, (2 * n // rows, splits, 1), shared | statistics, constants))

    # Coefficients are exp(s - 1/t) (1/2 + 1/2) for all columns of the split but a row's own.
    own = z[-rows:].double()
    s = own @ z[-columns:].double().T
    coefficients = torch.exp((s - 1) / 0.5)
    coefficients[torch.arange(rows), columns - rows + torch.arange(rows)] = 0
    expected = coefficients @ z[-columns:].double()
    assert relative_error(part[-1, -rows:], expected) <= 1e-5

    dz0, dz1 = sparse(n, dim), sparse(n, dim)
    arguments = shared | {"positive_ptr": torch.zeros(2 * n), "inv_norm_ptr": torch.ones(2 * n), "z0_ptr": z[:n]}
    arguments |= {"z1_ptr": z[n:], "stride0": dim // 16, "stride1": dim // 16, "dz0_ptr": dz0, "dz1_ptr": dz1}
    arguments |= {"dt_ptr": torch.zeros(()), "scale": 0.5, "eps": 1e-8, "splits": splits, "dt_parts": 1}
    constants = {"D": dim, "UNIT": 16, "NEED_DT": False, "BLOCK_M": rows, "BLOCK_D": dim, "BLOCK_DT": 128}
    last_program(Launch.of(ntxent_bwd_finish_kernel, (2 * n // rows,), arguments, constants))
    tangent = expected - (expected * own).sum(dim=1, keepdim=True) * own
    assert relative_error(dz1[-rows:], tangent) <= 1e-5  # scale / t = 1
