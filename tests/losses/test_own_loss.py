"""The loss that docs/losses.md makes of the primitive, run as it stands there."""

import re
from pathlib import Path

import torch

from tests.helpers import relative_error

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"


def test_the_uniformity_loss_of_the_page() -> None:
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], names)
    z = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    u = torch.nn.functional.normalize(z, dim=1)
    expected = torch.pdist(u).square().mul(-2).exp().mean().log()  # as Wang and Isola write it
    loss = names["uniformity"](z)
    assert relative_error(loss, expected) <= 1e-12
    assert relative_error(*(torch.autograd.grad(x, z)[0] for x in (loss, expected))) <= 1e-10
