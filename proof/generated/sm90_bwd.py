"""Hopper's backward of the loss and of the primitive in ptxlab: problems, and mistakes that they must notice.

A problem of the loss gives the launcher what float64 makes of the statistics: only normalise and backward are executed.
"""

from dataclasses import dataclass

import torch

from proof.generated.mutants_sm90 import Mutant
from proof.generated.ptx import Program
from proof.generated.sm90 import BFLOAT, EPS, FLOAT, Change, Step, hopper
from tests.helpers import relative_error
from tests.ntxent_launchers import NtxentLaunchers
from tests.ntxent_truth import embeddings, shards_of, truth

KERNEL = "ntxent_bwd_sm90_kernel"
_WALK, _TILES = "ntxent_bwd_sm90.cu", "ntxent_bwd_sm90_tiles.cuh"
# The kernel of one shape alone, D in (64, 128] of one product, with the constant maximum: it compiles in seconds.
_ONE_LAUNCH = "  return run<Sm90Shape<2, 1>>(problem, plan, stream);\n}\n#if 0\n{\n"
ONE_SHAPE: tuple[Change, ...] = (
    (_WALK, "  const int panels", _ONE_LAUNCH + "  const int panels"),
    (_WALK, "}  // namespace simclr::cuda\n", "#endif\n}\n"),
    (_WALK, "ntxent_bwd_sm90_kernel<Shape, true>", "ntxent_bwd_sm90_kernel<Shape, false>"),
)


@dataclass(frozen=True)
class Case(Step):
    """The backward of a step; `reduce`: a scalar loss, no dt."""

    reduce: bool = False

    def errors(self, kernels: Program, reports: list, **options: object) -> dict[str, float]:
        """Each result's error over its tolerance: at most 1 is right. `reports` gets those of the launches."""
        ops = NtxentLaunchers(kernels, hopper(self.multiprocessors))
        shards = shards_of(embeddings(self.kind, self.n * self.world, self.d, self.dtype), self.world)
        rows = 2 * self.n * self.world
        weights = torch.tensor(0.7) if self.reduce else torch.randn(rows)
        want = truth(shards, self.rank, self.temperature, weights.expand(rows), EPS)
        t = torch.tensor(self.temperature) if self.on_device else self.temperature
        with kernels.simulated(lambda: ops.tensors, **options) as made:
            every = [ops.normalize(*shard, EPS) for shard in shards]
            dz0, dz1, dt = ops.bwd(
                *(weights, *shards[self.rank], torch.cat([u for u, _ in every]), every[self.rank][1]),
                *(want.lse_neg.float(), want.s_pos.float(), 2 * self.n * self.rank),
                **{"eps": EPS, "temperature": t, "precision": self.precision, "need_dt": not self.reduce},
            )
        reports += made
        exact = self.dtype == FLOAT and self.precision == "ieee"
        tolerance = 1e-5 if exact else 8e-3 if self.dtype == BFLOAT else 6e-3
        errors = {
            "dz0": relative_error(dz0, want.dz0.to(self.dtype)) / tolerance,
            "dz1": relative_error(dz1, want.dz1.to(self.dtype)) / tolerance,
        }
        if dt is not None:
            scale = tolerance * weights.abs().sum() / self.temperature**2
            errors["dt"] = ((dt - want.dt).abs() / scale).item()
        return errors


def _bwd(name: str, file: str, old: str, new: str) -> Mutant:
    case = Case(280, 72, multiprocessors=1)  # five tiles a CTA, one more than stages
    return Mutant(name, _WALK, ((file, old, new), *ONE_SHAPE), case)


MUTANTS = (
    _bwd("no fence between a tile's copies and its products", _TILES, "        wgmma::fence_proxy_async();\n", ""),
    _bwd("a tile is announced before it has landed", _TILES, "wait_group<kUnderWay - 1>", "wait_group<kUnderWay>"),
    _bwd(
        "a stage is filled while it is multiplied",
        _TILES,
        "        mbarrier::wait(shared_.empty + filled.stage, filled.phase ^ 1);\n",
        "",
    ),
    _bwd(
        "copies without the swizzle",
        _TILES,
        "chunk_offset(r, chunk % 8, kSm90PanelRowBytes)",
        "r * kSm90PanelRowBytes + chunk % 8 * 16",
    ),
    _bwd("the wait for a tile is one phase off", _WALK, "next.stage, next.phase)", "next.stage, next.phase ^ 1)"),
    _bwd("S is read before it is there", _WALK, "    wgmma::wait<1>();\n", ""),
    _bwd("a stage is given back while du is made of it", _WALK, "    wgmma::wait<0>();\n    acc", "    acc"),
    _bwd("nothing is masked", _WALK, "if (task.pairing.needs_mask(", "if (row < 0 && task.pairing.needs_mask("),
)
