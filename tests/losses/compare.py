"""What the losses on the primitive are tried on, and how they are compared with float64 forms written in the tests."""

from collections.abc import Callable

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import compute_dtype
from tests.helpers import relative_error, within
from tests.ntxent_truth import EPS, gradient_error, half_error, half_scale

BACKENDS = ("cpp", "reference")


def unit(z: Tensor, eps: float = EPS) -> Tensor:
    """z / max(|z|, eps) in float64; huge rows scaled first, as their squares overflow."""
    z = z.double()
    peak = z.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1)
    return z / (peak * (z / peak).norm(dim=-1, keepdim=True)).clamp_min(eps)


def anchored(s: Tensor, positive: Tensor, left_out: Tensor | None = None) -> Tensor:
    """-log(exp(s_p) / (exp(s_p) + sum_j exp(s_j))) of logits s [n, m], one positive a row [n, m] bool, the others j.

    The cross-entropy of the logits, as softplus(lse - s_p), which stays exact where it is small.
    """
    left_out = positive if left_out is None else positive | left_out
    x = torch.logsumexp(s.masked_fill(left_out, -torch.inf), dim=1) - s[positive]
    return -torch.nn.functional.logsigmoid(-x)


def leaves(rows: list[Tensor], t: Tensor) -> tuple[list[Tensor], Tensor]:
    return [z.detach().clone().requires_grad_() for z in rows], t.clone().requires_grad_()


def check(
    ours: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    rows: list[Tensor],
    temperature: float,
    kind: str,
    dt_scale: float = 0,
) -> None:
    """Value and every gradient of ours(*rows, t) against exact(*rows, t) of the same rows in float64.

    rows: tensors [n, D], the first rows of which the kind may make special, or one [2n, D] of two views. dt_scale:
    what the derivative by t is the difference of, where that is more than it and loss / t.
    """
    dtype = rows[0].dtype
    wide = dtype == torch.float64
    t_dtype = compute_dtype(dtype)
    exact_rows, exact_t = leaves([z.double() for z in rows], torch.tensor(temperature, dtype=t_dtype).double())
    truth = exact(*exact_rows, exact_t)
    *dz_true, dt_true = torch.autograd.grad(truth, [*exact_rows, exact_t])
    half = dtype in (torch.float16, torch.bfloat16)
    scale = half_scale(torch.cat(dz_true), kind) if half else 1.0
    our_rows, our_t = leaves(rows, torch.tensor(temperature, dtype=t_dtype))
    loss = ours(*our_rows, our_t)
    *dz, dt = torch.autograd.grad(loss * scale, [*our_rows, our_t])

    assert loss.dtype == t_dtype
    loss_bound, gradient_bound = (1e-12, 1e-10) if wide else (5e-6, 3e-5)
    error = (loss.detach().double() - truth.detach()).abs()
    tiny = torch.finfo(loss.dtype).tiny
    assert within("loss", error, loss_bound * truth.detach() + tiny), f"loss {loss} is off by {error:.1e}"
    dt_error = (dt.double() / scale - dt_true).abs()
    natural = max(dt_true.abs().item(), truth.item() / temperature, dt_scale)
    assert within("dt", dt_error, gradient_bound * natural + tiny), f"dt {dt} is off by {dt_error:.1e}"
    assert all(x.dtype == dtype for x in dz)
    error_of = half_error if half else gradient_error
    bound = (1e-3 if temperature >= 0.1 else 1e-2) / 3 if half else gradient_bound
    for other in range(min(1, len(rows) - 1), len(rows)):  # two tensors at a time, as of two views
        views = [torch.cat([x[0], x[other]]) if other else x[0] for x in (dz, dz_true, rows)]
        error = error_of(views[0], views[1] * scale, views[2], temperature / scale, kind)
        assert within("gradient", error, bound), f"gradient off by {error:.1e}"


def same_when_compiled(function: Callable[..., Tensor], calls: list[tuple]) -> None:
    """One function for all calls: value, and gradients of the float tensors among its arguments, as uncompiled."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for call in calls:
        inputs = [x for x in call if isinstance(x, Tensor) and x.is_floating_point()]
        results = []
        for one in (function, compiled):
            for x in inputs:
                x.requires_grad_()
            loss = one(*call)
            results.append([loss.detach(), *torch.autograd.grad(loss.sum(), inputs)])
        assert all(relative_error(a, b) <= 1e-5 for a, b in zip(*results))
