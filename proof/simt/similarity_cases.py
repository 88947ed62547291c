"""Problems of the primitive for its CUDA launchers on the CPU, their float64 truth, and how far results are from it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.ops import split_rows
from simclr_fast.ops.ntxent.reference import similarity_logits
from tests.ntxent_launchers import Device, operand_dtype, statistics_dtype
from tests.similarity_launchers import SimilarityLaunchers

HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
# The least shared memory among the architectures.
SMALL = Device(4, 99 * 1024)


def points(n: int, d: int, dtype: torch.dtype, kind: str = "random") -> Tensor:
    """[n, d]; "mixed": the first is zero, the second short, the last long."""
    z = torch.randn(n, d, dtype=DOUBLE)
    if kind == "mixed":
        z[-1] *= {HALF: 50, DOUBLE: 1e100}.get(dtype, 1e30)
        z[1 % n] *= 1e-2
        z[0] = 0
    return z.to(dtype)


def operand(z: Tensor, eps: float | None) -> tuple[Tensor, Tensor]:
    """u [n, D'] or [n, 2, D'] and inv_norm [n] as the prologue makes them; eps None: of rows as they are."""
    norms = z.double().norm(dim=1).clamp_min(eps) if eps else torch.ones(len(z), dtype=DOUBLE)
    dtype = operand_dtype(z.dtype)
    u = torch.nn.functional.pad(z.double() / norms[:, None], (0, -z.shape[1] % (2 if dtype == DOUBLE else 8)))
    u = split_rows(u) if dtype == FLOAT else u.to(dtype)
    return u, (1 / norms).to(statistics_dtype(z.dtype))


@dataclass(frozen=True)
class Case:
    """m None: the rows are the columns. upstream: the sides that have a gradient. eps None: without normalisation."""

    n: int
    m: int | None
    d: int
    dtype: torch.dtype
    exclude: str = "none"
    temperature: float = 0.1
    precision: str = "ieee"
    both: bool = False
    need_max: bool = False
    on_device: bool = False
    row_offset: int = 0
    upstream: str = "rows columns"
    kind: str = "random"
    eps: float | None = 1e-2
    device: Device = SMALL

    def __str__(self) -> str:
        marks = [name for name in ("both", "need_max", "on_device") if getattr(self, name)]
        marks += [f"offset{self.row_offset}"] * bool(self.row_offset) + [self.kind] * (self.kind != "random")
        marks += [self.upstream.replace(" ", "+") or "nothing"] * (self.upstream != "rows columns")
        marks += ["as it is"] * (self.eps is None)
        dtype = str(self.dtype).removeprefix("torch.") + "-tf32" * (self.precision == "tf32")
        return "-".join([f"{self.n}x{self.m}x{self.d}", dtype, self.exclude, f"t{self.temperature}", *marks])

    @property
    def lse_error(self) -> float:
        """Absolute: logits are products of rounded rows, divided by the temperature."""
        rounds = self.dtype in (HALF, BFLOAT) or self.precision == "tf32"
        return (
            1e-13 / self.temperature if self.dtype == DOUBLE else 2e-6 + (1e-3 if rounds else 3e-7) / self.temperature
        )

    @property
    def gradient_error(self) -> float:
        """Relative to the largest entry."""
        if self.precision == "tf32" or self.dtype == HALF:
            return 6e-3
        return {BFLOAT: 8e-3, FLOAT: 1e-5, DOUBLE: 1e-12}[self.dtype]


@dataclass(frozen=True)
class Problem:
    """The inputs of a case."""

    case: Case
    z: Tensor  # rows
    y: Tensor  # columns; z itself where they are the rows
    drows: Tensor
    dcolumns: Tensor

    @classmethod
    def of(cls, case: Case) -> "Problem":
        z = points(case.n, case.d, case.dtype, case.kind)
        y = z if case.m is None else points(case.m, case.d, case.dtype, case.kind)
        dtype = statistics_dtype(case.dtype)
        drows = torch.randn(case.n, dtype=dtype) * ("rows" in case.upstream)
        dcolumns = torch.randn(len(y), dtype=dtype) * ("columns" in case.upstream and case.both)
        return cls(case, z, y, drows, drows if case.m is None else dcolumns)

    @cached_property
    def truth(self) -> dict[str, Tensor]:
        """What both directions give, from autograd in float64; dt of the rows' and of the columns' log-sum-exps."""
        case = self.case

        def unit(z: Tensor) -> Tensor:
            return z / z.norm(dim=1, keepdim=True).clamp_min(case.eps) if case.eps else z

        z, y = (x.double().requires_grad_() for x in (self.z, self.y))
        t = torch.tensor(case.temperature, dtype=DOUBLE, requires_grad=True)
        y = z if case.m is None else y
        s = similarity_logits(unit(z), unit(y), t, case.row_offset, case.exclude)
        lse, column_lse = s.logsumexp(1), s.logsumexp(0)
        want = {"lse": lse, "max": s.max(dim=1).values, "column_lse": column_lse}
        losses, weights = [lse], [self.drows.double()]
        if case.m is not None:
            losses, weights = [lse, column_lse], [*weights, self.dcolumns.double()]
        of_rows = torch.autograd.grad(lse, t, weights[0], retain_graph=True)[0]
        want["dz"], want["dy"] = torch.autograd.grad(losses, (z, y), weights, retain_graph=True)
        # What dt's terms add up to without their signs.
        left_in = s.isfinite()
        sizes = torch.where(left_in, (s - lse[:, None]).exp() * s.abs(), 0).sum(1)
        want |= {"dt": of_rows, "size of dt": (weights[0].abs() * sizes).sum() / t}
        return {name: x.detach() for name, x in want.items()}

    def run(self, ops: SimilarityLaunchers) -> dict[str, Tensor]:
        """Both directions, and the backward of the columns where they are not the rows and it can be asked for."""
        case = self.case
        x, inv_norm = operand(self.z, case.eps)
        y, inv_norm_y = (x, inv_norm) if case.m is None else operand(self.y, case.eps)
        t = torch.tensor(case.temperature, dtype=self.drows.dtype) if case.on_device else case.temperature
        numbers = {"exclude": case.exclude, "temperature": t, "precision": case.precision}
        lse, largest, column_lse = ops.fwd(x, y, case.row_offset, both=case.both, need_max=case.need_max, **numbers)
        got = {"lse": lse, "max": largest, "column_lse": column_lse}
        other = lse if case.m is None else column_lse
        if other is None or not self.dcolumns.any():
            other = torch.full_like(self.dcolumns, torch.inf)
        if not self.drows.any():
            lse = torch.full_like(lse, torch.inf)
        numbers["eps"] = case.eps or 1.0
        got["dz"], got["dt"] = ops.bwd(
            self.drows, self.dcolumns, self.z, x, inv_norm, y, lse, other, case.row_offset, **numbers
        )
        if case.m is not None and case.row_offset == 0 and case.exclude != "pair":
            got["dy"], _ = ops.bwd(
                self.dcolumns, self.drows, self.y, y, inv_norm_y, x, other, lse, need_dt=False, **numbers
            )
        return {name: value for name, value in got.items() if value is not None}

    def errors(self, got: dict[str, Tensor]) -> dict[str, float]:
        """Each result's error over its tolerance: at most 1 is right."""
        case, want, errors = self.case, self.truth, {}
        for name in {"lse", "max", "column_lse"} & got.keys():
            nothing = want[name].isinf()
            right = torch.equal(got[name][nothing].double(), want[name][nothing])
            error = torch.cat([(got[name].double() - want[name])[~nothing].abs(), torch.zeros(1)])
            errors[name] = error.max().item() / case.lse_error if right else torch.inf
        for name, z, upstream in (("dz", self.z, self.drows), ("dy", self.y, self.dcolumns)):
            if name not in got:
                continue
            # Row by row in units of 1 / |z|. A gradient that is 0 may come out as rounding noise: of the small terms of
            # other rows, or where rows meet themselves of that largest term, which lies along the row and vanishes.
            least = 1.0 if case.m is None and case.exclude == "none" else 1e-3
            norms = z.double().norm(dim=1, keepdim=True).clamp_min(case.eps) if case.eps else 1.0
            true, made = want[name] * norms, got[name].double() * norms
            size = max(true.abs().max().item(), least * upstream.abs().max().item() / case.temperature, 1e-30)
            errors[name] = (made - true).abs().max().item() / (case.gradient_error * size)
        if "dt" in got:
            size = want["size of dt"].clamp_min(1e-30)
            errors["dt"] = ((got["dt"] - want["dt"]).abs() / (case.gradient_error * size)).item()
        return errors

    def check(self, got: dict[str, Tensor]) -> None:
        """Asserts that every result is within its tolerance of the truth."""
        wrong = {name: error for name, error in self.errors(got).items() if not error <= 1}
        assert not wrong, f"error over tolerance: {wrong}"
