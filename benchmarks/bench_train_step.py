"""A whole training step: images per second, and the share of data, augmentation, model, loss and optimizer."""

from dataclasses import dataclass

import torch

from benchmarks.bench_augment import photographs
from benchmarks.harness import compare, require
from benchmarks.train_step_contestants import NAMES, OURS, contestant, expected_loss


@dataclass(frozen=True)
class Case:
    """A batch of square images and the backbone that is trained on it."""

    batch: int
    side: int
    model: str

    def __str__(self) -> str:
        return f"{self.model},{self.batch}x{self.side}"


CASES = {
    "smoke": [Case(4, 16, "resnet_mini")],
    "quick": [Case(256, 32, "resnet_mini")],
    "full": [Case(256, 32, "resnet_mini"), Case(512, 32, "resnet18"), Case(64, 224, "resnet50")],
}
TOLERANCE = 0.02  # of the loss on equal views and weights; bf16 is good for two digits


def test_train_step(benchmark, case: Case, device: torch.device, budget: float) -> None:
    images = photographs(4 * case.batch, case.side).to(device)
    views = torch.randn(2 * case.batch, 3, case.side, case.side, device=device)
    truth = expected_loss(case.model, views, device)
    arguments = (case.model, images, case.batch, case.side, device)
    found = compare(
        benchmark,
        [contestant(name, *arguments) for name in NAMES],
        lambda verify: (((verify(views) - truth).abs() / truth).item(), TOLERANCE),
        device,
        2 * budget,
        suite="train_step",
        case=vars(case),
        title=f"{case.model}, {case.batch} images of {case.side} px",
        images=case.batch,
    )
    require(found, OURS)
