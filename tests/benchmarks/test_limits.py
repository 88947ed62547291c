"""What a machine can do at best, as the benchmarks gauge it."""

import pytest
import torch

from benchmarks import limits

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("dtype", "device", "precision", "products"),
    [
        (torch.float32, CUDA, "highest", 3),
        (torch.float32, CUDA, "high", 1),
        (torch.float16, CUDA, "highest", 0),
        (torch.float64, CUDA, "highest", 0),
        (torch.float32, CPU, "highest", 0),
    ],
)
def test_float32_on_a_gpu_is_made_of_products_in_half(
    dtype: torch.dtype, device: torch.device, precision: str, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    assert limits.half_products(dtype, device) == products


@pytest.mark.parametrize("products", [0, 1, 3])
def test_gauge_counts_its_products(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(call, device: torch.device) -> float:
        assert call().dtype == (torch.float16 if products else torch.float32)
        return 0.5

    monkeypatch.setattr(limits, "half_products", lambda dtype, device: products)
    monkeypatch.setattr(limits, "_seconds", seconds)
    assert limits.multiply_add_gauge(torch.float32, CPU, size=8)() == 8**3 / 0.5 / max(products, 1)
