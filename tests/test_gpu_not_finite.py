"""tools/gpu/not_finite.py: a fault planted in any part of a training step is named from that one step."""

import json
import math
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_fast.errors import NonFiniteLossError
from simclr_fast.losses import NTXentLoss
from tools.gpu import not_finite, page, results
from tools.gpu.bench import Bench
from tools.gpu.bench_steps import Training


def training_of(folder: Path, **how: object) -> Training:
    bench = Bench(folder / "bench.json", 600.0, dry=True)
    bench.section = "resnet18"
    return Training(bench, "resnet18", **how)


def searched(training: Training) -> dict:
    """What the search says of a first step, which fails."""
    with pytest.raises(NonFiniteLossError):
        training.first()
    training.step.watch.failed.zero_()  # so that the next step may succeed
    training.bench.save()
    saved = json.loads(training.bench.out.read_text())
    assert training.bench.found == saved
    found = training.bench.found["steps"]["resnet18"].pop("not finite")
    assert found["searching"] == "ended"
    return found


def test_a_fault_in_weights_views_or_loss_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_of(tmp_path, compiler=None)
    training.first()
    assert "steps" not in training.bench.found, "a step that is finite is not looked into"
    step, draw = training.step, training.draw()
    training.search(draw)
    fine = training.bench.found["steps"]["resnet18"].pop("not finite")
    assert fine["first"] == "none"
    assert fine["views"]["largest difference from the CPU's"] == "0.0"
    assert not any("failed" in of for of in fine.values())
    assert fine["eager, again"]["difference from eager"] == 0
    of = fine["loss"]["eager"]
    assert [of[name]["finite"] for name in ("step", "cpp", "triton", "reference")] == [True] * 4
    assert float(of["cpp"]["off by"]) < 1e-3
    assert float(of["cpp"]["gradient off by"]) < 0.05
    assert of["cpp"]["loss of copies"] == of["cpp"]["loss"]

    apply = step.views.apply
    spoilt = lambda images, draw: apply(images, draw).index_fill(0, torch.tensor([3]), math.inf)
    step.views.apply = spoilt
    found = searched(training)
    places = "cpp, reference; first view 3 at [0, 0, 0]"
    assert found["first"] == f"views; the step's not finite; made again not finite; not finite by {places}"
    kept = torch.load(tmp_path / not_finite.TENSORS)
    assert kept["bad view"].isinf().all()
    assert kept["its image"].equal(training.images[1])
    calls = iter([spoilt])
    step.views.apply = lambda images, draw: next(calls, apply)(images, draw)  # once, and never again
    assert searched(training)["first"].startswith("views; the step's not finite; made again finite; not finite by none")
    step.views.apply = apply

    forward = NTXentLoss.forward
    spoil = lambda loss, *z: forward(loss, *z) * (math.nan if loss.backend in ("auto", "cpp") else 1.0)
    monkeypatch.setattr(NTXentLoss, "forward", spoil)
    found = searched(training)
    passes = "as it happened, eager, eager, again, eager, float32"
    assert found["first"] == (f"loss of finite embeddings: {passes}; by step, cpp; finite by triton, reference")
    monkeypatch.setattr(NTXentLoss, "forward", forward)

    with torch.no_grad():
        step.model.backbone.conv1.weight.fill_(math.nan)
    assert searched(training)["first"] == "weights: backbone.conv1.weight"


