"""The exponential moving average of a model's weights and buffers, updated without the host's knowing any value."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from simclr_fast.lars import PLAIN_SGD


class WeightAverage(nn.Module):
    """a <- decay a + (1 - decay) w over all that is floating point in a model; counters are copied.

    It starts at the first weights it is given, as torch's AveragedModel does, and has its state dict ("module." names
    and "n_averaged"), but nothing is read from the device to tell the first update from the others.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module = copy.deepcopy(model)
        self.decay = decay
        device = next(model.parameters()).device
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.long, device=device))
        self.begun = False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, skip: Tensor | None = None) -> None:
        """Take in the weights of `model`; skip, float32 [] on its device: 1 leaves the average as it is.

        Counters are copied all the same: whoever skips an update sets those of the model back.
        """
        first, self.begun = not self.begun, True
        pairs = list(zip((*self.module.parameters(), *self.module.buffers()), (*model.parameters(), *model.buffers())))
        for dtype in dict.fromkeys(average.dtype for average, _ in pairs):
            averages, values = zip(*(pair for pair in pairs if pair[0].dtype == dtype))
            if first and skip is not None:
                values = [torch.where(skip > 0, average, value) for average, value in zip(averages, values)]
            if first or not dtype.is_floating_point:
                torch._foreach_copy_(averages, values)
                continue
            # a <- a - (1 - decay) (a - w) is a step of SGD: torch's fused one knows how to be skipped, whatever w is.
            torch._fused_sgd_(
                averages,
                torch._foreach_sub(averages, values),
                [],
                momentum=0.0,
                lr=1 - self.decay,
                is_first_step=False,
                found_inf=skip,
                **PLAIN_SGD,
            )
        self.n_averaged += 1 if skip is None else (1 - skip).long()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.begun = bool(self.n_averaged > 0)
