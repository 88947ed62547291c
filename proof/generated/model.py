"""A model of the loss's time on an H200, from ptxlab's counts, calibrated on what one measured (docs/gpu.md).

    time = c0 + sum over launches of (c1 + (sum over resources of (weight bound)^p)^(1/p))

A launch's bounds are the times that it would take if one resource were all: tensor cores, issue slots, exponentials
(MUFU), shared memory, L2, device memory; a weight of 2 says that the kernels reach half of the resource. p says how
well the resources' times overlap: 1 not at all, infinity fully; it is one for each direction and kind of product.
python -m proof.generated.model     writes docs/tables/model.md
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from proof.generated.model_bars import bars_markdown
from proof.generated.triton_code import TABLES, committed_table

PAGE = TABLES / "model.md"
MULTIPROCESSORS, CLOCK = 132, 1.755e9
FP16_PEAK, MMA_SYNC = 989.4e12, 0.62  # FLOP/s of wgmma, and the part of it that mma.sync reaches at most
MUFU, L2, DEVICE_MEMORY = 16, 5.5e12, 4.8e12  # a clock and multiprocessor; bytes/s
RESOURCES = ("tensor cores", "issue", "exponentials", "shared memory", "L2", "device memory")


@dataclass(frozen=True)
class Constants:
    """Of the formula above; microseconds, weights, and exponents p. `fit` gives them; the page has their residuals."""

    c0: float = 0.0
    c1: float = 0.0
    forward_sync: float = 1.0
    backward_sync: float = 1.0
    forward_wgmma: float = 1.0
    backward_wgmma: float = 1.0
    issue: float = 1.0
    exponentials: float = 1.0
    shared_memory: float = 1.0
    l2: float = 1.0
    mma_sync: float = 1.0
    wgmma: float = 1.0


# Of each: its meaning, and the least and the most that is physically sensible. A weight below 1 is that of a bound
# that counts too much: PTX instructions of which ptxas merges some, sectors that L1 serves, a clock of up to 1.98 GHz.
RANGES = {
    "c0": ("once a pass, us", 0.5, 20),
    "c1": ("a launch in a CUDA graph, with its first reads, us", 0.5, 20),
    "forward_sync": ("p, forward, mma.sync", 1, 8),
    "backward_sync": ("p, backward, mma.sync", 1, 8),
    "forward_wgmma": ("p, forward, wgmma", 1, 8),
    "backward_wgmma": ("p, backward, wgmma", 1, 8),
    "issue": ("weight of issue slots", 0.6, 2),
    "exponentials": ("weight of exponentials", 0.9, 1.6),
    "shared_memory": ("weight of shared memory", 0.9, 2),
    "l2": ("weight of L2", 0.45, 1.4),
    "mma_sync": ("weight of the tensor cores, mma.sync (of 62% of the peak)", 1, 1.6),
    "wgmma": ("weight of the tensor cores, wgmma", 1, 1.6),
}
DEVICE_MEMORY_WEIGHT = 1.1  # a copy moved 4.2 of 4.8 TB/s
FITTED = Constants(
    c0=4.513,
    c1=3.366,
    forward_sync=2.339,
    backward_sync=1.271,
    forward_wgmma=2.626,
    backward_wgmma=2.937,
    issue=1.352,
    exponentials=0.9,
    shared_memory=1.338,
    l2=0.481,
    mma_sync=1.0,
    wgmma=1.6,
)
# What costs as much as a launch, beside the launch itself: two barriers of the grid, and the counters' memset before.
BESIDE = {"ntxent_resident_kernel": 3}


def bounds(row: dict[str, Any]) -> np.ndarray:
    """Microseconds of each of RESOURCES alone; those of a multiprocessor as the busiest one has them."""
    uneven = math.ceil(row["blocks"] / MULTIPROCESSORS) * MULTIPROCESSORS / row["blocks"]
    clocks = MULTIPROCESSORS * CLOCK / uneven
    seconds = (
        (row["mma.sync"] / MMA_SYNC + row["wgmma"]) / FP16_PEAK * uneven,
        row["instructions"] / (4 * clocks),
        row["mufu"] / (MUFU * clocks),
        row["wavefronts"] / clocks,
        row["sectors"] * 32 / L2,
        row["unique"] / DEVICE_MEMORY,
    )
    return 1e6 * np.array(seconds)


def launch_us(row: dict[str, Any], wgmma: bool, constants: Constants = FITTED) -> float:
    """Modelled microseconds of a launch; wgmma: it is one of a pass of Hopper's code."""
    k = constants
    tensor = k.wgmma if wgmma else k.mma_sync
    weights = np.array([tensor, k.issue, k.exponentials, k.shared_memory, k.l2, DEVICE_MEMORY_WEIGHT])
    backward = "bwd" in row["kernel"]
    p = (k.backward_wgmma if wgmma else k.backward_sync) if backward else k.forward_wgmma if wgmma else k.forward_sync
    starts = 1 + BESIDE.get(row["kernel"].split("<")[0], 0)
    return starts * k.c1 + float(((weights * bounds(row)) ** p).sum() ** (1 / p))


