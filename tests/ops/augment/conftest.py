"""Where the augmentation kernels are tested: every backend on every device it serves."""

import pytest


@pytest.fixture(
    params=[
        pytest.param(("cpu", "cpp"), id="cpp-cpu"),
        pytest.param(("cuda", "cpp"), id="cpp-cuda", marks=pytest.mark.gpu),
        pytest.param(("cuda", "triton"), id="triton-cuda", marks=pytest.mark.gpu),
    ]
)
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(device, backend)."""
    return request.param
