"""Hopper's kernels of the loss in ptxlab: their programs, with a source changed on request, and the problems they run.

proof/generated/test_sm90.py runs the problems; proof/generated/mutants_sm90.py has changes that they must notice.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from proof.generated.ptx import ROOT, Program
from proof.kept import digest, kept
from proof.simt.similarity_cases import Case as SimilarityCase
from proof.simt.similarity_cases import Problem
from tests.helpers import relative_error
from tests.ntxent_launchers import Device, NtxentLaunchers, statistics_dtype
from tests.ntxent_truth import embeddings, shards_of, truth
from tests.similarity_launchers import SimilarityLaunchers

ARCH = "90a"
SOURCES = ("csrc/cuda/similarity.cu", *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("csrc/cuda/ntxent_*.cu"))))
EPS = 1e-8
HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32


def hopper(multiprocessors: int) -> Device:
    """A device with so many multiprocessors of Hopper; few of them give each more of a small problem's tiles."""
    return Device(multiprocessors, 227 * 1024, 90)


Change = tuple[str, str, str]  # file in csrc/cuda, old, new


def _changed(changes: tuple[Change, ...]) -> Path:
    """The folder of a copy of csrc, kept under build/sm90, with text replaced, each found exactly once."""
    texts: dict[str, str] = {}
    for file, old, new in changes:
        text = texts.get(file) or (ROOT / "csrc/cuda" / file).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{file} has {old!r} {text.count(old)} times, not once")
        texts[file] = text.replace(old, new)

    def make(made: Path) -> None:
        shutil.copytree(ROOT / "csrc", made / "csrc")
        for file, text in texts.items():
            (made / "csrc/cuda" / file).write_text(text)

    everything = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.glob("csrc/**/*.*"))}
    return kept(ROOT / "build/sm90" / digest(changes, everything), make)


@cache
def program() -> Program:
    """The kernels and launchers as they are."""
    return Program([ROOT / source for source in SOURCES], ARCH)


def planned_otherwise(changes: tuple[Change, ...], *files: str) -> Program:
    """The same with files of csrc/cuda, launchers and kernels, compiled from text with changes."""
    changed, sources = _changed(changes), {f"csrc/cuda/{file}" for file in files}
    return Program([(changed if source in sources else ROOT) / source for source in SOURCES], ARCH)


def mutant(changes: tuple[Change, ...], file: str) -> Program:
    """The same with the kernels alone of a file of csrc/cuda compiled from text with changes."""
    return program().with_kernels(ROOT / "csrc/cuda" / file, _changed(changes) / "csrc/cuda" / file)


@dataclass(frozen=True)
class Step:
    """A step of the loss with n pairs a process of `world`, in process `rank`."""

    n: int
    d: int
    dtype: torch.dtype = HALF
    precision: str = "ieee"
    temperature: float = 0.1
    on_device: bool = False
    multiprocessors: int = 2
    world: int = 1
    rank: int = 0
    kind: str = "random"

    def __str__(self) -> str:
        marks = [name for name, value in vars(self).items() if value is True]
        marks += [f"rank{self.rank}of{self.world}"] * (self.world > 1) + [self.kind] * (self.kind != "random")
        dtype = str(self.dtype).removeprefix("torch.") + "-tf32" * (self.precision == "tf32")
        return "-".join([f"{2 * self.n}x{self.d}", dtype, f"t{self.temperature}", f"sm{self.multiprocessors}", *marks])


@dataclass(frozen=True)
class Case(Step):
    """Forward and backward of a step; `only_fwd` leaves the backward out."""

    only_fwd: bool = False

    def errors(self, program: Program, reports: list, **options: object) -> dict[str, float]:
        """Each result's error over its tolerance: at most 1 is right. `reports` gets those of the launches."""
        ops = NtxentLaunchers(program, hopper(self.multiprocessors))
        views = embeddings(self.kind, self.n * self.world, self.d, self.dtype)
        shards = shards_of(views, self.world)
        z0, z1 = shards[self.rank]
        statistics = statistics_dtype(self.dtype)
        weights = torch.randn(2 * self.n * self.world, dtype=statistics)
        t = torch.tensor(self.temperature, dtype=statistics) if self.on_device else self.temperature
        first = 2 * self.n * self.rank
        own = slice(first, first + 2 * self.n)
        with program.simulated(lambda: ops.tensors, **options) as made:
            every = [ops.normalize(*shard, EPS) for shard in shards]
            u, inv_norm = torch.cat([u for u, _ in every]), every[self.rank][1]
            numbers = {"temperature": t, "precision": self.precision}
            loss, lse_neg, s_pos = ops.fwd(u, self.n, first, reduce=False, **numbers)
            want = truth(shards, self.rank, self.temperature, weights, EPS)
            dz = []
            if not self.only_fwd:
                all_lse, all_pos = want.lse_neg.to(statistics), want.s_pos.to(statistics)
                all_lse[own], all_pos[own] = lse_neg, s_pos
                dz = ops.bwd(weights, z0, z1, u, inv_norm, all_lse, all_pos, first, eps=EPS, **numbers)
        reports += made
        rounds = self.dtype != FLOAT or self.precision == "tf32"
        of_logits = 2e-6 + (1e-3 if rounds else 3e-7) / self.temperature
        errors = {
            name: (got.double() - true).abs().nan_to_num(torch.inf).max().item() / of_logits
            for name, got, true in (
                ("loss", loss, want.losses),
                ("lse_neg", lse_neg.double().clamp_min(-1e30), want.lse_neg[own].clamp_min(-1e30)),
                ("s_pos", s_pos, want.s_pos[own]),
            )
        }
        if dz:
            of_gradient = 8e-3 if self.dtype == BFLOAT else 6e-3 if rounds else 1e-5
            errors["dz0"] = relative_error(dz[0], want.dz0.to(self.dtype)) / of_gradient
            errors["dz1"] = relative_error(dz[1], want.dz1.to(self.dtype)) / of_gradient
            scale = (weights[own].double().abs() * want.losses.exp().sub(1).clamp(max=1)).sum() / self.temperature**2
            errors["dt"] = ((dz[2] - want.dt).abs() / (of_gradient * scale).clamp_min(1e-30)).item()
        return errors


def similarity_errors(case: SimilarityCase, program: Program, reports: list, **options: object) -> dict[str, float]:
    """As Case.errors, of the primitive, on one device of Hopper."""
    problem = Problem.of(replace(case, device=hopper(case.device.multiprocessors)))
    ops = SimilarityLaunchers(program, problem.case.device)
    with program.simulated(lambda: ops.tensors, **options) as made:
        got = problem.run(ops)
    reports += made
    return problem.errors(got)


Errors = Callable[..., dict[str, float]]


def worst(
    errors: Errors, program: Program, seed: int, timing: str, approx: str = "accurate"
) -> tuple[dict[str, float], list]:
    """The errors of one run, and the reports of its launches; the seed also makes the problem's data."""
    torch.manual_seed(seed)
    reports: list = []
    found = errors(program, reports, seed=seed, cp_async=timing, approx=approx, threads=2)
    return found, reports
