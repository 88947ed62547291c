"""NT-Xent in plain PyTorch: the ground truth of every backend, and the textbook form that benchmarks compare with.

With u_i = z_i / max(|z_i|, eps), logits s_ij = u_i . u_j / t, and p = p(i) the other view of row i, the NT-Xent loss of
row i is -log(exp(s_ip) / sum_{j != i} exp(s_ij)). Dividing through by exp(s_ip) gives the positive-anchored form

    L_i = softplus(lse_neg_i - s_ip),    lse_neg_i = log sum_{j not in {i, p(i)}} exp(s_ij),

which never subtracts two nearly equal numbers: when the pairs are aligned, lse_neg_i << s_ip and the usual form loses
the loss (log-sum-exp minus its own largest term) and its gradient (softmax probability of the positive, minus one) to
rounding. Both forms are O(M^2) in memory and differentiable by autograd, as often as one likes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that statistics and the loss have: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide_dtype(z: Tensor) -> torch.dtype:
    """What norms and positives are computed in: float64 where the device has it."""
    return torch.float32 if z.device.type == "mps" else torch.float64


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which autocast leaves the dtypes alone; the meta device has no autocast of its own."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


# The rule of a row: what it makes of its lse_neg and s_pos. The same names are in triton_common.py and csrc/ntxent.h.


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) in full precision; torch's own turns linear at 20, which is too coarse for float64."""
    return -F.logsigmoid(-x)


def log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)); either may be -inf. torch.logaddexp's second derivatives are NaN there, and far apart."""
    nothing = b == -torch.inf
    finite = b.masked_fill(nothing, 0)
    return torch.where(nothing, a, finite + softplus(a - finite))


def log_sum_exp(s: Tensor) -> Tensor:
    """log of the sum of exp(s) over the last dimension; of nothing -inf, all of whose derivatives are 0.

    torch.logsumexp's second and forward-mode derivatives are NaN where all of a row is -inf, or there is no column.
    """
    nothing = (s == -torch.inf).all(dim=-1)
    lse = torch.logsumexp(s.masked_fill(nothing[..., None], 0), dim=-1)
    return lse.masked_fill(nothing, -torch.inf)


def row_loss(lse_neg: Tensor, s_pos: Tensor) -> Tensor:
    """L_i of its two statistics: softplus(lse_neg - s_pos)."""
    return softplus(lse_neg - s_pos)


def row_lse(lse_neg: Tensor, s_pos: Tensor) -> Tensor:
    """lse_i, such that dL_i/ds_ij = exp(s_ij - lse_i) for its negatives j: the log-sum-exp with the positive in it."""
    return log_add_exp(lse_neg, s_pos)


def row_pull(lse_neg: Tensor, s_pos: Tensor) -> Tensor:
    """-dL_i/ds_ip, which is also the sum of dL_i/ds_ij over its negatives j: sigmoid(lse_neg - s_pos)."""
    return torch.sigmoid(lse_neg - s_pos)


def unit_rows(z: Tensor, eps: float = 1e-8) -> Tensor:
    """z / max(|z|, eps) along the last dimension of z [..., D], in float64 where the device has it.

    An error of a norm scales every logit of its row, hence float64. Autograd sees other rows in the place of short
    ones, whose norm does not count: its second derivatives are infinite at 0, and times 0 they would be NaN.
    """
    wide = z.to(wide_dtype(z))
    short = row_norms(wide.detach(), z.dtype, eps) <= eps
    return wide / row_norms(wide.masked_fill(short, 1), z.dtype, eps).masked_fill(short, eps)


def row_norms(wide: Tensor, dtype: torch.dtype, eps: float) -> Tensor:
    """|z| [..., 1] of rows [..., D] of this dtype, in a wider or the same one; at most eps where the true one is.

    In the same dtype squares may overflow, so rows are scaled by their largest entry first; a wider one holds them.
    """
    if wide.dtype != dtype:
        return torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    peak = wide.detach().abs().amax(dim=-1, keepdim=True).clamp_min(eps)
    return peak * torch.linalg.vector_norm(wide / peak, dim=-1, keepdim=True)


