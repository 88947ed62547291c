"""A model of the loss's time on an H200, from ptxlab's counts, calibrated on what one measured (docs/gpu.md).

    time = c0 + sum over launches of (c1 + (sum over resources of (weight bound)^p)^(1/p))

A launch's bounds are the times that it would take if one resource were all: tensor cores, issue slots, exponentials
(MUFU), shared memory, L2, device memory; a weight of 2 says that the kernels reach half of the resource. p says how
well the resources' times overlap: 1 not at all, infinity fully; it is one for each direction and kind of product.
Kernels that were never timed are judged by the error of cases that the fit does not see (HELD_OUT).
python -m proof.generated.model     writes docs/tables/model.md
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
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
# The fit to all other cases than those left out.
HELD_OUT = {
    "D = 512": Constants(4.195, 3.282, 2.526, 1.547, 2.287, 7.353, 1.481, 0.9, 1.298, 0.509, 1.0, 1.6),
    "ieee": Constants(4.266, 3.298, 3.802, 1.408, 4.241, 8.0, 1.722, 0.9, 1.594, 0.45, 1.0, 1.0),
}
# What costs as much as a launch, beside the launch itself: two barriers of the grid.
BESIDE = {"ntxent_resident_kernel": 2}


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


def is_left_out(case: Measured, left_out: str) -> bool:
    """Whether a fit of HELD_OUT does without the case."""
    return case.d == 512 if left_out == "D = 512" else case.operands == left_out


def held_out_residuals(left_out: str, constants: Constants | None = None) -> np.ndarray:
    """ln(modelled / measured) of Triton's forward + backward where the fit, HELD_OUT's or another, did not see it."""
    cases = [case for case in measured() if (case.backend, case.part) == ("triton", "both")]
    return residuals([case for case in cases if is_left_out(case, left_out)], constants or HELD_OUT[left_out])


def held_out_error() -> float:
    """The larger root mean square of the held-out residuals."""
    return max(float(np.sqrt((held_out_residuals(left_out) ** 2).mean())) for left_out in HELD_OUT)


def edge(name: str, value: float) -> str:
    """Which edge of its range a constant lies on, if any."""
    _, least, most = RANGES[name]
    return "**at the least**" if value <= least + 5e-4 else "**at the most**" if value >= most - 5e-4 else ""


def timed_figures() -> int:
    """How many figures of the two backends gpu_check.json has: forward, backward and both of each case."""
    timed = committed_table("gpu_check")["bench"]["ntxent"].values()
    return sum(3 * (backend in case["contestants"]) for case in timed for backend in ("cpp", "triton"))


def _percent(residual: float) -> str:
    return f"{100 * (math.exp(residual) - 1):+.0f}%"


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
        "| constant | meaning | value | range | |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {meaning} | {value:.3g} | {least} to {most} | {edge(name, value)} |"
            for (name, (meaning, least, most)), value in zip(RANGES.items(), astuple(FITTED))
        ),
        "",
        "Fitted by least squares of the logarithms (soft L1), each constant within what is physically sensible. One at",
        "an edge of its range is the range's choice, not the measurements', which would have it beyond.",
        "",
        f"The fit has {len(cases)} of the {timed_figures()} times of the two backends. Left out, because not",
        "counted, are bf16, N = 32768 at D = 512 or in float32, and N = 16384 in ieee. The model is off by",
        f"{100 * np.sqrt((errors**2).mean()):.0f}% (root mean square), by {_percent(errors.min())} to "
        f"{_percent(errors.max())}:",
        "",
        "| code | forward | backward | both |",
        "|---|---|---|---|",
    ]
    for backend, called in (("cpp", "C++, mma.sync"), ("triton", "Triton, wgmma")):
        cells = (f"{100 * family_error(cases, backend, part):.0f}%" for part in ("forward", "backward", "both"))
        lines.append(f"| {called} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "These errors are of cases that the constants were fitted to. Fitted without some (`HELD_OUT`), the model is",
        "off by this much in Triton's forward + backward of those:",
        "",
        "| left out of the fit | cases | root mean square | from | to |",
        "|---|---|---|---|---|",
    ]
    for left_out in HELD_OUT:
        own = held_out_residuals(left_out)
        lines.append(
            f"| {left_out} | {len(own)} | {100 * np.sqrt((own**2).mean()):.0f}% "
            f"| {_percent(own.min())} | {_percent(own.max())} |"
        )
    lines += ["", "Kernels that were never timed may be off by as much, or more.", ""]
    lines += [*bars_markdown(pass_us, held_out_error()), ""]
    lines += ["## Every case of the fit", "", "| case | code | part | measured, us | modelled, us | off by |"]
    lines += ["|---|---|---|---|---|---|"]
    for case, error in zip(cases, errors):
        lines.append(
            f"| N={case.n} D={case.d} {case.operands} | {case.backend} | {case.part} | {case.us:.1f} "
            f"| {case.modelled():.1f} | {_percent(error)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
