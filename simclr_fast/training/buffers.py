"""Takes back on the device what the forward pass of a failed step did to a model's buffers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class KeptBuffers:
    """Copies of a model's buffers, such as batch norm's running statistics, in a few kernels whatever their number.

    The host never reads whether they were needed. The model must keep its buffers: they are looked up once.
    """

    def __init__(self, model: nn.Module):
        buffers = list(model.buffers())
        self._kinds = []
        for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
            kind = [buffer for buffer in buffers if buffer.dtype == dtype]
            self._kinds.append((kind, _one_tensor(kind), _one_tensor(kind)))

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the buffers as they are."""
        for buffers, (_, before), _ in self._kinds:
            torch._foreach_copy_(before, buffers)

    @torch.no_grad()
    def take_back(self, failed: Tensor) -> None:
        """Where failed, float32 [] on the buffers' device, is 1, let them be as they were kept; else they stay."""
        for buffers, (kept, _), (current, after) in self._kinds:
            torch._foreach_copy_(after, buffers)
            torch.where(failed > 0, kept, current, out=current)
            torch._foreach_copy_(buffers, after)


def _one_tensor(buffers: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Memory for the buffers, which share a dtype: all of it, and the part of each, in its shape."""
    sizes = [buffer.numel() for buffer in buffers]
    whole = buffers[0].new_empty(sum(sizes))
    return whole, [part.view(buffer.shape) for part, buffer in zip(whole.split(sizes), buffers)]