def pass_us(launches: list[dict[str, Any]], wgmma: bool | None = None, constants: Constants = FITTED) -> float:
    """Modelled microseconds of launches that follow each other in a CUDA graph.

    wgmma: whether all are Hopper's code; None: those without mma.sync are, if any multiplies by wgmma.
    """
    hopper = any(row["wgmma"] for row in launches)
    kinds = [hopper and not row["mma.sync"] if wgmma is None else wgmma for row in launches]
    return constants.c0 + sum(launch_us(row, kind, constants) for row, kind in zip(launches, kinds))


def best_us(launches: list[dict[str, Any]], wgmma: bool | None = None) -> float:
    """The same if the resources of every launch overlapped fully, at the weights that were fitted."""
    full = dict.fromkeys(("forward_sync", "backward_sync", "forward_wgmma", "backward_wgmma"), 64.0)
    return pass_us(launches, wgmma, replace(FITTED, **full))


@dataclass(frozen=True)
class Measured:
    """A part of a case as the H200 timed it ("forward", "backward", "both"), and its launches' counts."""

    backend: str
    n: int
    d: int
    operands: str
    part: str
    launches: list[dict[str, Any]]
    us: float

    def modelled(self, constants: Constants = FITTED) -> float:
        """At the calibration, Triton's code multiplied by wgmma, the compiled kernels by mma.sync."""
        return pass_us(self.launches, self.backend == "triton", constants)


def measured() -> list[Measured]:
    """Every timed part whose launches are counted."""
    timed = committed_table("gpu_check")["bench"]["ntxent"]
    cases = []
    for case in committed_table("model_calibration")["cases"]:
        n, d, operands, backend = case["n"], case["d"], case["operands"], case["backend"]
        contestants = timed[f"N={n} D={d} {operands}"]["contestants"]
        if backend in contestants:
            forward, backward = case["launches"][:3], case["launches"][3:]
            parts = {"forward": forward, "backward": backward, "both": forward + backward}
            cases += [
                Measured(backend, n, d, operands, part, launches, 1e3 * contestants[backend][f"{part} ms"])
                for part, launches in parts.items()
            ]
    return cases


def residuals(cases: list[Measured], constants: Constants = FITTED) -> np.ndarray:
    """ln(modelled / measured) of each."""
    return np.array([math.log(case.modelled(constants) / case.us) for case in cases])


def fit(cases: list[Measured]) -> Constants:
    """The constants within RANGES with the least sum of soft-L1 losses of the residuals, a tenth being the knee."""
    least, most = (np.array([RANGES[name][i] for name in RANGES]) for i in (1, 2))
    start = np.clip([2.0, 4.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.8, 1.1, 1.2], least + 1e-3, most - 1e-3)
    found = least_squares(
        lambda x: residuals(cases, Constants(*x)), start, bounds=(least, most), loss="soft_l1", f_scale=0.1
    )
    return Constants(*(round(float(x), 3) for x in found.x))


def family_error(cases: list[Measured], backend: str, part: str) -> float:
    """Root mean square of the residuals of a backend's part."""
    own = [case for case in cases if (case.backend, case.part) == (backend, part)]
    return float(np.sqrt((residuals(own) ** 2).mean()))


def page() -> str:
    """docs/tables/model.md."""
    table, cases = committed_table("model_calibration"), measured()
    errors = residuals(cases)
    lines = [
        "# A model of the loss's time on an H200",
        "",
        "Microseconds from ptxlab's counts, calibrated on what an H200 measured at commit 529d4ebe8917",
        f"([gpu_check.json](gpu_check.json)). The kernels' counts are those of commit {table['commit']}; between the",
        "two, kernels were rearranged, not changed in what they compute. Written by `python -m proof.generated.model`:",
        "",
        "    time = c0 + sum over launches of (c1 + (sum over resources of (weight bound)^p)^(1/p))",
        "",
        "A launch's bounds are the times that it would take if one resource were all: tensor cores, issue slots,",
        "exponentials, shared memory, L2, device memory. p says how well these times overlap: 1 not at all, infinity",
        "fully.",
        "",
        "| constant | meaning | value |",
        "|---|---|---|",
        *(f"| {name} | {RANGES[name][0]} | {value:.3g} |" for name, value in zip(RANGES, astuple(FITTED))),
        "",
        "Fitted by least squares of the logarithms (soft L1), each constant within what is physically sensible",
        f"(`RANGES`). Of {len(cases)} figures the model is off by {100 * np.sqrt((errors**2).mean()):.0f}% (root mean"
        f" square), by {100 * (math.exp(errors.min()) - 1):+.0f}% to {100 * (math.exp(errors.max()) - 1):+.0f}%.",
        "",
        "| code | forward | backward | both |",
        "|---|---|---|---|",
    ]
    for backend, called in (("cpp", "C++, mma.sync"), ("triton", "Triton, wgmma")):
        cells = (f"{100 * family_error(cases, backend, part):.0f}%" for part in ("forward", "backward", "both"))
        lines.append(f"| {called} | " + " | ".join(cells) + " |")
    lines += ["", *bars_markdown(pass_us, best_us, family_error(cases, "triton", "both")), ""]
    lines += ["## Every measured case", "", "| case | code | part | measured, us | modelled, us | off by |"]
    lines += ["|---|---|---|---|---|---|"]
    for case, error in zip(cases, errors):
        lines.append(
            f"| N={case.n} D={case.d} {case.operands} | {case.backend} | {case.part} | {case.us:.1f} "
            f"| {case.modelled():.1f} | {100 * (math.exp(error) - 1):+.0f}% |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
