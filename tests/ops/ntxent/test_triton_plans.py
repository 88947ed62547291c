"""When calls of the Triton backends share a plan, and when they must not: launches are noted, none runs."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from simclr_fast.ops.ntxent import triton_tiles
from simclr_fast.ops.ntxent.ops import split_rows
from simclr_fast.ops.ntxent.triton_backend import TritonNtxent
from simclr_fast.ops.ntxent.triton_host import needs_online_max
from simclr_fast.ops.ntxent.triton_similarity import TritonSimilarity
from simclr_fast.ops.ntxent.triton_tiles import Target, Tiles
from simclr_fast.triton_launch import Launch, LaunchPlan
from tests.ntxent_truth import EPS
from tools.gpu import tune


class Noted:
    """Both backends, and what they launch. All launches of a plan have to be of the same types."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.types: dict[LaunchPlan, list[object]] = {}
        targets = {"cpu": Target(90, 132), "meta": Target(80, 100)}
        how = (self._note, lambda device: targets[device.type])
        self.ntxent, self.similarity = TritonNtxent(*how), TritonSimilarity(*how)

    def _note(self, launch: Launch) -> None:
        types = [value.dtype if isinstance(value, Tensor) else type(value) for value in launch.given]
        assert self.types.setdefault(launch.plan, types) == types
        self.launches.append(launch)

    def of(self, call: Callable[[], object]) -> list[Launch]:
        """The launches of a call."""
        self.launches.clear()
        call()
        return list(self.launches)

    def steps(
        self,
        z: Tensor | None = None,  # [2, n, D]
        t: float | Tensor = 0.1,
        reduction: str = "mean",
        precision: str = "ieee",
        need_dt: bool = False,
        eps: float = EPS,
        row_offset: int = 0,
        columns: int | None = None,
        dloss: torch.dtype = torch.float32,
    ) -> list[Launch]:
        """Of normalize, fwd and bwd."""
        z = torch.zeros(2, 24, 40) if z is None else z
        n = z.shape[1]
        temperature = (0.0, t) if isinstance(t, Tensor) else (t, None)

        def call() -> None:
            u, inv_norm = self.ntxent.normalize(z[0], z[1], eps)
            u = u if columns is None else u.new_zeros(columns, *u.shape[1:])
            _, lse_neg, s_pos = self.ntxent.fwd(u, n, row_offset, *temperature, reduction, precision)
            statistics = (u, inv_norm, *(x.new_zeros(u.shape[0]) for x in (lse_neg, s_pos)))
            d = z.new_zeros(u.shape[0] if reduction == "none" else (), dtype=dloss)
            self.ntxent.bwd(d, z[0], z[1], *statistics, row_offset, reduction, eps, *temperature, precision, need_dt)

        return self.of(call)


def plans(launches: list[Launch]) -> list[object]:
    return [launch.plan for launch in launches]


def test_a_plan_serves_all_values_of_a_shape() -> None:
    noted = Noted()
    first, second = noted.steps(t=0.1), noted.steps(torch.ones(2, 24, 40), t=0.2)
    assert plans(first) == plans(second)
    assert len(first) == 6
    for launches, t in ((first, 0.1), (second, 0.2)):
        assert {launch.arguments["temperature"] for launch in launches[1:]} == {t}
    on_device = [plans(noted.steps(t=torch.tensor(t))) for t in (0.1, 0.2)]
    assert on_device[0] == on_device[1]
    assert not {*on_device[0][1:]} & {*plans(first)}


