"""What the project demands of itself on a CPU, and what a run measured of it: rows of the report, not assertions."""

from dataclasses import dataclass

MIB = 2**20
# Fused NT-Xent (cpp), float32, D = 128, t = 0.1, forward + backward.
LEAST_SPEEDUP = {256: 1.5, 2048: 2.4, 4096: 2.7}  # against plain PyTorch
MOST_OF_LIMIT = {4096: 1.35}  # 2 M^2 D multiply-adds at the rate of a large torch.mm in the same rounds
MOST_MIB = {4096: 32, 32768: 512}
# Host time of a step with a tiny batch: beyond its ops called one after the other, and as a share of plain PyTorch's.
MOST_HOST_US, MOST_HOST_SHARE = 80, 0.5
# Fused CLIP, SupCon and memory bank (cpp), logits of 4,096 x 4,096, D = 128, against plain PyTorch; and peak memory by
# (loss, rows and columns, D).
LEAST_LOSS_SPEEDUP = {"clip": 3, "sup_con": 3, "bank": 3}
MOST_LOSS_MIB = {("clip", 8192, 512): 96, ("sup_con", 16384, 128): 64}
# Both views of a batch, full recipe, uint8 to float32 channels-last: (batch, side, size), against whom, how many times.
LEAST_AUGMENT_SPEEDUP = {
    ((256, 32, 32), "torchvision"): 25,
    ((64, 256, 224), "torchvision"): 10,
    **{(shape, peer): 1 for shape in ((256, 32, 32), (64, 256, 224)) for peer in ("dali", "albumentations")},
}
# Images read per second by 2 threads from JPEG files of 500 x 375, and from what `pack` makes of them, against a
# DataLoader of 2 processes on the files.
LEAST_LOADING_SPEEDUP = {"simclr_fast": 1.8, "packed jpeg": 4, "packed raw": 30}
# A step from JPEG files: images per second against lightly, and loading + augmentation as a share of our CPU time. The
# first is out of reach for this model on a CPU: its arithmetic takes 24 times the CPU time of lightly's loading, so
# loading that cost nothing would bring 1.04x. A step must take a twentieth of it for 1.6x (docs/scale.md).
LEAST_FILES_SPEEDUP, MOST_BEFORE_MODEL = 1.6, 0.08


@dataclass(frozen=True)
class Target:
    """A demand and what was measured; `measured` is None where the run lacks the figure, for `reason`."""

    what: str
    demanded: float
    at_least: bool
    unit: str
    measured: float | None
    reason: str = ""

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.demanded if self.at_least else self.measured <= self.demanded


def full_seconds(figures: dict) -> float | None:
    """Median seconds of the whole job, None where the contestant was not timed."""
    return figures["seconds"]["full"]["median"] if "seconds" in figures else None


def timed(info: dict) -> dict[str, float]:
    """Median seconds of the whole job by contestant, for those that were timed."""
    return {name: s for name, figures in info["contestants"].items() if (s := full_seconds(figures))}


def main_series(cases: list[dict]) -> list[dict]:
    """The cases with D = 128, float32, t = 0.1, by N."""
    wanted = {"d": 128, "dtype": "float32", "temperature": 0.1}
    return sorted(
        (case for case in cases if case["case"].items() >= wanted.items()), key=lambda case: case["case"]["n"]
    )


def ntxent_info(found: dict[str, list[dict]], n: int, suite: str = "ntxent") -> dict | None:
    """The case of the main series with this N."""
    return next((info for info in main_series(found.get(suite, [])) if info["case"]["n"] == n), None)


def augment_info(found: dict[str, list[dict]], batch: int, side: int, size: int) -> dict | None:
    """The case of the whole recipe in channels-last with this shape."""
    wanted = {"batch": batch, "side": side, "size": size, "ops": "all", "channels_last": True}
    return next((info for info in found.get("augment", []) if info["case"] == wanted), None)


def loss_info(found: dict[str, list[dict]], loss: str, rows: int, d: int, suite: str = "losses") -> dict | None:
    """The case of a loss with this many rows and columns."""
    wanted = {"loss": loss, "rows": rows, "d": d}
    return next((info for info in found.get(suite, []) if info["case"] == wanted), None)


def speedup(info: dict | None, ours: str, other: str) -> tuple[float | None, str]:
    """How many times as long `other` takes as `ours`; None and a reason where one of them was not timed."""
    if info is None:
        return None, "case not in this run"
    seconds = timed(info)
    absent = [name for name in (ours, other) if name not in seconds]
    return (None, f"{absent[0]} was not timed") if absent else (seconds[other] / seconds[ours], "")


