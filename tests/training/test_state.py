"""The state of a run: the average of its weights, the scaler of float16, and what a checkpoint brings back of it."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simclr_fast.config import Config
from simclr_fast.data import EncodedImages, ImageArrays
from simclr_fast.errors import CheckpointError
from simclr_fast.training.state import IDENTITY_SAMPLE, TrainState, data_identity
from tests.training.exactness import config

CPU = torch.device("cpu")


def test_average_of_the_weights_has_its_closed_form() -> None:
    options = config("group")
    options = dataclasses.replace(
        options, optimization=dataclasses.replace(options.optimization, model_ema=True, model_ema_decay=0.9)
    )
    state = TrainState.create(options, 1, CPU, autocast=None)
    weight = state.model.backbone.conv1.weight
    seen = []
    for _ in range(4):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        if not seen:
            start = state.evaluated.conv1.weight.clone()
            state.ema.update_parameters(state.model, skip=torch.ones(()))
            assert torch.equal(state.evaluated.conv1.weight, start)
            state.ema.begun = False
        state.ema.update_parameters(state.model, skip=torch.zeros(()) if len(seen) % 2 == 0 else None)
        seen.append(weight.detach().clone())
        if len(seen) == 1:  # it starts at the first weights it is given
            assert torch.equal(state.evaluated.conv1.weight, weight)
    expected = seen[0]
    for current in seen[1:]:
        expected = 0.9 * expected + 0.1 * current
    torch.testing.assert_close(state.evaluated.conv1.weight, expected)
    assert state.evaluated is state.ema.module.backbone
    assert state.ema.n_averaged.item() == 4, "one that is skipped does not count"
    fresh, again = (TrainState.create(options, 1, CPU, autocast=None).ema for _ in range(2))
    for source, has_begun in ((state.ema, True), (fresh, False)):
        again.load_state_dict(source.state_dict())
        assert again.begun == has_begun


def test_only_float16_scales_the_loss() -> None:
    for autocast in (None, torch.bfloat16, torch.float16):
        state = TrainState.create(config("group"), 1, CPU, autocast=autocast)
        assert state.scaler.is_enabled() == (autocast == torch.float16)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_is_the_one_asked_for(channels_last: bool) -> None:
    state = TrainState.create(config("group", channels_last=channels_last), 1, CPU, autocast=None)
    weight = state.model.backbone.blocks[1].conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weight.is_contiguous() != channels_last


def made(options: Config | None = None, autocast: torch.dtype | None = None) -> TrainState:
    return TrainState.create(options or config("batch"), 1, CPU, autocast=autocast)


def test_the_scaler_goes_on_where_it_was() -> None:
    state = made(autocast=torch.float16)
    state.scaler.scale(torch.ones(()))  # makes the scaler's tensors
    state.scaler.update(512.0)
    stored = state.checkpoint(config("batch"))
    again = made(autocast=torch.float16)
    again.restore(stored, config("batch"), "x")
    assert again.scaler.get_scale() == 512.0
    with pytest.raises(
        CheckpointError, match=r"x: the state of its optimizer, scaler \(--amp-dtype\) or average does not"
    ):
        made(autocast=torch.float16).restore(made().checkpoint(config("batch")), config("batch"), "x")


def test_a_restored_state_is_the_stored_one() -> None:
    options = config("batch")
    options = dataclasses.replace(options, optimization=dataclasses.replace(options.optimization, model_ema=True))
    state = made(options)
    for p in state.model.parameters():
        p.grad = torch.randn_like(p)
    state.optimizer.step()
    state.ema.update_parameters(state.model)
    state.step, state.seconds = 7, 12.5
    stored = copy.deepcopy(state.checkpoint(options))
    upcoming = torch.rand(4)

    again = made(options)
    again.restore(stored, options, "x")
    assert torch.equal(torch.rand(4), upcoming), "the random generator goes on where it was"
    assert (again.step, again.seconds) == (7, 12.5)
    found = again.checkpoint(options)
    for part in ("model", "ema"):
        assert all(torch.equal(found[part][name], value) for name, value in stored[part].items())
        assert found[part].keys() == stored[part].keys()
    momenta = [[entry["momentum_buffer"] for entry in c["optimizer"]["state"].values()] for c in (found, stored)]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
    assert len(momenta[0]) == len(list(state.model.parameters()))


@pytest.mark.parametrize("key", ["step", "seconds", "model", "optimizer", "scaler", "random", "config"])
@pytest.mark.parametrize("value", [None, "text", [1]])
def test_a_checkpoint_without_a_part_of_the_state_is_refused(key: str, value: object) -> None:
    content = made().checkpoint(config("batch"))
    with pytest.raises(CheckpointError, match=rf"x: not a checkpoint of simclr_fast \(no '{key}' in it\)"):
        made().restore(content | {key: value}, config("batch"), "x")


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": {}},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"scaler": {"scale": "x"}},
        {"random": {}},
        {"random": {"cpu": torch.zeros(3), "cuda": None}},
        {"config": {}},
        {"config": {"augment": 3, "model": {}, "optimization": {}, "run": {}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_parts_that_do_not_fit_are_one_kind_of_error(change: dict) -> None:
    options = config("batch")
    content = made(autocast=torch.float16).checkpoint(options)
    with pytest.raises(CheckpointError, match="x: "):
        made(autocast=torch.float16).restore(content | change, options, "x")


@pytest.mark.parametrize(
    ("group", "change", "said"),
    [
        ("augment", {"scale": (0.5, 1.0)}, r"--scale: now \(0.5, 1.0\), in the checkpoint \(0.4, 1.0\)"),
        ("model", {"sync_bn": False}, "--sync-bn: now False, in the checkpoint True"),
        ("optimization", {"lr": 0.2}, "--lr: now 0.2, in the checkpoint 0.1"),
        ("optimization", {"epochs": 44}, "--epochs: now 44, in the checkpoint 45; pass as many or more"),
        ("run", {"seed": 5}, "--seed: now 5, in the checkpoint 0"),
        ("optimization", {"epochs": 46}, None),
        ("model", {"pretrained": "DEFAULT"}, None),
        ("speed", {"channels_last": False}, None),
        ("run", {"output": Path("elsewhere"), "checkpoint_hist": 9}, None),
        ("data", {"workers": 3}, None),
    ],
)
def test_what_decides_the_result_must_be_as_it_was_and_the_rest_need_not(group: str, change: dict, said: str) -> None:
    before = config("batch")
    after = dataclasses.replace(before, **{group: dataclasses.replace(getattr(before, group), **change)})
    content = made(before).checkpoint(before)
    if said is None:
        made(after).restore(content, after, "x")
        return
    with pytest.raises(CheckpointError, match=rf"^x: other options .* reuse the weights\):\n  {said}$"):
        made(after).restore(content, after, "x")


def digits(seed: int, count: int = 100) -> ImageArrays:
    generator = torch.Generator().manual_seed(seed)
    return ImageArrays(torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (digits(1), "digest of the training images: now"),
        (digits(0, count=101), "training images: now 101, in the checkpoint 100"),
        (ImageArrays(digits(0).images.flip(0)), "digest of the training images: now"),
        (ImageArrays(digits(0).images.expand(-1, 3, -1, -1)), "channels: now 3, in the checkpoint 1"),
    ],
    ids=["other images", "more images", "another order", "colour"],
)
def test_a_run_does_not_go_on_with_other_images(other: ImageArrays, said: str) -> None:
    state = made()
    state.data = data_identity(digits(0))
    content = state.checkpoint(config("batch"))
    state.data = data_identity(ImageArrays(digits(0).images.clone()))
    state.restore(content, config("batch"), "x")
    state.data = data_identity(other)
    with pytest.raises(CheckpointError, match="cannot go on exactly") as refusal:
        state.restore(content, config("batch"), "x")
    assert said in str(refusal.value)


def test_files_are_told_apart_by_their_bytes_and_not_by_their_place(tmp_path: Path) -> None:
    def source(name: str, *changed: int) -> EncodedImages:
        def read(index: int) -> bytes:
            if index == 2:
                raise OSError("broken disk")
            return bytes([index % 256, index in changed])

        return EncodedImages(1000, read=read, name=lambda index: f"{name}/{index}")

    first = data_identity(source("a"))
    assert data_identity(source("b")) == first
    for changed in (0, 999):  # the ends are always looked at, and as many between as the sample has
        assert data_identity(source("a", changed)) != first
    assert sum(data_identity(source("a", k)) != first for k in range(1000)) == IDENTITY_SAMPLE


def test_one_image_is_a_data_set_too() -> None:
    one = data_identity(digits(0, count=1))
    assert one["images"] == 1
    assert one != data_identity(digits(1, count=1))


def test_the_average_covers_the_buffers() -> None:
    options = config("batch")
    options = dataclasses.replace(
        options, optimization=dataclasses.replace(options.optimization, model_ema=True, model_ema_decay=0.9)
    )
    state = made(options)
    mean: Tensor = state.model.backbone.bn1.running_mean
    for value in (1.0, 2.0):
        mean.fill_(value)
        state.ema.update_parameters(state.model)
    torch.testing.assert_close(state.evaluated.bn1.running_mean, torch.full_like(mean, 1.1))