def test_a_fault_of_convolutions_in_half_precision_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conv2d, count = F.conv2d, {"of weights": (16, 16, 3, 3)}

    def spoilt(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        bad = torch.is_autocast_enabled("cpu") and tuple(weight.shape) == count["of weights"]
        return conv2d(x, weight, *rest) * (math.nan if bad else 1.0)

    monkeypatch.setattr(F, "conv2d", spoilt)
    training = training_of(tmp_path)
    name, module = next(
        (name, module)
        for name, module in training.step.model.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels > 3
    )
    count["of weights"] = tuple(module.weight.shape)
    found = searched(training)
    where = f"output of {name} (Conv2d)"
    assert found["first"] == (
        f"as it happened: embeddings; eager: {where}; eager, again: {where}; compiled: embeddings; "
        f"eager, without cuDNN: {where}; eager, contiguous: {where}; finite: eager, float32"
    )
    assert found["eager"]["module"]["input"] == 0
    assert found["eager"]["difference from step"] is None, "neither is finite anywhere"


def spoiling(place: str) -> Callable:
    """A compiler that spoils the second batch norm of a forward pass, or the result of a graph without any, a loss."""

    def compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        norms = [node for node in graph.graph.nodes if node.target is F.batch_norm]
        if norms and place == "forward":
            with graph.graph.inserting_after(norms[1]):
                bad = graph.graph.call_function(torch.mul, (norms[1], math.nan))
            norms[1].replace_all_uses_with(bad, delete_user_cb=lambda user: user is not bad)
            graph.recompile()
        spoils = not norms and place == "loss"
        return lambda *given: tuple(x * math.nan if spoils else x for x in graph.forward(*given))

    return compiler


@pytest.mark.parametrize("place", ["forward", "loss"])
def test_a_fault_that_compiling_makes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(not_finite, "WITHOUT_INDUCTOR", "eager")  # to trace the backward pass takes seconds
    (tmp_path / "inductor" / "ab").mkdir(parents=True)
    (tmp_path / "inductor" / "ab" / "kernel.py").touch()
    monkeypatch.setenv(not_finite.INDUCTOR, str(tmp_path / "inductor"))
    training = training_of(tmp_path, compiler=spoiling(place))
    found = searched(training)
    if place == "forward":
        second = [name for name, m in training.step.model.named_modules() if isinstance(m, nn.BatchNorm2d)][1]
        where = f"output of {second} (BatchNorm2d)"
        assert found["first"] == (
            f"as it happened: embeddings; compiled: embeddings; compiled, module by module: {where}; "
            "compiled without inductor: finite; finite: eager, eager, again, eager, float32"
        )
        with tarfile.open(tmp_path / not_finite.CODE) as archive:
            assert archive.getnames() == ["ab/kernel.py"]
    else:
        assert found["first"] == (
            "loss of finite embeddings: as it happened, compiled; by compiled step, compiled cpp, compiled triton, "
            "compiled reference; finite by step, cpp, triton, reference"
        )


def test_what_was_found_outlives_errors_and_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = training_of(tmp_path, compiler=None)
    criterion = training.step.criterion
    training.step.criterion = lambda z0, z1: criterion(z0, z1) * math.nan

    def out_of_memory(*_: object) -> float:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(not_finite, "difference_from_cpu", out_of_memory)
    found = searched(training)
    assert found["views"]["failed"] == "out of memory"
    assert found["views"]["share"] == 0, "what was known before"
    assert found["first"].startswith("loss of finite embeddings: as it happened, eager")
    assert "compiled" not in found
    training.bench.found["steps"]["resnet18"] = {"setting": {"batch": 2}, "not finite": found}
    assert any(
        f"in a step of resnet18: {found['first']}" in text
        for text in results.failures({"jobs": {}, "bench": training.bench.found})
    )
    assert found["first"] in "\n".join(page.steps(training.bench.found))

    training.bench.dry, training.bench.end = False, 0.0
    late = searched(training)
    assert late["first"] == "loss of finite embeddings: as it happened; by none; finite by none"
    assert late["eager"].keys() == late["loss"].keys() == {"left out"}
    assert late["weights"] == found["weights"], "what costs nothing has its turn"
    training.bench.dry = True

    def lost() -> None:
        raise RuntimeError("the context is lost")

    def passes(*_: object, **__: object) -> None:
        training.bench.device.synchronize = lost
        raise RuntimeError("an illegal access")

    monkeypatch.setattr(not_finite, "passes", passes)
    with pytest.raises(RuntimeError, match="the context is lost"):
        training.search(training.draw())
    saved = json.loads(training.bench.out.read_text())["steps"]["resnet18"]["not finite"]
    assert saved["searching"] == "eager"
    assert saved["eager"]["failed"] == "RuntimeError: an illegal access"
    assert saved["weights"]["not finite"] == {}
