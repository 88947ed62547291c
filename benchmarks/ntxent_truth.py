"""NT-Xent in float64 with linear memory: the loss and the gradient of sampled rows, where autograd has no room."""

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import normalize_rows, row_loss, row_lse, row_pull

CHUNK_BYTES = 2**28


def loss_and_sampled_gradients(
    z0: Tensor, z1: Tensor, temperature: float, samples: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, indices of at most `samples` evenly spaced rows of cat([z0, z1]), dz of those rows [samples, D].

    With lse_i the log-sum-exp of row i over all j != i, and pull_i = sigmoid(lse_neg_i - s_ip),

        du_i = 1/(t M) [ sum_{j not in {i, p}} (exp(s_ij - lse_i) + exp(s_ij - lse_j)) u_j - (pull_i + pull_p) u_p ].
    """
    z = torch.cat([z0, z1]).detach().double()
    m = len(z)
    u = normalize_rows(z)
    positive = torch.arange(m, device=z.device).roll(m // 2)
    s_pos = (u * u[positive]).sum(1) / temperature
    lse_neg = torch.empty_like(s_pos)
    for rows in torch.arange(m, device=z.device).split(max(1, CHUNK_BYTES // (8 * m))):
        lse_neg[rows] = _masked_logits(u, rows, positive, temperature).logsumexp(1)
    losses, lse, pull = (rule(lse_neg, s_pos) for rule in (row_loss, row_lse, row_pull))

    rows = torch.linspace(0, m - 1, min(m, samples), dtype=torch.float64).round().long().to(z.device)
    s = _masked_logits(u, rows, positive, temperature)
    weights = (s - lse[rows, None]).exp() + (s - lse[None, :]).exp()
    partner = positive[rows]
    du = (weights @ u - (pull[rows] + pull[partner])[:, None] * u[partner]) / (temperature * m)
    along = (du * u[rows]).sum(1, keepdim=True)
    return losses.mean(), rows, (du - along * u[rows]) / z[rows].norm(dim=1, keepdim=True)


def _masked_logits(u: Tensor, rows: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """s_ij of these rows, -inf at the row itself and at its positive: [rows, M]."""
    s = u[rows] @ u.T / temperature
    here = torch.arange(len(rows), device=u.device)
    s[here, rows] = s[here, positive[rows]] = -torch.inf
    return s


def clip_loss_and_sampled_gradients(
    z0: Tensor, z1: Tensor, temperature: float, both_ways: bool, samples: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """As above for the loss of view 0 against view 1 alone, or the mean of that and of view 1 against view 0.

    With s_ij = u0_i.u1_j / t, P its softmax over j and Q over i, W = P or (P + Q) / 2:

        L = mean_i (lse_i - s_ii),   du0_i = 1/(t N) [ sum_j W_ij u1_j - u1_i ],   du1_j likewise with W transposed.
    """
    z = torch.cat([z0, z1]).detach().double()
    u = normalize_rows(z)
    n = len(z) // 2
    views = u[:n], u[n:]
    chunks = torch.arange(n, device=z.device).split(max(1, CHUNK_BYTES // (8 * n)))
    lse = [
        torch.cat([(own[rows] @ other.T / temperature).logsumexp(1) for rows in chunks])
        for own, other in (views, views[::-1])
    ]
    loss = lse[0].mean() if not both_ways else (lse[0].mean() + lse[1].mean()) / 2
    loss = loss - (views[0] * views[1]).sum(1).mean() / temperature

    rows = torch.linspace(0, 2 * n - 1, min(2 * n, samples), dtype=torch.float64).round().long().to(z.device)
    du = torch.empty_like(u[rows])
    for view in (0, 1):
        mine = (rows >= n) == bool(view)
        index, other = rows[mine] - view * n, views[1 - view]
        s = views[view][index] @ other.T / temperature
        along_rows, along_columns = (s - lse[view][index, None]).exp(), (s - lse[1 - view][None, :]).exp()
        if both_ways:
            weights = (along_rows + along_columns) / 2
        else:  # the softmax over view 1 is along the rows of s for view 0, along its columns for view 1
            weights = along_columns if view else along_rows
        du[mine] = (weights @ other - other[index]) / (temperature * n)
    along = (du * u[rows]).sum(1, keepdim=True)
    return loss, rows, (du - along * u[rows]) / z[rows].norm(dim=1, keepdim=True)
