"""What the ranks of a group must call a loss with alike, and the check of it: `Shared`, `check_same_call`.

The check is the first collective of every loss and of the primitive, and of one size in all of them, so that ranks
which call different losses meet in it, too, instead of in collectives of unequal sizes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simclr_fast import distributed
from simclr_fast.backends import check_backend
from simclr_fast.distributed import Shared
from simclr_fast.losses.arguments import BACKENDS, FLOAT_DTYPES, PRECISIONS, REDUCTIONS

CALLS = (
    "ntxent_loss",
    "ntxent_loss of more than two views",
    "NTXentLoss with a memory bank",
    "info_nce_loss",
    "clip_loss",
    "sup_con_loss",
    "similarity_logsumexp",
)
ALIKE = "pass the same to every rank"
_WIDTH = 15  # numbers of a check: those of every call, and up to six of its own


def flag(name: str, value: bool) -> Shared:
    """A yes or no that all ranks must have alike."""
    return Shared(name, int(value), ALIKE, (False, True))


def presence(name: str, value: Tensor | None) -> Shared:
    """An optional tensor, which all ranks must pass or none."""
    return Shared(name, int(value is not None), "pass them on all ranks or on none", (False, True))


def choice(name: str, value: object, choices: tuple) -> Shared:
    """One of these choices, which must be the same on all ranks."""
    return Shared(name, choices.index(value), ALIKE, choices)


def check_same_call(
    called: str,
    name: str,
    z: Tensor,
    temperature: float | Tensor,
    *,
    reduction: str,
    eps: float,
    precision: str | None,
    backend: str,
    group: "torch.distributed.ProcessGroup | None",
    own: Sequence[Shared] = (),
) -> None:
    """Raises on every rank where the ranks' calls differ; nothing where this process is alone.

    called: one of CALLS. z: [n, D], checked rows, which users call by this name. precision and backend are compared as
    the caller gave them. own: what else this call must have alike.
    """
    if group is None or distributed.rank_and_size(group)[1] == 1:
        return
    check_backend(backend)
    shared = (
        choice("loss", called, CALLS),
        Shared(f"rows of {name}", z.shape[0], "use a sampler that drops the last, smaller batch"),
        Shared(f"columns of {name}", z.shape[1], "use the same model on every rank"),
        Shared(
            f"dtype of {name}",
            FLOAT_DTYPES.index(z.dtype),
            "use the same model and autocast everywhere",
            FLOAT_DTYPES,
        ),
        choice("reduction", reduction, REDUCTIONS),
        Shared("eps", eps, ALIKE),
        Shared("temperature", temperature, f"{ALIKE}; a learned one belongs inside the module that DDP wraps"),
        choice("precision", precision, (None, *PRECISIONS)),
        choice("backend", backend, BACKENDS),
        *own,
    )
    distributed.check_same_on_all_ranks(shared, z.device, group, _WIDTH)
