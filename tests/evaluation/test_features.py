"""Features: the test-time transform, eval mode, and encoded images."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from simclr_fast.config import DataOptions
from simclr_fast.data import Dataset, ImageArrays, load_dataset
from simclr_fast.evaluation.features import LabelledBatches, Pixels, Preprocess, embed, preprocess_of
from simclr_fast.evaluation.in_training import OnlineKnn
from simclr_fast.evaluation.run import Run
from simclr_fast.process import Process
from tests.data.conftest import save_image
from tests.evaluation.conftest import plain_config, write_run

CPU = torch.device("cpu")


def test_preprocess_normalises_images_of_the_right_size() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    made = Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))(images)
    torch.testing.assert_close(made[:, 1], (images[:, 1] / 255 - 0.4) / 0.3)


def test_preprocess_of_a_run_is_its_recipe(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path, plain_config(mean=(0.3,), std=(0.6,), size=24)))
    images = torch.randint(0, 256, (3, 1, 24, 24), dtype=torch.uint8)
    torch.testing.assert_close(preprocess_of(run)(images), (images / 255 - 0.3) / 0.6)


@pytest.mark.parametrize("listed", [False, True])
def test_images_get_the_channels_of_the_model(listed: bool) -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    grey = torch.cat(
        [v2.functional.pil_to_tensor(v2.functional.to_pil_image(one).convert("L"))[None] for one in images]
    )
    given = lambda batch: list(batch) if listed else batch
    view = lambda channels, batch: Preprocess(8, (0.0,), (1.0,), channels)(given(batch))
    torch.testing.assert_close(view(1, images), grey / 255, atol=1.01 / 255, rtol=0)  # Pillow rounds, torchvision cuts
    torch.testing.assert_close(view(3, grey), (grey / 255).expand(-1, 3, -1, -1))
    torch.testing.assert_close(view(3, images), images / 255)


@pytest.mark.parametrize(("of_run", "of_images"), [(1, 3), (3, 1)])
def test_batches_with_labels_have_the_channels_of_the_model(of_run: int, of_images: int, tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path, plain_config(size=8), channels=of_run))
    source = ImageArrays(torch.randint(0, 256, (6, of_images, 8, 8), dtype=torch.uint8), torch.arange(6))
    ((images, _),) = LabelledBatches(source, 6, run, 0, Process(0, 1, CPU)).steps(1)
    assert images.shape == (6, of_run, 8, 8)


def test_batches_with_labels_keep_their_colours(tmp_path: Path) -> None:
    """Crops and flips alone, whatever the run was trained with."""
    colours = {"jitter_p": 1.0, "gray_p": 1.0, "blur_p": 1.0}
    config = plain_config(size=8, mean=(0.5,) * 3, std=(0.3,) * 3, **colours)
    run = Run.open(write_run(tmp_path, config, channels=3))
    source = ImageArrays(torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6))
    ((images, labels),) = LabelledBatches(source, 6, run, 0, Process(0, 1, CPU)).steps(1)
    torch.testing.assert_close(images, (source.images[labels] / 255 - 0.5) / 0.3, atol=1e-4, rtol=0)


def test_online_knn_normalises_as_the_recipe_says() -> None:
    config = plain_config(mean=(0.3,), std=(0.6,), size=8)
    images = ImageArrays(torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8), torch.arange(40) % 2)
    made = OnlineKnn(Dataset(images, images), config, CPU).preprocess(images.images)
    torch.testing.assert_close(made, (images.images / 255 - 0.3) / 0.6)


def test_online_knn_is_not_the_share_of_the_largest_class() -> None:
    """Of 100 images, 200 neighbours are all of them; features that tell the classes apart must be told from none."""
    labels = (torch.arange(100) % 4 == 0).long()
    images = (60 + 120 * labels.view(-1, 1, 1, 1) + torch.randint(0, 20, (100, 1, 8, 8))).byte()
    level = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    with torch.no_grad():
        level(torch.zeros(1, 1, 8, 8))
        level[1].weight.copy_(torch.tensor([[0.0], [0.5]]).expand(2, 64) / 64)
        level[1].bias.copy_(torch.tensor([1.0, 0.5]))
    source = ImageArrays(images, labels)
    config = plain_config(mean=(0.5,), std=(0.5,), size=8)
    assert OnlineKnn(Dataset(source, source), config, CPU).accuracy(level) == 1.0


@pytest.mark.parametrize("shape", [(80, 120), (67, 100)], ids=["80 x 120", "67 x 100, which does not divide"])
def test_preprocess_resizes_and_cuts_the_centre_as_torchvision(shape: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Resize(64, antialias=True), v2.CenterCrop(56)])
    torch.testing.assert_close(Preprocess(56, (0.0,), (1.0,))(images), theirs(images), atol=1e-5, rtol=0)


def test_preprocess_of_images_of_different_sizes_is_that_of_each() -> None:
    preprocess = Preprocess(24, (0.3,), (0.6,))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((24, 24), (40, 31), (24, 24), (7, 24))]
    together = preprocess(images)
    assert torch.equal(together, torch.cat([preprocess(image[None]) for image in images]))
    torch.testing.assert_close(together[2], (images[2] / 255 - 0.3) / 0.6)


def test_embed_runs_in_eval_mode_and_restores_training_mode() -> None:
    encoder = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()).train()
    source = ImageArrays(torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8))
    features = embed(encoder, source, Preprocess(8, (0.0,), (1.0,)), CPU, batch_size=3)
    assert encoder.training
    assert torch.equal(encoder[0].running_mean, torch.zeros(1))
    torch.testing.assert_close(features, source.images.flatten(1) / 255, atol=1e-4, rtol=0)


def test_embed_takes_the_asked_images_of_either_kind(tmp_path: Path) -> None:
    arrays = ImageArrays(torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8))
    for i, image in enumerate(arrays.images):
        save_image(tmp_path / f"{i}.png", image)
    files = load_dataset(DataOptions(dataset="imagefolder", data=tmp_path)).train
    indices = torch.tensor([4, 0, 5])
    preprocess = Preprocess(16, (0.5,), (0.5,))
    a, b = (embed(nn.Flatten(), source, preprocess, CPU, indices, batch_size=2) for source in (arrays, files))
    assert torch.equal(a, b)
    torch.testing.assert_close(a, (arrays.images[indices].flatten(1) / 255 - 0.5) / 0.5)


@pytest.mark.parametrize(("side", "features"), [(28, 784), (224, 1024)])
def test_pixels_are_averaged_down_to_32(side: int, features: int) -> None:
    assert Pixels()(torch.rand(2, 1, side, side)).shape == (2, features)
