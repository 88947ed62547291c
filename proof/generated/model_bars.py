"""The bars of speed that the loss's kernels are to reach on Hopper, judged by the calibrated model (model.py).

python -m proof.generated.model_bars     prints them, from the committed counts
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proof.generated.triton_code import committed_table

RATE = 800e12  # FLOP/s, what the largest of matrix products reach
PassTime = Callable[[list[dict[str, Any]], bool | None], float]


@dataclass(frozen=True)
class Bar:
    """Forward and backward of 2 x n views in at most `factor` times the time of 2.5 M^2 D multiply-adds at RATE."""

    n: int
    d: int
    factor: float

    @property
    def us(self) -> float:
        return self.factor * 2 * 2.5 * (2 * self.n) ** 2 * self.d / RATE * 1e6


BARS = (Bar(4096, 128, 1.7), Bar(32768, 128, 1.35), Bar(4096, 512, 1.6))
IEEE_OVER_FP16 = 3.5  # at n = 4096, D = 128
SMALL_US = 12.0  # loss and gradient at once, n = 256, D = 128, fp16, in a CUDA graph


def modelled(time_of: PassTime) -> dict[tuple[str, int, int, str, bool], float]:
    """Microseconds by (backend, n, D, operands, whether at once) of every committed count."""
    times = {}
    for case in committed_table("model_counts")["cases"]:
        launches = case["launches"]
        time = time_of(launches, True if case["backend"] == "triton" else None)
        times[case["backend"], case["n"], case["d"], case["operands"], case["at once"]] = time
    return times


def alone(time_of: PassTime) -> PassTime:
    """The same of launches that did nothing but start and multiply: what no kernel of so many launches falls below."""
    nothing = dict.fromkeys(("instructions", "mufu", "wavefronts", "sectors", "unique"), 0)
    return lambda launches, wgmma: time_of([row | nothing for row in launches], wgmma)


def verdict(time: float, bar: float, error: float) -> str:
    """Whether a modelled time is within a bar, and whether by more than the model's error."""
    if time <= bar:
        return "holds" if time * (1 + error) <= bar else "holds, by less than the error"
    return "missed" if time * (1 - error) > bar else "missed, by less than the error"


def bars_markdown(time_of: PassTime, error: float) -> list[str]:
    """Lines of the table of the bars; error: what a modelled time of kernels that were never timed may be off by."""
    times, least = modelled(time_of), modelled(alone(time_of))
    lines = [
        "## The bars, by the model",
        "",
        "What stands now, counted in [model_counts.json](model_counts.json): modelled, not measured. The error of",
        f"the verdicts is that of cases which a fit did not see, {100 * error:.0f}%; resources are taken to overlap as",
        "in Triton's code that was measured. Limit: 2.5 M^2 D multiply-adds at 800 TFLOP/s. At least: what these",
        "launches' starts and products take alone, all else being free. Whether wgmma really takes 1.6 times as long",
        "as at its peak, where the fit's range ends, decides these bars; only a GPU can say it.",
        "",
        "| M, D, operands | backend | modelled, us | at least, us | bar, us | over the limit | bar | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for bar in BARS:
        for backend in ("cpp", "triton"):
            case = (backend, bar.n, bar.d, "fp16", False)
            time = times[case]
            lines.append(
                f"| {2 * bar.n}, {bar.d}, fp16 | {backend} | {time:.1f} | {least[case]:.1f} | {bar.us:.1f} "
                f"| {time * bar.factor / bar.us:.2f} | {bar.factor} | {verdict(time, bar.us, error)} |"
            )
    lines += ["", "| M, D | backend | fp16, us | ieee, us | ratio | bar | verdict |", "|---|---|---|---|---|---|---|"]
    for backend in ("cpp", "triton"):
        half, full = (times[backend, 4096, 128, operands, False] for operands in ("fp16", "ieee"))
        lines.append(
            f"| 8192, 128 | {backend} | {half:.1f} | {full:.1f} | {full / half:.2f} | {IEEE_OVER_FP16} "
            f"| {verdict(full / half, IEEE_OVER_FP16, error)} |"
        )
    small = times["cpp", 256, 128, "fp16", True]
    lines += [
        "",
        f"M = 512, D = 128, fp16, loss and gradient at once: modelled {small:.1f} us, at least "
        f"{least['cpp', 256, 128, 'fp16', True]:.1f}, bar {SMALL_US:.0f} us: {verdict(small, SMALL_US, error)}.",
        "No kernel of that kind was measured: its two barriers are taken to cost a launch's c1 each.",
    ]
    return lines


def main() -> None:
    from proof.generated.model import held_out_error, pass_us

    print("\n".join(bars_markdown(pass_us, held_out_error())))


if __name__ == "__main__":
    main()
