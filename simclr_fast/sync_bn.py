"""Batch norm whose statistics are those of the batch over all processes, on GPUs and on CPUs."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from simclr_fast.norms import FrozenBatchNorm, replace_batch_norm


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        # x of this process is a term of the sum that every process goes on with.
        total = grad.clone()
        dist.all_reduce(total)
        return total


class HostSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What torch.nn.SyncBatchNorm does on GPUs, for CPU tensors [B, C] or [B, C, H, W], which it refuses."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"input has shape {tuple(input.shape)}: pass [B, C] or [B, C, H, W]")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        over = [0, *range(2, input.dim())]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = x.new_tensor([x.numel() / x.shape[1]])
        total = _SumOverProcesses.apply(torch.cat([x.sum(over), count]))
        mean = total[:-1] / total[-1]
        # The deviations' squares, in a second sum: E[x^2] - mean^2 would cancel in float32.
        variance = _SumOverProcesses.apply((x - mean.view(shape)).square().sum(over)) / total[-1]
        self._update_running(mean.detach(), variance.detach(), total[-1].detach())
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with its batch norms replaced by synchronised ones of the same names, weights and statistics."""
    # One by one: torch's conversion of a whole model would lose what timm's batch norms do after they normalise.
    convert = nn.SyncBatchNorm.convert_sync_batchnorm if device.type == "cuda" else _on_host
    replace_batch_norm(model, lambda norm: norm if isinstance(norm, FrozenBatchNorm) else convert(norm))
    return model


def _on_host(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    synced = HostSyncBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    synced.load_state_dict(norm.state_dict())
    return synced
