"""A training run that takes no time: 4 steps an epoch, of 8 images each."""

import pytest
import torch

from simclr_fast.data import Dataset, ImageArrays

STEPS_PER_EPOCH = 4
FEW = ("demo", "--batch-size", "8", "--size", "8", "--head-hidden", "32", "--threads", "1", "--norm", "group")
FEW += ("--no-eval", "--knn-epochs", "0")


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on so many images as make 4 steps of 8."""
    from simclr_fast.training import pretrain

    images = torch.randint(0, 256, (8 * STEPS_PER_EPOCH, 1, 9, 9), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(pretrain, "load_dataset", lambda options: Dataset(train=ImageArrays(images.to(torch.uint8))))
