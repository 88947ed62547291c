"""Keeps a step that went wrong from being applied, on the device, and tells the host about it one step later."""

import math

import torch
from torch import Tensor

from simclr_fast.errors import NonFiniteLossError

RECORDED = ("loss", "gradient norm", "failed")


class StepWatch:
    """Judges each step where it is computed, so that the host never waits for a step that has just been queued.

    skip: float32 [] on the device, 1 where this step's update must leave everything as it is; optimizers take it as
    `found_inf`. failed: float32 [] there, 1 from the first failed step on. A loss that is not finite has no gradient to
    follow, nor has one whose gradient is not finite: such a step has failed, and from then on every step is skipped, so
    the state stays that of before the failed step until the host has heard of it. Where a scaler looks for the largest
    scale (float16), gradients that overflow are what it learns from: that step alone is skipped.
    """

    def __init__(self, device: torch.device):
        self.skip = torch.zeros((), device=device)
        self.failed = torch.zeros((), device=device)
        self._status = torch.zeros(len(RECORDED), device=device)
        pinned = device.type == "cuda"
        # Two, since the next step's status is sent before this one's is read.
        self._slots = [torch.zeros(len(RECORDED), pin_memory=pinned) for _ in range(2)]
        self._sent = [torch.cuda.Event() for _ in range(2)] if pinned else None
        self._noted = 0
        self._read = 0

    def judge(self, loss: Tensor, norm: Tensor, *, scaled: bool) -> None:
        """Set `skip` by the loss [] and the gradient's norm [] of a step; scaled: a scaler handles overflows."""
        bad_loss, bad_gradient = ~loss.detach().isfinite(), ~norm.isfinite()
        self.failed.masked_fill_(bad_loss if scaled else bad_loss | bad_gradient, 1.0)
        self.skip.copy_(torch.maximum(self.failed, bad_gradient.float()))
        torch.stack([loss.detach().float(), norm.float(), self.failed], out=self._status)

    def note(self) -> None:
        """Send the status of the step that was queued to the host, and read that of the step before.

        Raises NonFiniteLossError if the step before failed; the device has the later step to do meanwhile.
        """
        turn = self._noted % 2
        self._slots[turn].copy_(self._status, non_blocking=True)
        if self._sent is not None:
            self._sent[turn].record()
        self._noted += 1
        if self._noted > 1:
            self._check(self._noted - 2)

    def settle(self) -> None:
        """Raise NonFiniteLossError if the last step failed, which waits for it."""
        if self._noted > 0:
            self._check(self._noted - 1)

    def _check(self, step: int) -> None:
        if step < self._read:
            return
        self._read = step + 1
        turn = step % 2
        if self._sent is not None:
            self._sent[turn].synchronize()
        # By numpy: it is memory of the host already, and torch would look for a device to wait for.
        loss, norm, failed = self._slots[turn].numpy().tolist()
        if not failed:
            return
        if math.isfinite(loss):
            raise NonFiniteLossError(f"the loss is {loss:.6g} and the norm of its gradient {norm}")
        raise NonFiniteLossError(f"the loss is {loss}")
