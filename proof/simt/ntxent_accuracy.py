"""Prints the table of the CUDA kernels in docs/ntxent.md: python -m proof.simt.ntxent_accuracy

Largest relative error of loss and gradient against float64 over three seeds, 128 pairs of 128 columns, in full float32,
with tensor cores that round to nearest and with those that truncate as the hardware does.
"""

import torch

from proof.simt.build import ROOT
from proof.simt.library import Kernels, Schedule
from tests.ntxent_launchers import NtxentLaunchers
from tests.ntxent_truth import EPS, KINDS, TEMPERATURES, embeddings, gradient_error, mean_truth

SOURCES = (
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cuda").glob("ntxent_*.cu")),
    "csrc/cuda/similarity.cu",
)
SEEDS = range(3)


def float32_errors(kernels: Kernels, kind: str, n: int, temperature: float, truncating: bool) -> tuple[float, float]:
    """Relative errors of the mean loss and of its gradient, D = 128, precision "ieee"."""
    z0, z1 = embeddings(kind, n, 128, torch.float32)
    loss_true, dz_true, _ = mean_truth(z0, z1, temperature)
    schedule = Schedule(host_threads=2, shared_bytes=227 * 1024, truncating=truncating)
    ops = NtxentLaunchers(kernels, options={"schedule": schedule})
    u, inv_norm = ops.normalize(z0, z1, EPS)
    numbers = {"temperature": temperature, "scale": 1 / (2 * n)}
    loss, lse_neg, s_pos = ops.fwd(u, n, **numbers)
    dz0, dz1, _ = ops.bwd(torch.tensor(1.0), z0, z1, u, inv_norm, lse_neg, s_pos, eps=EPS, **numbers)
    loss_error = abs(loss.item() - loss_true.item()) / loss_true.item()
    return loss_error, gradient_error(torch.cat([dz0, dz1]), dz_true, torch.cat([z0, z1]), temperature, kind)


def worst(kernels: Kernels, kind: str, temperature: float, truncating: bool) -> tuple[float, float]:
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        found.append(float32_errors(kernels, kind, 128, temperature, truncating))
    return tuple(map(max, zip(*found)))


def main() -> None:
    kernels = Kernels(SOURCES)
    print("| embeddings | tensor cores |" + "".join(f" t = {t} |" for t in TEMPERATURES))
    print("|---|---|" + "---|" * len(TEMPERATURES))
    for kind in KINDS:
        for truncating in (False, True):
            cells = ["{:.0e} / {:.0e}".format(*worst(kernels, kind, t, truncating)) for t in TEMPERATURES]
            print(f"| {kind} | {'truncating' if truncating else 'rounding'} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
