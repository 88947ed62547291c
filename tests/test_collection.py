"""What pytest imports."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What a machine with a GPU may lack: no test that needs the device is about these alone.
ABSENT = (
    *("tyro", "mlxtend", "datasets", "torchmetrics", "pycocotools", "rich", "tqdm", "tensorboard", "safetensors"),
    *("matplotlib", "sklearn", "onnx", "onnxscript", "onnxruntime", "markdown", "wandb", "mlflow"),
)


def test_gpu_tests_are_collected_without_the_optional_packages() -> None:
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); import pytest;"
        "sys.exit(pytest.main(['-m', 'gpu', '--collect-only', '-q', '-p', 'no:cacheprovider']))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    for name in ("ntxent/test_cuda_gpu", "ntxent/test_triton_gpu", "augment/test_parity", "training/test_cuda"):
        assert f"{name}.py::" in run.stdout
