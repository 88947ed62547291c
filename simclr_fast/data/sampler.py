"""Which images make up which step, and its seed: functions of (seed, epoch, step) alone, so a run can be resumed."""

import torch
from torch import Tensor


def step_seed_of(seed: int, step: int) -> int:
    """A seed in [0, 2^63) for a step: neighbouring seeds and steps give unrelated ones (splitmix64's finaliser)."""
    x = (seed * 0x9E3779B97F4A7C15 + step + 1) * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) >> 1


class EpochSampler:
    """The indices that one process reads in each step of an epoch.

    A step takes `batch_size` consecutive entries of the epoch's order over all processes, and process `rank` its own
    equal slice of them; the remainder of the epoch is dropped (another one in each epoch).
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if batch_size > size:
            raise ValueError(f"batch_size={batch_size}: larger than the {size} images of the data set")
        if batch_size % world_size:
            raise ValueError(f"batch_size={batch_size}: it is global and must divide by world_size={world_size}")
        self.size = size
        self.batch_size = batch_size
        self.local_batch_size = batch_size // world_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    @property
    def steps_per_epoch(self) -> int:
        return self.size // self.batch_size

    def order(self, epoch: int) -> Tensor:
        """The order of all images in an epoch, int64 [size] on the CPU; the same in every process."""
        # Distinct streams per epoch without correlated seeds: torch mixes the 64-bit seed of its Mersenne twister.
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B97F4A7C15 + epoch + 1) % 2**63)
        return torch.randperm(self.size, generator=generator)

    def steps(self, epoch: int, start: int = 0) -> list[Tensor]:
        """Indices int64 [local_batch_size] of the steps start, start + 1, ... of an epoch."""
        order = self.order(epoch)
        first = self.rank * self.local_batch_size
        begins = range(start * self.batch_size + first, self.steps_per_epoch * self.batch_size, self.batch_size)
        return [order[begin : begin + self.local_batch_size] for begin in begins]
