"""The CUDA launches whose generated code is executed: each runs its launchers and returns how wrong they were."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from proof.generated.ptx import ROOT, Program
from proof.simt import augment as simt_augment
from proof.simt.similarity_cases import Case, Problem
from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.ops.augment import ImageBatch
from simclr_fast.ops.augment.reference import augment_reference
from tests.helpers import relative_error
from tests.ntxent_launchers import Device, NtxentLaunchers, statistics_dtype
from tests.ntxent_truth import mean_truth, truth
from tests.similarity_launchers import SimilarityLaunchers

SOURCES = (
    *sorted((ROOT / "csrc/cuda").glob("*.cu")),
    *sorted((ROOT / "proof/simt/kernels").glob("*_entry.cpp")),
)
# An H100 whose kernels are those of every architecture, of which proof.generated.ptx makes compute_80.
H100 = Device(132, 227 * 1024, 80)
EPS = 1e-8


@dataclass(frozen=True)
class Result:
    """The reports of the launches, and each result's error over its tolerance: at most 1 is right."""

    reports: list
    errors: dict[str, float]


@dataclass(frozen=True)
class Workload:
    """run(program, launch options of ptxlab) -> Result. `counted`: large enough for its ratios to mean something."""

    name: str
    run: Callable[..., Result]
    counted: bool = False

    def __str__(self) -> str:
        return self.name


def ntxent(
    n: int,
    d: int,
    dtype: torch.dtype,
    precision: str = "ieee",
    temperature: float = 0.1,
    on_device: bool = False,
    check: bool = True,
    device: Device = H100,
) -> Callable[..., Result]:
    """One step of the loss with M = 2n rows; with `on_device` the temperature is a tensor and one per row is dloss."""

    def run(program: Program, **options: object) -> Result:
        ops = NtxentLaunchers(program, device)
        z0, z1 = torch.randn(2, n, d, dtype=torch.float64).to(dtype).unbind()
        statistics = statistics_dtype(dtype)
        dloss = torch.randn(2 * n, dtype=statistics) if on_device else torch.tensor(0.5, dtype=statistics)
        t = torch.tensor(temperature, dtype=statistics) if on_device else temperature
        with program.simulated(lambda: ops.tensors, **options) as reports:
            u, inv_norm = ops.normalize(z0, z1, EPS)
            loss, lse_neg, s_pos = ops.fwd(u, n, 0, t, reduce=not on_device, precision=precision)
            dz0, dz1, dt = ops.bwd(
                dloss, z0, z1, u, inv_norm, lse_neg, s_pos, eps=EPS, temperature=t, precision=precision
            )
        if not check:
            return Result(reports, {})
        want = truth([(z0, z1)], 0, temperature, dloss.expand(2 * n), EPS)
        half = dtype in (torch.float16, torch.bfloat16) or precision == "tf32"
        tolerance = 1e-11 if dtype == torch.float64 else 6e-3 if half else 1e-5
        losses = want.losses if on_device else want.losses.sum()
        return Result(
            reports,
            {
                "loss": relative_error(loss, losses) / tolerance,
                "dz0": relative_error(dz0, want.dz0.to(dtype)) / tolerance,
                "dz1": relative_error(dz1, want.dz1.to(dtype)) / tolerance,
                "dt": (dt - want.dt).abs().item() / (tolerance * dloss.abs().sum().item() / temperature**2),
            },
        )

    return run


def ntxent_fwd_bwd(
    n: int, d: int, dtype: torch.dtype, precision: str = "ieee", temperature: float = 0.1, on_device: bool = False
) -> Callable[..., Result]:
    """Loss and gradient of the mean at once; with `on_device` the temperature is a tensor."""

    def run(program: Program, **options: object) -> Result:
        ops = NtxentLaunchers(program, H100)
        z0, z1 = torch.randn(2, n, d, dtype=torch.float64).to(dtype).unbind()
        t = torch.tensor(temperature) if on_device else temperature
        with program.simulated(lambda: ops.tensors, **options) as reports:
            loss, dz, dt = ops.fwd_bwd(z0, z1, 1 / (2 * n), EPS, t, precision)
        loss_true, dz_true, dt_true = mean_truth(z0, z1, temperature)
        tolerance = 1e-5 if dtype == torch.float32 and precision == "ieee" else 6e-3
        errors = {
            "loss": relative_error(loss, loss_true) / tolerance,
            "dz": relative_error(dz.flatten(0, 1), dz_true) / tolerance,
            "dt": (dt - dt_true).abs().item() / (tolerance / temperature**2),
        }
        return Result(reports, errors)

    return run


def similarity(case: Case) -> Callable[..., Result]:
    """Both directions of the primitive, for rows and columns."""

    def run(program: Program, **options: object) -> Result:
        problem, ops = Problem.of(case), SimilarityLaunchers(program, H100)
        with program.simulated(lambda: ops.tensors, **options) as reports:
            got = problem.run(ops)
        return Result(reports, problem.errors(got))

    return run


