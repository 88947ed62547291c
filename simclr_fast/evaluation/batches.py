"""Augmented batches of labelled images, as supervised training on a pretrained encoder sees them: crop and flip."""

from collections.abc import Iterator

from torch import Tensor

from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.data import Source, build_loader
from simclr_fast.data.sampler import step_seed_of
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.run import Run
from simclr_fast.process import Process


class LabelledBatches:
    """Batches (images [b, C, S, S] normalised, labels int64 [b]) of one process, on its device.

    Random resized crop and, where the recipe flips, a horizontal flip (Chen et al. 2020, B.5 and B.6); no colour. The
    images of a step and their crops depend on (seed, step) alone. batch_size is global; one larger than the data set
    is cut to it. Raises ConfigError for fewer images than processes.
    """

    def __init__(self, source: Source, batch_size: int, run: Run, seed: int, process: Process):
        augment = run.config.augment
        batch_size = min(batch_size, len(source) // process.world_size * process.world_size)
        if batch_size == 0:
            raise ConfigError(f"{len(source)} labelled images cannot be shared by {process.world_size} processes")
        self.labels = source.labels.to(process.device)
        self.seed = seed
        self.loader = build_loader(
            source, batch_size, seed, process.device, run.config.data, process.rank, process.world_size
        )
        self.steps_per_epoch = self.loader.sampler.steps_per_epoch
        self.augment = SimCLRAugment(
            augment.img_size,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            jitter_p=0.0,
            gray_p=0.0,
            blur_p=0.0,
            mean=augment.mean,
            std=augment.std,
            views=1,
        )

    def steps(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `count` batches, epoch after epoch."""
        for epoch in range(-(-count // self.steps_per_epoch)):
            first = epoch * self.steps_per_epoch
            for step, batch in enumerate(self.loader.epoch(epoch), start=first):
                if step == count:
                    return
                images = self.augment(batch.images, seed=step_seed_of(self.seed, step), indices=batch.indices)
                yield images, self.labels[batch.indices]
