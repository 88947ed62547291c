"""Fine-tuning from one label per class, for the table at a run's end: on small images, where it takes little time."""

import logging
from typing import Any

import torch
from tqdm.auto import tqdm

from simclr_fast.data import Dataset
from simclr_fast.errors import NonFiniteLossError
from simclr_fast.evaluation.classifier import Schedule, Speed, fine_tune
from simclr_fast.evaluation.features import Features
from simclr_fast.evaluation.probes import fit_linear
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.splits import few_label_draws
from simclr_fast.evaluation.tables import accuracy, class_names, spread
from simclr_fast.process import Process

DRAWS = 3
# On held-out training digits 150 steps at this rate are as good as 300 at that of `finetune`, for training from scratch
# (28.9 and 27.1%) and from the checkpoint (42.9 and 41.7%).
SCHEDULE = Schedule(epochs=0, min_steps=150, batch_size=64, lr=0.05)
INITS = {"random_init": "scratch", "simclr": "checkpoint"}
# Larger images take minutes for what takes seconds of small ones; the command `finetune` is for them.
LARGEST_SIDE = 32  # pixels
LARGEST_SHARE = 0.2  # of the views that the run has trained on: nobody waits longer for a figure than for the training

log = logging.getLogger(__name__)


def is_cheap(run: Run, data: Dataset) -> bool:
    """Whether the images are small, and training has looked at many times the views that fine-tuning looks at."""
    batch_size = min(SCHEDULE.batch_size, len(data.labelled.labels.unique()))
    views = DRAWS * len(INITS) * SCHEDULE.min_steps * batch_size
    trained = 2 * run.step * run.config.optimization.batch_size
    return run.config.augment.size <= LARGEST_SIDE and views <= LARGEST_SHARE * trained


def raw_accuracies(scaled: Features, data: Dataset, device: torch.device) -> list[float]:
    """Test accuracy (fraction) of a linear classifier on raw pixels from a label per class, for each draw.

    scaled: what `standardize` makes of the raw pixels of the labelled and the test images.
    """
    labels, classes = data.labelled.labels, len(class_names(data))
    linear = [
        fit_linear(scaled.train[few], labels[few], classes=classes, device=device)
        for few in few_label_draws(labels, 1, DRAWS)
    ]
    return [accuracy(of_draw.logits(scaled.test), data.test.labels) for of_draw in linear]


def one_label_accuracies(run: Run, data: Dataset, raw: list[float], process: Process) -> dict[str, Any] | None:
    """Test accuracy (fraction) from a label per class: {"raw", "random_init", "simclr"}, mean and deviation of draws.

    The network is trained from scratch and from the checkpoint, for as many steps ("steps") on the same images ("draws"
    times others). raw: what `raw_accuracies` gives. None, and a line in the log, where a loss is not finite.
    """
    classes = len(class_names(data))
    right: dict[str, list[float]] = {"raw": raw, **{name: [] for name in INITS}}
    bar = tqdm(total=DRAWS * len(INITS), desc="fine-tuning from 1 label per class", unit="training", leave=False)
    with bar:
        for draw, chosen in enumerate(few_label_draws(data.labelled.labels, 1, DRAWS)):
            few = data.labelled.subset(chosen)
            for name, init in INITS.items():
                options = {"classes": classes, "seed": draw, "process": process, "speed": Speed()}
                try:
                    logits, _ = fine_tune(run, init, few, data.test, SCHEDULE, **options)
                except NonFiniteLossError as error:
                    log.warning("no accuracy of fine-tuning from 1 label per class: %s", error)
                    return None
                right[name].append(accuracy(logits, data.test.labels))
                bar.update()
    return {**{name: spread(of_draws) for name, of_draws in right.items()}, "draws": DRAWS, "steps": SCHEDULE.min_steps}
