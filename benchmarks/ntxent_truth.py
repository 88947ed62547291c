"""NT-Xent in float64 with linear memory: the loss and the gradient of sampled rows, where autograd has no room."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast.ops.ntxent.reference import normalize_rows

CHUNK_BYTES = 2**28


def loss_and_sampled_gradients(
    z0: Tensor, z1: Tensor, temperature: float, samples: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, indices of at most `samples` evenly spaced rows of cat([z0, z1]), dz of those rows [samples, D].

    With lse_i the log-sum-exp of row i over all j != i, and g_i = sigmoid(lse_neg_i - s_ip),

        du_i = 1/(t M) [ sum_{j not in {i, p}} (exp(s_ij - lse_i) + exp(s_ij - lse_j)) u_j - (g_i + g_p) u_p ].
    """
    z = torch.cat([z0, z1]).detach().double()
    m = len(z)
    u = normalize_rows(z)
    positive = torch.arange(m, device=z.device).roll(m // 2)
    s_pos = (u * u[positive]).sum(1) / temperature
    lse_neg = torch.empty_like(s_pos)
    for rows in torch.arange(m, device=z.device).split(max(1, CHUNK_BYTES // (8 * m))):
        lse_neg[rows] = _masked_logits(u, rows, positive, temperature).logsumexp(1)
    losses = F.softplus(lse_neg - s_pos, threshold=1e3)
    lse, g = torch.logaddexp(lse_neg, s_pos), torch.sigmoid(lse_neg - s_pos)

    rows = torch.linspace(0, m - 1, min(m, samples), dtype=torch.float64).round().long().to(z.device)
    s = _masked_logits(u, rows, positive, temperature)
    weights = (s - lse[rows, None]).exp() + (s - lse[None, :]).exp()
    pulled = positive[rows]
    du = (weights @ u - (g[rows] + g[pulled])[:, None] * u[pulled]) / (temperature * m)
    along = (du * u[rows]).sum(1, keepdim=True)
    return losses.mean(), rows, (du - along * u[rows]) / z[rows].norm(dim=1, keepdim=True)


def _masked_logits(u: Tensor, rows: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """s_ij of these rows, -inf at the row itself and at its positive: [rows, M]."""
    s = u[rows] @ u.T / temperature
    here = torch.arange(len(rows), device=u.device)
    s[here, rows] = s[here, positive[rows]] = -torch.inf
    return s
