"""Backbones by name, their stems, the head and the normalisation variants."""

import pytest
import torch
import torchvision
from torch import nn

from simclr_fast.config import ModelOptions
from simclr_fast.errors import ConfigError
from simclr_fast.models import SimCLR, build_backbone, build_model
from simclr_fast.norms import frozen_batch_norm, group_norm, normalise_by


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet50", 2048), ("resnet_mini", 128)])
def test_backbone_gives_its_number_of_features(name: str, features: int) -> None:
    backbone, width = build_backbone(name, channels=3)
    assert width == features
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, features)


def test_grid_of_the_mini_keeps_where_features_are_and_one_cell_is_their_average() -> None:
    images = torch.rand(2, 1, 24, 24)
    of_grid = {}
    for grid in (1, 3):
        torch.manual_seed(0)
        model = build_model(ModelOptions(model="resnet_mini", model_kwargs=(f"grid={grid}",)), channels=1, size=24)
        assert model.features == 128 * grid**2
        of_grid[grid] = model.backbone.eval()(images).unflatten(1, (128, grid, grid))
    torch.testing.assert_close(of_grid[3].mean((2, 3), keepdim=True), of_grid[1])


def test_the_mini_is_a_stem_and_four_blocks_with_shortcuts() -> None:
    """Written down from its description: 16, 32, 64 and 128 channels, each stage but the first at half the size."""
    backbone, _ = build_backbone("resnet_mini", channels=3)
    backbone.eval()
    for norm in (module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
    images = torch.randn(2, 3, 20, 20)
    x = torch.relu(backbone.bn1(nn.functional.conv2d(images, backbone.conv1.weight, padding=1)))
    for k, (channels, side) in enumerate(((16, 20), (32, 10), (64, 5), (128, 3))):
        block, stride = backbone.blocks[k], 1 if k == 0 else 2
        y = torch.relu(block.bn1(nn.functional.conv2d(x, block.conv1.weight, stride=stride, padding=1)))
        y = block.bn2(nn.functional.conv2d(y, block.conv2.weight, padding=1))
        if k > 0:
            conv, norm = block.downsample
            x = norm(nn.functional.conv2d(x, conv.weight, stride=2))
        x = torch.relu(y + x)
        assert x.shape == (2, channels, side, side)
    torch.testing.assert_close(backbone(images), x.mean((2, 3)))


def test_backbone_keys_are_torchvisions() -> None:
    ours = build_backbone("resnet18")[0].state_dict()
    theirs = torchvision.models.resnet18().state_dict()
    assert [key for key in theirs if not key.startswith("fc.")] == list(ours)


def test_cifar_stem_keeps_the_resolution() -> None:
    backbone, _ = build_backbone("resnet18", "cifar")
    seen = {}
    backbone.layer1.register_forward_pre_hook(lambda _, inputs: seen.update(shape=inputs[0].shape))
    backbone(torch.rand(1, 3, 32, 32))
    assert seen["shape"] == (1, 64, 32, 32)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_gray_images_are_served(stem: str) -> None:
    backbone, _ = build_backbone("resnet18", stem, channels=1)
    assert backbone(torch.rand(2, 1, 32, 32)).shape == (2, 512)


def test_unknown_backbone_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--model vgg16: unknown backbone; .*resnet50"):
        build_backbone("vgg16")


def test_head_is_the_papers() -> None:
    head = SimCLR(nn.Identity(), 2048).head
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)] == [(2048, 2048), (2048, 128)]
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [head[0].bias, head[3].bias] == [None, None], "a norm follows, which has one"


@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        (2048, 32),
        (128, 32),
        (96, 16),
        (64, 16),
        (40, 8),
        (32, 8),
        (24, 4),
        (16, 4),
        (12, 2),
        (8, 2),
        (6, 1),
        (4, 1),
        (2, 1),
        (1, 1),
    ],
)
def test_group_norm_has_32_groups_or_such_of_four_channels(channels: int, groups: int) -> None:
    norm = group_norm(nn.BatchNorm2d(channels))
    assert (norm.num_groups, norm.num_channels) == (groups, channels)


def test_a_norm_that_does_more_is_not_replaced() -> None:
    class Doubling(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    with pytest.raises(ConfigError, match="^--norm: Doubling does more than normalise, so nothing can replace it$"):
        normalise_by(nn.Sequential(Doubling(4)), "group", "x")
    half_of_timms = Doubling(4)
    half_of_timms.act = nn.ReLU()
    with pytest.raises(ConfigError, match="does more than normalise"):
        normalise_by(nn.Sequential(half_of_timms), "frozen", "x")


def test_a_frozen_norm_is_the_one_that_it_replaces() -> None:
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d):
        norm = frozen_batch_norm(kind(6, eps=0.25, momentum=0.5))
        assert isinstance(norm, kind)
        assert (norm.num_features, norm.eps, norm.momentum, norm.train().training) == (6, 0.25, 0.5, False)


def model_with(norm: str) -> SimCLR:
    return build_model(ModelOptions(model="resnet_mini", norm=norm, head_hidden=32, head_dim=8), channels=1)


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_group_and_frozen_norms_treat_samples_apart(norm: str) -> None:
    model = model_with(norm).train()
    x = torch.rand(6, 1, 28, 28)
    torch.testing.assert_close(model(x)[:2], model(x[:2]))
    torch.testing.assert_close(model(x), model.head(model.backbone(x)))


def test_batch_norm_does_not_treat_samples_apart() -> None:
    model = model_with("batch").train()
    x = torch.rand(6, 1, 28, 28)
    assert (model(x)[:2] - model(x[:2])).abs().max() > 1e-2


def test_frozen_statistics_stay_while_the_scale_learns() -> None:
    model = model_with("frozen").train()
    before = model.backbone.bn1.running_mean.clone()
    model(torch.rand(4, 1, 28, 28)).sum().backward()
    torch.testing.assert_close(model.backbone.bn1.running_mean, before, rtol=0, atol=0)
    assert model.backbone.bn1.weight.grad is not None
