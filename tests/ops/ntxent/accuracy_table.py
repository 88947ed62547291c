"""Prints the accuracy table of docs/ntxent.md: python -m tests.ops.ntxent.accuracy_table

Largest relative error of loss and gradient against float64 over five seeds, 256 pairs of 128 columns, of the compiled
backend, the dense reference and the textbook form, all in float32, and of the compiled backend from half types.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from simclr_fast import ntxent_loss
from simclr_fast.ops.ntxent.reference import ntxent_textbook
from tests.ntxent_truth import KINDS, TEMPERATURES, embeddings, gradient_error, mean_truth

SEEDS = range(5)
Loss = Callable[[Tensor, Tensor, float], Tensor]
COLUMNS: dict[str, tuple[torch.dtype, Loss]] = {
    "cpp": (torch.float32, lambda z0, z1, t: ntxent_loss(z0, z1, t, backend="cpp")),
    "reference": (torch.float32, lambda z0, z1, t: ntxent_loss(z0, z1, t, backend="reference")),
    "textbook": (torch.float32, ntxent_textbook),
    "cpp, float16": (torch.float16, lambda z0, z1, t: ntxent_loss(z0, z1, t, backend="cpp")),
    "cpp, bfloat16": (torch.bfloat16, lambda z0, z1, t: ntxent_loss(z0, z1, t, backend="cpp")),
}


def errors(loss_function: Loss, kind: str, dtype: torch.dtype, temperature: float) -> tuple[float, float]:
    """Relative errors of loss and gradient; half types are compared with the rounded gradient, all they can hold."""
    z0, z1 = embeddings(kind, 256, 128, dtype)
    loss_true, dz_true, _ = mean_truth(z0, z1, temperature)
    leaves = [z.requires_grad_() for z in (z0, z1)]
    scale = 1024 if dtype == torch.float16 else 1  # keeps the gradient out of float16's denormals
    loss = loss_function(*leaves, temperature)
    (loss * scale).backward()
    dz = torch.cat([z.grad for z in leaves]).double() / scale
    dz_true = (dz_true * scale).to(dtype).double() / scale if dtype.itemsize == 2 else dz_true
    loss_error = abs(loss.item() - loss_true.item()) / loss_true.item()
    return loss_error, gradient_error(dz, dz_true, torch.cat([z0, z1]).detach(), temperature, kind)


def worst(loss_function: Loss, kind: str, dtype: torch.dtype, temperature: float) -> tuple[float, float]:
    """The largest of the errors over the seeds; NaN counts as infinite."""
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        found.append([math.inf if math.isnan(e) else e for e in errors(loss_function, kind, dtype, temperature)])
    return tuple(max(column) for column in zip(*found))


def main() -> None:
    print("| embeddings | t |" + "".join(f" {name} |" for name in COLUMNS))
    print("|---|---|" + "---|" * len(COLUMNS))
    for kind in KINDS:
        for temperature in TEMPERATURES:
            cells = []
            for dtype, loss_function in COLUMNS.values():
                if dtype == torch.float32 or kind == "random":
                    cells.append("{:.0e} / {:.0e}".format(*worst(loss_function, kind, dtype, temperature)))
                else:
                    cells.append("")
            print(f"| {kind} | {temperature} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