def test_what_the_kernels_do_not_take_is_named() -> None:
    noted, u = Noted(), torch.zeros(4, 8, dtype=torch.float16)
    options = (0, "none", False, False, 0.1, None)
    for call, error, message in (
        (lambda: noted.steps(torch.zeros(2, 4, 8).double()), TypeError, "takes no torch.float64, which z0 is: cast it"),
        (lambda: noted.ntxent.fwd(u.float(), 2, 0, 0.1, None, "mean", "ieee"), TypeError, r"float32 \(4, 8\)"),
        (lambda: noted.ntxent.fwd(u[0], 2, 0, 0.1, None, "mean", "ieee"), TypeError, r"float16 \(8,\)"),
        (lambda: noted.similarity.fwd(u[:, None], u, *options, "ieee"), TypeError, r"float16 \(4, 1, 8\)"),
        (lambda: noted.similarity.fwd(u, u, *options, "fast"), ValueError, "precision must be 'ieee' or 'tf32', got"),
        (lambda: noted.similarity.fwd(u.new_empty(2**30, 1, device="meta"), u, *options, "ieee"), ValueError, "2.30"),
        (lambda: noted.similarity.fwd(u, u.new_empty(2**30, 1, device="meta"), *options, "ieee"), ValueError, "2.30"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert not noted.launches


def test_what_would_be_read_beyond_its_end_is_refused() -> None:
    noted, u, z = Noted(), torch.zeros(8, 8, dtype=torch.float16), torch.zeros(2, 4, 8, dtype=torch.float16)
    rows = torch.zeros(8)
    for n, offset, message in (
        (5, 0, "2 x 5 rows from row 0 on are not among the 8 unit rows"),
        (2, 5, "2 x 2 rows from row 5 on"),
        (2, -1, "2 x 2 rows from row -1 on"),
    ):
        with pytest.raises(ValueError, match=message):
            noted.ntxent.fwd(u, n, offset, 0.1, None, "mean", "ieee")
    pairs = {"dloss": torch.zeros(()), "inv_norm": rows, "lse_neg": rows, "s_pos": rows}
    rectangle = {"drows": rows, "dcolumns": rows, "lse": rows, "column_lse": rows, "inv_norm": rows}

    def of_pairs(dloss: Tensor, inv_norm: Tensor, lse_neg: Tensor, s_pos: Tensor, offset: int = 0) -> None:
        noted.ntxent.bwd(dloss, *z, u, inv_norm, lse_neg, s_pos, offset, "mean", 1e-8, 0.1, None, "ieee", True)

    def of_rectangle(drows: Tensor, dcolumns: Tensor, lse: Tensor, column_lse: Tensor, inv_norm: Tensor) -> None:
        given = (drows, dcolumns, z.flatten(0, 1), u, inv_norm, u, lse, column_lse)
        noted.similarity.bwd(*given, 0, "none", 1e-8, 0.1, None, "ieee", True)

    for call, given in ((of_pairs, pairs), (of_rectangle, rectangle)):
        call(**given)
        for name, x in given.items():
            wrong = (x.new_zeros(7),) if name[0] == "d" else (x[:7], x.double())
            for value in wrong:
                with pytest.raises(ValueError, match=f"{name} must have {x.numel()} elements of float32, it has"):
                    call(**given | {name: value})
    with pytest.raises(ValueError, match="2 x 4 rows from row 1 on are not among the 8 unit rows"):
        of_pairs(**pairs, offset=1)


def test_rows_have_one_maximum_where_no_logit_is_further_than_80_from_it() -> None:
    assert [needs_online_max(t, None) for t in (0.5, 0.025, 0.0249)] == [False, False, True]
    assert needs_online_max(0.0, torch.tensor(0.5))


@pytest.mark.parametrize("multiprocessors", [4, 132])
@pytest.mark.parametrize("column_sums", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_bands_and_splits_share_out_the_tiles(symmetric: bool, column_sums: bool, multiprocessors: int) -> None:
    target = Target(90, multiprocessors)
    for rows, columns in ((1, 1), (1, 300), (128, 128), (129, 129), (300, 1), (1000, 400), (2000, 2000)):
        band_m, band_n = triton_tiles.forward_bands(target, symmetric, rows, columns, column_sums)
        slots = rows if symmetric or column_sums else 1  # of a rectangle's columns nothing is summed
        assert band_m == max(1, -(-slots // 128))
        fewest = -(-columns // 128)
        most = rows * columns // (2 if symmetric else 1) // band_m // (4 * multiprocessors)
        assert band_n == max(1, fewest, min(8, most)), "as long as every multiprocessor has four programs"
        cost = {k: -(-rows * k // multiprocessors) * (-(-columns // k) + 2) for k in range(1, columns + 1)}
        cost = {k: value for k, value in cost.items() if k <= multiprocessors}
        assert triton_tiles.backward_splits(target, rows, columns) == min(cost, key=cost.get)


def test_devices_have_the_tables_of_their_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton_tiles.target_of(torch.device("cpu")) == Target(80, 4)
    for k, (major, arch) in enumerate(((8, 80), (9, 90), (10, 100), (12, 80))):
        properties = SimpleNamespace(major=major, multi_processor_count=100 + k)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, properties=properties: properties)
        assert triton_tiles.target_of.__wrapped__(torch.device("cuda", k)) == Target(arch, 100 + k)


WIDE = torch.zeros(2, 24, 48)
# What differs from the first call, and the launches, of six, that need a plan of their own for it.
DIFFERENCES = {
    "samples": ({"z": torch.zeros(2, 25, 40)}, {0, 1, 2, 3, 4, 5}),
    "width": ({"z": torch.zeros(2, 24, 48)}, {0, 1, 2, 3, 4, 5}),
    "type": ({"z": torch.zeros(2, 24, 40).half()}, {0, 1, 2, 3, 4, 5}),
    "rows further apart": ({"z": WIDE[:, :, :40]}, {0, 3, 4, 5}),
    "device": ({"z": torch.zeros(2, 24, 40, device="meta")}, {1, 2, 3, 4, 5}),
    "temperature of another maximum": ({"t": 0.01}, {1, 2, 3, 4, 5}),
    "temperature tensor": ({"t": torch.tensor(0.1)}, {1, 2, 3, 4, 5}),
    "reduction": ({"reduction": "none"}, {1, 2, 3, 4, 5}),
    "weight": ({"reduction": "sum"}, {1, 2, 3, 4, 5}),
    "precision": ({"precision": "tf32"}, {1, 2, 3, 4, 5}),
    "eps": ({"eps": 1e-6}, {0, 3, 4, 5}),
    "gradient of the temperature": ({"need_dt": True}, {3, 4, 5}),
    "processes": ({"columns": 96}, {1, 2, 3, 4, 5}),
    "type from above": ({"dloss": torch.float64}, {3, 4, 5}),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_differs_has_a_plan_of_its_own(name: str) -> None:
    options, expected = DIFFERENCES[name]
    noted = Noted()
    first = plans(noted.steps())
    second = plans(noted.steps(**options))
    assert {i for i in range(6) if first[i] is not second[i]} == expected
    assert plans(noted.steps()) == first
    assert plans(noted.steps(**options)) == second


def test_ranks_and_types_of_temperatures_have_plans_of_their_own() -> None:
    noted = Noted()
    found = [plans(noted.steps(columns=144, row_offset=48 * rank)) for rank in range(3)]
    found += [plans(noted.steps(t=torch.tensor(0.1, dtype=dtype))) for dtype in (torch.float32, torch.float64)]
    assert len({plan for each in found for plan in each[1:]}) == 5 * 5


def test_the_op_of_loss_and_gradient_plans_all_launches_together() -> None:
    noted, z = Noted(), torch.zeros(2, 24, 40)

    def at_once(z: Tensor = z, t: float | Tensor = 0.1, reduction: str = "mean", *numbers: object) -> list[object]:
        precision, need_dt, eps = [*numbers, *("ieee", False, EPS)[len(numbers) :]]
        temperature = (0.0, t) if isinstance(t, Tensor) else (t, None)
        return plans(noted.of(lambda: noted.ntxent.fwd_bwd(*z, eps, *temperature, reduction, precision, need_dt)))

    first = at_once()
    kernels = [launch.kernel for launch in noted.launches]
    assert at_once(torch.ones(2, 24, 40), 0.2) == first
    others = [at_once(z[:, :23]), at_once(z[:, :, :39]), at_once(z.half()), at_once(WIDE[:, :, :40])]
    others += [at_once(z, 0.01), at_once(z, torch.tensor(0.1)), at_once(z, torch.tensor(0.1).double())]
    others += [at_once(z, 0.1, "sum"), at_once(z, 0.1, "mean", "tf32"), at_once(z, 0.1, "mean", "ieee", True)]
    others += [at_once(z, 0.1, "mean", "ieee", False, 1e-6)]
    assert len({plan for each in others for plan in each} | {*first}) == 6 * (1 + len(others))
    assert kernels == [launch.kernel for launch in noted.steps()]


def test_similarities_share_plans_likewise() -> None:
    noted = Noted()
    z, y, numbers = torch.zeros(24, 40), torch.zeros(16, 40), torch.zeros(24)

    def steps(
        rows: Tensor = z,
        columns: Tensor = y,
        exclude: str = "none",
        offset: int = 0,
        both: bool = False,
        need_max: bool = False,
        t: float | Tensor = 0.1,
        precision: str = "ieee",
        need_dt: bool = False,
    ) -> list[object]:
        n, m = rows.shape[0], columns.shape[0]
        u = split_rows(rows)
        v = u if columns is rows else split_rows(columns)
        options = (*((0.0, t) if isinstance(t, Tensor) else (t, None)), precision)

        def call() -> None:
            noted.similarity.fwd(u, v, offset, exclude, both, need_max, *options)
            sides = (numbers[:n], numbers[:m])
            noted.similarity.bwd(*sides, rows, u, numbers[:n], v, *sides, offset, exclude, EPS, *options, need_dt)

        return plans(noted.of(call))

    first = steps()
    assert steps(t=0.2) == steps(torch.ones(24, 40)) == first
    others = [
        {"rows": z[:22]},
        {"columns": y[:15]},
        {"columns": z},
        {"rows": z[:, :39], "columns": y[:, :39]},
        {"exclude": "self"},
        {"exclude": "self", "offset": 2},
        {"exclude": "pair"},
        {"t": 0.01},
        {"precision": "tf32"},
    ]
    assert len({plan for options in others for plan in steps(**options)} | {*first}) == 5 * (1 + len(others))
    for t in (0.1, 0.01, torch.tensor(0.1)):  # of the last two, rows have maxima whether or not they are asked for
        without, of_rows = steps(t=t), steps(t=t, need_max=True)
        assert not {*without[:2]} & {*of_rows[:2]}
        assert without[2:] == of_rows[2:]
    assert len(steps(both=True)) == 6
    assert first[2:] != steps(need_dt=True)[2:]


def test_rows_that_are_the_columns_are_not_planned_as_a_rectangle_of_that_size() -> None:
    noted, z = Noted(), torch.zeros(24, 40).half()
    symmetric = []
    for columns in (z, z.clone(), z):
        launches = noted.of(
            lambda columns=columns: noted.similarity.fwd(z, columns, 0, "none", True, False, 0.1, None, "ieee")
        )
        symmetric.append([launch.constants["SYMMETRIC"] for launch in launches])
    assert symmetric == [[True, True], [False, False, False], [True, True]]


def from_anywhere(x: Tensor) -> Tensor:
    """The same numbers, from an address that 16 does not divide."""
    moved = x.new_empty(x.numel() + 1)[1:].view(x.shape)
    assert moved.data_ptr() % 16 != 0
    return moved.copy_(x)


def test_tensors_from_anywhere_reach_kernels_where_they_want_them() -> None:
    """Of what Triton specialises on, all starts at a multiple of 16 bytes, so that nothing is compiled anew."""
    noted = Noted()
    z0, z1, z = (from_anywhere(torch.zeros(rows, 40)) for rows in (24, 24, 48))
    u, v = (from_anywhere(torch.zeros(rows, 2, 40).half()) for rows in (48, 24))
    vector, scalar, column = from_anywhere(torch.zeros(48)), from_anywhere(torch.zeros(1))[0], torch.zeros(48, 3)[:, 1]
    calls = [
        lambda: noted.ntxent.normalize(z0, z1, EPS),
        lambda: noted.ntxent.fwd(u, 24, 0, 0.0, scalar, "mean", "ieee"),
        lambda: noted.ntxent.fwd_bwd(z0, z1, EPS, 0.0, scalar, "mean", "ieee", True),
        lambda: noted.similarity.fwd(u, v, 0, "none", True, True, 0.0, scalar, "ieee"),
    ]
    for statistics in (vector, column):
        saved = (z0, z1, u, *3 * [statistics])
        calls += [
            lambda saved=saved: noted.ntxent.bwd(scalar, *saved, 0, "mean", EPS, 0.0, scalar, "ieee", True),
            lambda s=statistics: noted.similarity.bwd(
                s, s[:24], z, u, s.contiguous(), v, s, s[:24], 0, "self", EPS, 0.0, scalar, "ieee", True
            ),
        ]
    for launch in [launch for call in calls for launch in noted.of(call)]:
        for parameter in launch.kernel.params:
            value = launch.arguments.get(parameter.name)
            if isinstance(value, Tensor):
                assert value.is_contiguous() or parameter.name.startswith("z")
                assert value.data_ptr() % 16 == 0 or parameter.do_not_specialize_on_alignment, parameter.name


def test_another_choice_of_tiles_is_not_served_by_an_old_plan() -> None:
    shape, target = tune.Shape(64, 32, torch.float16, "ieee", "fp16"), Target(90, 132)
    launches: list[Launch] = []

    def backend() -> TritonNtxent:
        return TritonNtxent(launches.append, lambda device: target)

    of_table = backend()
    for way, kernel in tune.TILE_KERNELS.items():
        call = tune.calls(of_table, shape, torch.device("cpu"))[way]
        for tiles in (Tiles(64, 64, 32, 4, 2), Tiles(32, 32, 32, 2, 3)):
            launches.clear()
            candidate = backend()
            tune.with_tiles(way, tiles, lambda call=call, candidate=candidate: call(candidate))
            (launch,) = [launch for launch in launches if launch.kernel.__name__ == kernel]
            assert launch.constants["BLOCK_M"] == tiles.block_m
            assert launch.how == {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
        launches.clear()
        call(of_table)
        table = tune.tiles_of_table(way, shape, target)
        (launch,) = [launch for launch in launches if launch.kernel.__name__ == kernel]
        assert launch.constants["BLOCK_M"] == table.block_m
