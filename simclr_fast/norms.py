"""Batch norm and what may take its place in a model: group norm, and batch norm whose statistics stay."""

from collections.abc import Callable

from torch import Tensor, nn

from simclr_fast.errors import ConfigError


class FrozenBatchNorm(nn.Module):
    """Batch norm that always uses its running statistics, so that a sample's output depends on that sample alone."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        return super().train(False)


class FrozenBatchNorm1d(FrozenBatchNorm, nn.BatchNorm1d):
    """Of features [B, C]."""


class FrozenBatchNorm2d(FrozenBatchNorm, nn.BatchNorm2d):
    """Of images [B, C, H, W]."""


def replace_batch_norm(module: nn.Module, make: Callable[[nn.Module], nn.Module]) -> int:
    """Replace every batch norm inside `module` by `make(batch_norm)`, in place; returns how many there were.

    timm's batch norms that end in an activation hand it on. Raises ConfigError for any other that does more than
    normalise.
    """
    count = 0
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, _with_activation(child, make(child)))
            count += 1
        else:
            count += replace_batch_norm(child, make)
    return count


def normalise_by(module: nn.Module, norm: str, name: str) -> nn.Module:
    """The module `name`, which normalises now as --norm says: batch, group or frozen. Raises ConfigError where it
    cannot."""
    if norm != "batch" and not replace_batch_norm(module, group_norm if norm == "group" else frozen_batch_norm):
        raise ConfigError(f"--norm {norm}: {name} has no batch norm that it could replace; pass --norm batch")
    return module


def group_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.GroupNorm:
    """Of 32 groups (Wu and He 2018), fewer where the channels ask for it: at least 4 channels in a group."""
    groups = max(
        g
        for g in (1, 2, 4, 8, 16, 32)
        if norm.num_features % g == 0 and norm.num_features // g >= min(4, norm.num_features)
    )
    return nn.GroupNorm(groups, norm.num_features)


def frozen_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    """Of the statistics 0 and 1 that batch norm begins with."""
    frozen = FrozenBatchNorm1d if isinstance(norm, nn.BatchNorm1d) else FrozenBatchNorm2d
    return frozen(norm.num_features, eps=norm.eps, momentum=norm.momentum).eval()


def _with_activation(old: nn.Module, new: nn.Module) -> nn.Module:
    if type(old).forward in (nn.BatchNorm1d.forward, nn.BatchNorm2d.forward) or new is old:
        return new
    if not (isinstance(getattr(old, "act", None), nn.Module) and isinstance(getattr(old, "drop", None), nn.Module)):
        raise ConfigError(f"--norm: {type(old).__name__} does more than normalise, so nothing can replace it")
    new.drop, new.act = old.drop, old.act
    new.register_forward_hook(_activate)
    return new


def _activate(norm: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return norm.act(norm.drop(output))
