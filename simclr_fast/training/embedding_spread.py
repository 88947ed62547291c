"""How the embeddings of a step lie: over how many dimensions, and whether those that share batch statistics differ."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_fast import distributed
from simclr_fast.config import Config
from simclr_fast.norms import FrozenBatchNorm
from simclr_fast.process import Process

# Images whose embeddings are compared, over all processes: their 512 x 512 cosines take a GPU microseconds. With fewer,
# `batch_norm_gap`, which is of the few pairs that share statistics, would be noise.
SAMPLE = 256
# Of lower temperatures than this, exp(cosine / temperature) is that of the few most alike pairs, and its mean noise.
LOWEST_TEMPERATURE = 0.1


class EmbeddingSpread:
    """Measures a sample of a step's embeddings, equally many of every process.

    effective_dimension: 1 / (mean squared cosine of embeddings of different images), which is D where they fill a
        sphere of D dimensions evenly, and 1 where they lie in one point or on one line.
    batch_norm_gap: how much likelier an image's embeddings make it seem that another one shares its batch statistics
        than that it does not, in nats at the loss's temperature, but at 0.1 where that is lower: the log of the mean of
        exp(cosine / temperature) over pairs of images that batch norm normalised together, minus that over pairs that
        it did not. 0 where an embedding depends on its own image alone. Only where a step has several sets of batch
        statistics: with micro-batches, and with several processes that do not synchronise them.
    """

    def __init__(self, config: Config, process: Process, model: nn.Module):
        options, several = config.optimization, process.world_size > 1
        self.temperature = max(options.temperature, LOWEST_TEMPERATURE)
        self.group = distributed.default_group() if several else None
        local = options.batch_size // process.world_size
        # Two of each process at least, so that some of what shares statistics is compared.
        self.images = min(local, max(2, -(-SAMPLE // process.world_size)))
        number = torch.arange(self.images, device=process.device).repeat(2)  # of the rows of a process, view-major
        rank = torch.arange(process.world_size, device=process.device)[:, None]
        image = (rank * self.images + number).flatten()
        part = number // (options.micro_batch_size or local)
        synchronised = several and config.model.sync_bn
        norm_group = (part + rank * (0 if synchronised else local)).flatten()
        self._different = image[:, None] != image
        self._shared = (norm_group[:, None] == norm_group) & self._different
        self._apart = norm_group[:, None] != norm_group
        self._compares_groups = has_batch_statistics(model) and bool(self._shared.any() and self._apart.any())

    @torch.no_grad()
    def measure(self, z: Tensor) -> dict[str, float]:
        """The values by name, of this process's embeddings z [2b, D], view-major. Every process must call it.

        Nothing where there is one image, and the dimension alone where all images share their statistics.
        """
        rows = F.normalize(z.unflatten(0, (2, -1))[:, : self.images].flatten(0, 1).float(), dim=1)
        if self.group is not None:
            rows = distributed.all_gather_shards(rows, self.group)
        cosines = rows @ rows.T
        if len(rows) == 2:
            return {}
        values = {"effective_dimension": 1 / _mean(cosines.square(), self._different).clamp_min(1e-6).item()}
        if self._compares_groups:
            # Shifted, so that no temperature lets exp overflow: a cosine is 1 at most.
            weights = ((cosines - 1) / self.temperature).exp()
            shared, apart = (_mean(weights, pairs).clamp_min(1e-30).log() for pairs in (self._shared, self._apart))
            values["batch_norm_gap"] = (shared - apart).item()
        return values


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether some batch norm of a model normalises by the statistics of the batch."""
    batch_norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return not all(isinstance(m, FrozenBatchNorm) for m in batch_norms)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum()
