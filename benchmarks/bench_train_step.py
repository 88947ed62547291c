"""A whole training step: images per second, and the share of data, augmentation, model, loss and optimizer.

Ours in four ways, plain PyTorch with torchvision, lightly's loop: all train the same backbone and head from the same
weights on the same uint8 images in memory; `bench_train_step_files.py` begins at JPEG files. The learning rate is 0, so
that every round does the same work on the same weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.augment_contestants import Recipe
from benchmarks.augment_contestants import build as build_views
from benchmarks.bench_augment import photographs
from benchmarks.harness import Absent, Contestant, Laps, compare, installed, require
from simclr_fast import NTXentLoss
from simclr_fast.backends import resolve_backend
from simclr_fast.models import SimCLR, build_backbone
from simclr_fast.ops.ntxent.reference import ntxent_textbook

OURS = ("simclr_fast", "simclr_fast compiled", "simclr_fast bf16", "simclr_fast compiled bf16")
NAMES = (*OURS, "plain PyTorch", "lightly")
NOTES = {
    "plain PyTorch": "torchvision v2 per sample, the textbook loss, in one process",
    "lightly": "its transform on PIL images: on a GPU in 2 worker processes, on a CPU within the step, because there "
    "workers would do its work in the turns of the others, at their cost",
}
TEMPERATURE = 0.5
FEWEST_COMPILED = 64  # below, a minute of compiling says nothing about a step of milliseconds
Verify = Callable[[Tensor], Tensor]
TOLERANCE = 0.02  # of the loss on equal views and weights; bf16 is good for two digits


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


def build_encoder(name: str, side: int, device: torch.device) -> nn.Module:
    """The backbone with the first layers that views of this side want, and the head; always the same weights."""
    torch.manual_seed(0)
    stem = "cifar" if side < 96 and name != "resnet_mini" else "imagenet"
    backbone, features = build_backbone(name, stem, 3)
    return SimCLR(backbone, features, head_hidden=512).to(device, memory_format=torch.channels_last).train()


def _batches(images: Tensor, batch: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        for indices in torch.randperm(len(images), generator=generator).split(batch):
            if len(indices) == batch:
                yield images[indices.to(images.device)]


def _lightly_batches(images: Tensor, batch: int, side: int, workers: int) -> Iterator[Tensor]:
    """lightly's SimCLR transform on PIL images in a DataLoader, as its tutorial has it."""
    from lightly.transforms import SimCLRTransform
    from torchvision.transforms.functional import to_pil_image

    class Views(torch.utils.data.Dataset):
        transform = SimCLRTransform(input_size=side, gaussian_blur=0.0, vf_prob=0.0, rr_prob=0.0)
        pictures = tuple(to_pil_image(image) for image in images.cpu())

        def __len__(self) -> int:
            return len(self.pictures)

        def __getitem__(self, index: int) -> list[Tensor]:
            return self.transform(self.pictures[index])

    loader = torch.utils.data.DataLoader(
        Views(), batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        for views in loader:
            yield torch.cat(views)


def contestant(
    name: str, model_name: str, images: Tensor, batch: int, side: int, device: torch.device
) -> Contestant | Absent:
    """The named contestant; run(lap) does one step and returns verify(views) -> loss with its model and loss."""
    if name == "lightly" and not installed("lightly.loss"):
        return Absent(name, "not installed")
    if "compiled" in name and batch < FEWEST_COMPILED:
        return Absent(name, f"compiled from {FEWEST_COMPILED} images on")
    model = build_encoder(model_name, side, device)
    dtype = torch.bfloat16 if name.endswith("bf16") else None
    forward = torch.compile(model, dynamic=False) if "compiled" in name else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    recipe = Recipe(side, blur_p=0.0)
    if name == "lightly":
        from lightly.loss import NTXentLoss as LightlyLoss

        criterion, make_views = LightlyLoss(TEMPERATURE), None
        batches = _lightly_batches(images, batch, side, workers=2 if device.type == "cuda" else 0)
    elif name == "plain PyTorch":
        criterion = lambda z0, z1: ntxent_textbook(z0, z1, TEMPERATURE)
        make_views, batches = build_views("torchvision", recipe, device, True), _batches(images, batch)
    else:
        criterion = NTXentLoss(TEMPERATURE)
        make_views, batches = (
            build_views(resolve_backend("auto", "augment", device), recipe, device, True),
            _batches(images, batch),
        )

    def embed(views: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return forward(views)

    def verify(views: Tensor) -> Tensor:
        return criterion(*embed(views).chunk(2)).detach()

    def run(lap: Laps) -> Verify:
        pixels = next(batches)
        lap("data")
        views = pixels.to(device) if make_views is None else make_views(pixels).to(device)
        views = views.contiguous(memory_format=torch.channels_last)
        lap("augment")
        take_step(embed, criterion, optimizer, views, lap)
        return verify

    return Contestant(name, run, note=NOTES.get(name, ""))


def take_step(
    embed: Callable[[Tensor], Tensor],
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    views: Tensor,
    lap: Laps,
) -> None:
    """Train on the views [2b, C, S, S], with a lap for each part of the step."""
    z = embed(views)
    lap("forward")
    loss = criterion(*z.chunk(2))
    lap("loss")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    lap("backward")
    optimizer.step()
    lap("optimizer")


def expected_loss(model_name: str, views: Tensor, device: torch.device) -> Tensor:
    """The loss of the initial weights on these views, by the plain formula in float32."""
    with torch.no_grad():
        return ntxent_textbook(*build_encoder(model_name, views.shape[-1], device)(views).chunk(2), TEMPERATURE)


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