def augment(
    batch: int, source: int, size: int, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> Callable[..., Result]:
    """Both views of a batch of uint8 images, source x source -> size x size."""

    def run(program: Program, **options: object) -> Result:
        images = torch.randint(0, 256, (batch, 3, source, source), dtype=torch.uint8)
        kernel = size // 10 | 1
        aug = SimCLRAugment(size, solarize_p=0.2, blur_kernel=kernel, backend="reference")
        packed = aug.sample(images).pack()
        out = simt_augment.unwritten_views((2 * batch, 3, size, size), dtype, channels_last)
        args = simt_augment.augment_args(ImageBatch.of(images), packed, out, kernel)
        scratch = torch.empty(program.value("augment_scratch_doubles", ctypes.byref(args)), dtype=torch.float64)
        with program.simulated(lambda: [images, packed, out, scratch], **options) as reports:
            program.call("augment", ctypes.byref(args), scratch)
        view = ImageBatch.of(images)
        want = augment_reference(
            *(view.data, view.table, packed, 3, size, size, [0.0] * 3, [1.0] * 3, kernel, torch.float32, False)
        )
        tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        unwritten: Tensor = out.isnan().any()
        error = float("inf") if unwritten else (out.float() - want).abs().max().item()
        return Result(reports, {"views": error / tolerance})

    return run


HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
WORKLOADS = (
    Workload("ntxent fp16, 66 x 123", ntxent(33, 123, HALF)),
    Workload("ntxent bf16, 40 x 300, t on the device", ntxent(20, 300, BFLOAT, on_device=True)),
    Workload("ntxent fp32, 66 x 70", ntxent(33, 70, FLOAT)),
    Workload("ntxent fp32, 34 x 600, t = 0.01", ntxent(17, 600, FLOAT, temperature=0.01)),
    Workload("ntxent tf32, 66 x 200, t on the device", ntxent(33, 200, FLOAT, "tf32", on_device=True)),
    Workload("ntxent fp64, 18 x 33", ntxent(9, 33, DOUBLE)),
    Workload("ntxent fp16, 12 x 1100", ntxent(6, 1100, HALF)),
    Workload("ntxent fp16 at once, 66 x 123", ntxent_fwd_bwd(33, 123, HALF)),
    Workload("ntxent bf16 at once, 40 x 64, t on the device", ntxent_fwd_bwd(20, 64, BFLOAT, on_device=True)),
    Workload("ntxent fp32 at once, 66 x 70, t = 0.01", ntxent_fwd_bwd(33, 70, FLOAT, temperature=0.01)),
    Workload("ntxent tf32 at once, 140 x 20", ntxent_fwd_bwd(70, 20, FLOAT, "tf32")),
    Workload("ntxent fp16 at once, 18 x 200", ntxent_fwd_bwd(9, 200, HALF)),
    Workload("similarity fp16, 66 x 50 x 123", similarity(Case(66, 50, 123, HALF, "self", both=True))),
    Workload("similarity bf16, 40 x 40 x 90, pairs", similarity(Case(40, None, 90, BFLOAT, "pair", need_max=True))),
    Workload("similarity fp32, 34 x 70 x 40", similarity(Case(34, 70, 40, FLOAT, both=True))),
    Workload(
        "similarity tf32, 66 x 40 x 140, t on the device",
        similarity(Case(66, 40, 140, FLOAT, precision="tf32", both=True, on_device=True)),
    ),
    Workload("similarity fp64, 9 x 14 x 33", similarity(Case(9, 14, 33, DOUBLE, "self", both=True, need_max=True))),
    Workload("ntxent fp16, 1024 x 128", ntxent(512, 128, HALF), counted=True),
    Workload("ntxent fp16, 512 x 512", ntxent(256, 512, HALF), counted=True),
    Workload("ntxent fp32, 512 x 128", ntxent(256, 128, FLOAT), counted=True),
    Workload("ntxent tf32, 512 x 128", ntxent(256, 128, FLOAT, "tf32"), counted=True),
    Workload("ntxent fp16 at once, 512 x 128", ntxent_fwd_bwd(256, 128, HALF), counted=True),
    Workload("ntxent fp16 at once, 1024 x 128", ntxent_fwd_bwd(512, 128, HALF), counted=True),
    Workload("ntxent fp32 at once, 512 x 128", ntxent_fwd_bwd(256, 128, FLOAT), counted=True),
    Workload("similarity fp16, 512 x 512 x 128", similarity(Case(512, 512, 128, HALF, both=True)), counted=True),
    Workload("augment 8 x 32 -> 32", augment(8, 32, 32), counted=True),
    Workload("augment 2 x 120 -> 96", augment(2, 120, 96, HALF, channels_last=True)),
)
# The problem whose modelled time is bounded (test_ptxlab_cuda.py); too large to check against float64 here.
MODELLED = Workload("ntxent fp16, 8192 x 128", ntxent(4096, 128, HALF, temperature=0.5, check=False), counted=True)
