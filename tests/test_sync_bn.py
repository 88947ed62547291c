"""Batch norm over processes on the CPU: alone it is torch's, and the converted model keeps its weights."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from simclr_fast.config import ModelOptions
from simclr_fast.models import build_model
from simclr_fast.norms import FrozenBatchNorm2d, frozen_batch_norm, replace_batch_norm
from simclr_fast.sync_bn import HostSyncBatchNorm, synchronize_batch_norm


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (16, 8)), (nn.BatchNorm2d, (16, 8, 5, 3))])
def test_one_process_is_plain_batch_norm(kind: type[nn.Module], shape: tuple[int, ...], group: None) -> None:
    plain = kind(8).double()
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    synced = HostSyncBatchNorm(8).double()
    synced.load_state_dict(plain.state_dict())
    x = torch.randn(shape, dtype=torch.float64) * 3 + 100  # a mean far from 0, where E[x^2] - mean^2 would cancel
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(value) for norm, value in zip((plain, synced), inputs)]
    gradient = torch.randn(shape, dtype=torch.float64)
    for y in outputs:
        y.backward(gradient)
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(synced.weight.grad, plain.weight.grad)
    torch.testing.assert_close(synced.state_dict(), plain.state_dict())
    torch.testing.assert_close(synced.eval()(x), plain.eval()(x))


def test_converted_model_keeps_its_keys_and_weights() -> None:
    model = build_model(ModelOptions(model="resnet_mini", head_hidden=16, head_dim=8), channels=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    synced = synchronize_batch_norm(model, torch.device("cpu"))
    assert list(synced.state_dict()) == list(before)
    torch.testing.assert_close(dict(synced.state_dict()), before, rtol=0, atol=0)
    assert not [m for m in synced.modules() if type(m) in (nn.BatchNorm1d, nn.BatchNorm2d)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_frozen_norms_stay_frozen(device: str) -> None:
    model = build_model(ModelOptions(model="resnet_mini", norm="frozen"), channels=1)
    assert isinstance(synchronize_batch_norm(model, torch.device(device)).backbone.bn1, FrozenBatchNorm2d)


def test_on_gpus_norms_are_torchs_and_keep_their_activation() -> None:
    options = ModelOptions(model="timm/test_efficientnet", head_hidden=16, head_dim=8)
    plain = build_model(options, channels=3, size=32).eval()
    synced = synchronize_batch_norm(copy.deepcopy(plain), torch.device("cuda"))
    assert list(synced.state_dict()) == list(plain.state_dict())
    norms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(norm) for norm in norms} == {nn.SyncBatchNorm}
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(synced(images), plain(images))


def test_numbers_of_the_norm_are_kept() -> None:
    norms = nn.Sequential(nn.BatchNorm1d(4, eps=0.5, momentum=0.3), nn.BatchNorm2d(4, eps=0.25, momentum=0.7))
    synced = synchronize_batch_norm(copy.deepcopy(norms), torch.device("cpu"))
    assert [(norm.eps, norm.momentum) for norm in synced] == [(0.5, 0.3), (0.25, 0.7)]
    assert replace_batch_norm(norms, frozen_batch_norm) == 2
    assert replace_batch_norm(nn.Sequential(nn.Linear(2, 2)), frozen_batch_norm) == 0
    assert [(norm.eps, norm.momentum, norm.training) for norm in norms] == [(0.5, 0.3, False), (0.25, 0.7, False)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_normalised_in_float32(dtype: torch.dtype, group: None) -> None:
    """Sums of halves would end at a 256th or a 2048th of these."""
    synced, x = HostSyncBatchNorm(3), (torch.randn(5000, 3) + 7).to(dtype)
    y = synced(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, nn.BatchNorm1d(3)(x.float()).to(dtype))
    assert synced.running_mean.dtype == torch.float32


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"input has shape \(2, 8, 5\)"):
        HostSyncBatchNorm(8)(torch.zeros(2, 8, 5))


def test_a_norm_with_an_activation_is_synchronised_and_keeps_it(group: None) -> None:
    """timm's BatchNormAct2d: with one process, the synchronised model computes what the plain one does."""
    torch.manual_seed(0)
    options = ModelOptions(model="timm/test_efficientnet", head_hidden=16, head_dim=8)
    plain = build_model(options, channels=3, size=32)
    synced = synchronize_batch_norm(copy.deepcopy(plain), torch.device("cpu"))
    assert list(synced.state_dict()) == list(plain.state_dict())
    kinds = {type(m).__name__ for m in synced.modules()}
    assert "HostSyncBatchNorm" in kinds
    assert not kinds & {"BatchNormAct2d", "BatchNorm2d", "BatchNorm1d"}
    images = torch.rand(8, 3, 32, 32)
    torch.testing.assert_close(synced.train()(images), plain.train()(images), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(synced.eval()(images), plain.eval()(images), rtol=1e-3, atol=1e-4)
