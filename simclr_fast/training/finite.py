"""The stop on a loss that is not finite."""

import torch
from torch import Tensor

from simclr_fast.errors import NonFiniteLossError


class LossWatch:
    """Checks each loss without draining the GPU's queue.

    `start` sends the loss to the host right after the forward pass; `finish`, called once the backward pass has been
    queued, waits for that copy alone. The GPU stays busy with the backward pass meanwhile, and the optimizer, which is
    queued afterwards, never applies the gradient of a bad loss.
    """

    def __init__(self) -> None:
        self.host: Tensor | None = None
        self.copied: torch.cuda.Event | None = None

    def start(self, loss: Tensor) -> None:
        """Note the loss of this step."""
        loss = loss.detach()
        if not loss.is_cuda:
            self.host = loss
            return
        if self.host is None:
            self.host = torch.empty((), dtype=loss.dtype, pin_memory=True)
            self.copied = torch.cuda.Event()
        self.host.copy_(loss, non_blocking=True)
        self.copied.record()

    def finish(self) -> None:
        """Raise NonFiniteLossError if the loss given to `start` is not finite."""
        if self.copied is not None:
            self.copied.synchronize()
        if not torch.isfinite(self.host):
            raise NonFiniteLossError(f"the loss is {self.host.item()}")
