"""The operators, called as they are: what compiled and Triton kernels would misread, their callers refuse by name."""

import pytest
import torch

from simclr_fast import SimCLRAugment
from simclr_fast.ops.augment import ImageBatch
from simclr_fast.ops.augment.triton_backend import TritonAugment
from tests.ops.augment.compare import noise

OPS = torch.ops.simclr_fast
AUGMENT = SimCLRAugment(6)
RAGGED = ImageBatch.of([noise(3, 8, 9), noise(3, 5, 4)])
IMAGES = noise(2, 3, 8, 9)
PARAMS = AUGMENT.sample(IMAGES, seed=1).pack()
CALL = {
    **{"images": IMAGES, "table": None, "params": PARAMS, "channels": 3, "out_height": 6, "out_width": 7},
    **{"mean": [0.5] * 3, "std": [0.5] * 3, "blur_kernel": 3, "dtype": torch.float32, "channels_last": True},
}
LAUNCHES: list = []
TRITON = TritonAugment(LAUNCHES.append)
TABLE = {"images": RAGGED.data, "table": RAGGED.table}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.int()}, "images must be uint8, float16, bfloat16 or float32"),
        ({"images": IMAGES[0]}, r"images must be \[batch, channels, height, width\] for params of 2 samples"),
        ({"images": IMAGES[:1]}, r"images must be \[batch"),
        ({"images": IMAGES[:, :1]}, r"images must be \[batch"),
        ({"images": IMAGES[:, :, :0]}, r"images must be \[batch"),
        ({"images": IMAGES[:, :, :, :0]}, r"images must be \[batch"),
        ({"table": RAGGED.table.int()} | {"images": RAGGED.data}, r"table must be a contiguous int64 \[batch, 6\]"),
        (TABLE | {"table": RAGGED.table[:1]}, "table must be"),
        (TABLE | {"table": RAGGED.table[:, :5].contiguous()}, "table must be"),
        (TABLE | {"table": RAGGED.table.T.contiguous().T}, "table must be"),
        (TABLE | {"table": RAGGED.table.flatten()}, "table must be"),
        ({"params": PARAMS.long()}, r"params must be int32 \[views, batch, 16\]"),
        ({"params": PARAMS[0]}, "params must be int32"),
        ({"params": PARAMS[:, :, :15]}, "params must be int32"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"mean": [0.5]}, r"mean and std need one number per channel \(3\)"),
        ({"std": [0.5] * 4}, r"mean and std need one number per channel \(3\)"),
        ({"out_height": 0}, "the output must have at least one pixel"),
        ({"out_width": 0}, "the output must have at least one pixel"),
        ({"blur_kernel": 0}, "blur_kernel must be odd, with half of it less than the output's sides; got 0"),
        ({"blur_kernel": 4}, "blur_kernel must be odd"),
        ({"blur_kernel": 13}, "blur_kernel must be odd"),
        ({"blur_kernel": 13, "out_height": 7, "out_width": 6}, "blur_kernel must be odd"),
        ({"dtype": torch.float64}, "dtype must be uint8, float16, bfloat16 or float32"),
        ({"dtype": torch.uint8}, "dtype must be a floating-point type"),
    ],
)
def test_augment_refuses(changes: dict, message: str) -> None:
    assert OPS.augment(*CALL.values()).shape == (4, 3, 6, 7)
    with pytest.raises(RuntimeError, match=f"augment: {message}"):
        OPS.augment(*(CALL | changes).values())
    LAUNCHES.clear()
    with pytest.raises((ValueError, TypeError), match="augment: "):
        TRITON.augment(**(CALL | changes))
    assert not LAUNCHES


def test_augment_takes_a_blur_that_the_output_just_holds() -> None:
    assert OPS.augment(*(CALL | {"blur_kernel": 11}).values()).isfinite().all()
    LAUNCHES.clear()
    TRITON.augment(**(CALL | {"blur_kernel": 11}))
    assert len(LAUNCHES) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": torch.tensor([1.0])}, r"seed must be int64 \[1\]"),
        ({"seed": torch.tensor([1, 2])}, r"seed must be int64 \[1\]"),
        ({"indices": torch.tensor([1.0, 2.0])}, r"indices must be int64 \[batch\]"),
        ({"indices": torch.tensor([1])}, r"indices must be int64 \[batch\]"),
        ({"height": 0}, "images have no pixels"),
        ({"width": 0}, "images have no pixels"),
        ({"recipe": [0.5]}, "recipe must hold 22 numbers"),
        ({"table": RAGGED.table[:1]}, "table must be a contiguous int64"),
    ],
)
def test_sample_refuses(changes: dict, message: str) -> None:
    call = {
        **{"seed": torch.tensor([1]), "indices": None, "table": None, "height": 8, "width": 9, "batch": 2, "views": 2},
        "recipe": list(AUGMENT.recipe),
    }
    assert torch.equal(OPS.augment_sample(*call.values()), PARAMS)
    with pytest.raises(RuntimeError, match=message):
        OPS.augment_sample(*(call | changes).values())
    LAUNCHES.clear()
    with pytest.raises(ValueError, match="augment.*: "):
        TRITON.augment_sample(**(call | changes))
    assert not LAUNCHES
