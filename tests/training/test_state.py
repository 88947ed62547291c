"""The state of a run: the average of its weights, and the scaler of float16."""

import dataclasses

import torch

from simclr_fast.training.state import TrainState
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
        state.ema.update_parameters(state.model)
        seen.append(weight.detach().clone())
    expected = seen[0]  # the average starts at the first weights it is given
    for current in seen[1:]:
        expected = 0.9 * expected + 0.1 * current
    torch.testing.assert_close(state.evaluated.conv1.weight, expected)
    assert state.evaluated is state.ema.module.backbone


def test_only_float16_scales_the_loss() -> None:
    for autocast in (None, torch.bfloat16, torch.float16):
        state = TrainState.create(config("group"), 1, CPU, autocast=autocast)
        assert state.scaler.is_enabled() == (autocast == torch.float16)
