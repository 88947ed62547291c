"""The loss of one and the same embeddings by every backend, as it is or compiled, beside float64."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Guard = Callable[[dict, str], AbstractContextManager[None]]


def loss_by_all(
    z: Tensor, losses: dict[str, Loss], guarded: Guard, compiler: str | Callable | None = None
) -> dict[str, object]:
    """By name, what each loss makes of z [2b, D], taken as the halves of one tensor, as a step does, and of copies.

    losses: "reference" among them, which serves float64. guarded: notes an exception in the dictionary that it gets, so
    that the others have their turn. compiler: of torch.compile, which then forgets all graphs but these; None runs each
    as it is.
    """
    truth, gradient = _loss_and_gradient(_of_halves(losses["reference"]), z.double())
    found: dict[str, object] = {"float64": str(truth.item())}
    for name, loss in losses.items():
        entry = found[name] = {}
        with guarded(entry, f"loss by {name}"):
            of = _of_halves(loss)
            if compiler is not None:
                torch._dynamo.reset()  # the ninth graph of a function is an error
                of = torch.compile(of, backend=compiler, fullgraph=True, dynamic=False)
            value, dz = _loss_and_gradient(of, z)
            again, dz_again = _loss_and_gradient(of, z)
            entry |= {
                "loss": str(value.item()),
                "gradient": (~dz.isfinite()).double().mean().item(),
                "finite": bool(value.isfinite() and dz.isfinite().all()),
                "off by": str((value.double() - truth).abs().item()),
                "gradient off by": str(((dz - gradient).abs().max() / gradient.abs().max()).item()),
                "the same again": torch.equal(dz, dz_again) and torch.equal(value, again),
            }
            if compiler is None:
                entry["loss of copies"] = str(loss(*(half.clone() for half in z.chunk(2))).item())
    return found


def _of_halves(loss: Loss) -> Callable[[Tensor], Tensor]:
    return lambda z: loss(*z.chunk(2))


def _loss_and_gradient(of: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """The loss [] and its gradient [2b, D] as float64."""
    leaf = z.detach().clone().requires_grad_()
    loss = of(leaf)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0].double()