def over_limit(info: dict, seconds: float) -> float:
    """Seconds as a multiple of the time of the fewest multiply-adds at the machine's measured rate."""
    return seconds * info["limits"]["multiply_adds_per_second"] / info["multiply_adds"]["least"]


def _limit(found: dict[str, list[dict]], n: int) -> tuple[float | None, str]:
    info = ntxent_info(found, n)
    seconds = timed(info).get("cpp") if info else None
    return (over_limit(info, seconds), "") if seconds else (None, "cpp was not timed")


def _memory(found: dict[str, list[dict]], n: int) -> tuple[float | None, str]:
    for suite in ("ntxent", "ntxent_memory"):
        info = ntxent_info(found, n, suite)
        if info and "peak_bytes" in info["contestants"].get("cpp", {}):
            return info["contestants"]["cpp"]["peak_bytes"] / MIB, ""
    return None, "case not in this run"


def _host(found: dict[str, list[dict]]) -> tuple[dict[str, float], str]:
    """Seconds by contestant of the tiny batch, and why one of the compared was not timed."""
    seconds = timed(found["host"][0]) if found.get("host") else {}
    absent = [name for name in ("cpp", "kernels", "plain") if name not in seconds]
    return seconds, f"{absent[0]} was not timed" if absent else ""


def targets(found: dict[str, list[dict]]) -> list[Target]:
    """Every demand with the figure of this run."""
    rows = []
    for n, least in LEAST_SPEEDUP.items():
        measured = speedup(ntxent_info(found, n), "cpp", "plain")
        rows.append(Target(f"NT-Xent, N = {n}: against plain PyTorch", least, True, "x", *measured))
    for n, most in MOST_OF_LIMIT.items():
        rows.append(Target(f"NT-Xent, N = {n}: over the multiply-add limit", most, False, "x", *_limit(found, n)))
    for n, most in MOST_MIB.items():
        what = f"NT-Xent, N = {n}: peak memory beyond the inputs"
        rows.append(Target(what, most, False, " MiB", *_memory(found, n)))
    host, missing = _host(found)
    beyond, share = (None, None) if missing else (1e6 * (host["cpp"] - host["kernels"]), host["cpp"] / host["plain"])
    what = "NT-Xent, N = 4: host time"
    rows.append(Target(f"{what} beyond the kernels", MOST_HOST_US, False, " us", beyond, missing))
    rows.append(Target(f"{what} against plain PyTorch", MOST_HOST_SHARE, False, "x", share, missing))
    for loss, least in LEAST_LOSS_SPEEDUP.items():
        measured = speedup(loss_info(found, loss, 4096, 128), "cpp", "plain")
        rows.append(Target(f"{loss}, 4096 x 4096: against plain PyTorch", least, True, "x", *measured))
    for (loss, size, d), most in MOST_LOSS_MIB.items():
        info = loss_info(found, loss, size, d, "losses_memory")
        peak = info["contestants"].get("cpp", {}).get("peak_bytes") if info else None
        measured = (None, "case not in this run") if peak is None else (peak / MIB, "")
        what = f"{loss}, {size} x {size}, D = {d}: peak memory beyond the inputs"
        rows.append(Target(what, most, False, " MiB", *measured))
    for (shape, peer), least in LEAST_AUGMENT_SPEEDUP.items():
        what = "augmentation, {} x {} to {} px: against {}".format(*shape, peer)
        rows.append(Target(what, least, True, "x", *speedup(augment_info(found, *shape), "cpp", peer)))
    wanted = {"height": 375, "width": 500, "workers": 2}
    loading = next((info for info in found.get("loading", []) if info["case"].items() >= wanted.items()), None)
    for name, least in LEAST_LOADING_SPEEDUP.items():
        what = f"loading, 500 x 375 JPEG, {name}: against DataLoader"
        rows.append(Target(what, least, True, "x", *speedup(loading, name, "DataLoader")))
    files = next((info for info in found.get("train_step_files", []) if info["case"]["model"] == "resnet18"), None)
    what = "resnet18 at 224 px from JPEG files"
    measured = speedup(files, "simclr_fast", "lightly")
    rows.append(Target(f"{what}: against lightly", LEAST_FILES_SPEEDUP, True, "x", *measured))
    share = files["contestants"]["simclr_fast"].get("cpu_share_before_model") if files else None
    reason = "" if share is not None else "case not in this run"
    rows.append(Target(f"{what}: loading + augmentation", MOST_BEFORE_MODEL, False, " of the CPU time", share, reason))
    return rows