def normalize_rows(z: Tensor, eps: float = 1e-8) -> Tensor:
    """`unit_rows` of z [N, D], in `compute_dtype(z.dtype)`."""
    return unit_rows(z, eps).to(compute_dtype(z.dtype))


def similarity_logits(
    rows: Tensor, columns: Tensor, temperature: float | Tensor, row_offset: int = 0, exclude: str = "none"
) -> Tensor:
    """s_ij [n, m] of the unit rows [n, D] and columns [m, D], -inf where row i leaves column j out.

    exclude: "none"; "self", column row_offset + i; "pair", also column row_offset + (i + n / 2) mod n. Products are
    summed in parts of 32: small temperatures amplify the rounding of one long sum.
    """
    s = sum(a @ b.T for a, b in zip(rows.split(32, dim=1), columns.split(32, dim=1))) / temperature
    if exclude == "none":
        return s
    i = torch.arange(rows.shape[0], device=rows.device)
    j = torch.arange(columns.shape[0], device=rows.device)
    left_out = j == row_offset + i[:, None]
    if exclude == "pair":
        left_out |= j == row_offset + ((i + rows.shape[0] // 2) % rows.shape[0])[:, None]
    return s.masked_fill(left_out, -torch.inf)


def row_statistics(u: Tensor, u_all: Tensor, temperature: float | Tensor, row_offset: int = 0) -> tuple[Tensor, Tensor]:
    """lse_neg [2n] and s_pos [2n] (float64) of the unit rows u [2n, D] against the columns u_all [M, D].

    Row i is column row_offset + i, and its positive is column row_offset + (i + n) mod 2n. The positive's logit is
    computed in float64: where pairs are aligned it is the largest, and L_i is small and as wrong, relatively, as it.
    """
    s = similarity_logits(u, u_all, temperature, row_offset, "pair")  # [2n, M]
    lse_neg = log_sum_exp(s)
    wide = wide_dtype(u)
    rows = torch.arange(u.shape[0], device=u.device)
    positive = row_offset + (rows + u.shape[0] // 2) % u.shape[0]
    s_pos = (u.to(wide) * u_all[positive].to(wide)).sum(dim=1) / temperature
    return lse_neg, s_pos


def row_losses(u: Tensor, u_all: Tensor, temperature: float | Tensor, row_offset: int = 0) -> Tensor:
    """Losses L_i [2n] of the unit rows u [2n, D] against the columns u_all [M, D], in the dtype of u."""
    return row_loss(*row_statistics(u, u_all, temperature, row_offset)).to(u.dtype)


def row_scale(reduction: str, n: int, columns: int) -> float:
    """What a row's loss is multiplied by in the gradient: W times its weight in the value, for DDP's mean divides by W.

    n: samples of each of the W processes, which have 2n of the columns each. With "none" it is the caller's business
    how each rank reduces its rows, and DDP's to average over ranks. The C++ bindings have the same rule.
    """
    return {"mean": 1 / (2 * n), "sum": columns / (2 * n), "none": 1.0}[reduction]


def ntxent_textbook(z0: Tensor, z1: Tensor, temperature: float | Tensor = 0.5) -> Tensor:
    """The loss as usually written (normalise, multiply, mask the diagonal, cross-entropy), mean over the 2N rows.

    The baseline of the benchmarks: as accurate and as fast as plain PyTorch code is, no better.
    """
    n = z0.shape[0]
    u = F.normalize(torch.cat([z0, z1]), dim=1)
    logits = u @ u.T / temperature
    logits.fill_diagonal_(-torch.inf)
    labels = torch.arange(2 * n, device=u.device).roll(n)
    return F.cross_entropy(logits, labels)
