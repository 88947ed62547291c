"""Names the first tensor of a failed training step that is not finite, and what it takes to make it so.

Evidence comes first: what the step itself left. A failed step leaves the weights as they were, so then its parts are
made again, each in a stage of its own: cheap ones first, and those that compile only where they can tell something.
What a stage finds is saved before the next begins. An error, too little time or the end of the process leaves all
findings so far, and "searching" names the stage.
"""

import os
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from simclr_fast.training.step import StepResult, TrainStep
from simclr_fast.training.views import Draw
from tools.gpu.bench import Bench
from tools.gpu.not_finite_loss import Loss, loss_by_all
from tools.gpu.not_finite_parts import (
    bad_view,
    difference_from_cpu,
    farthest,
    gradients,
    of_embeddings,
    pass_with_parts,
    passes,
    share,
)
from tools.gpu.not_finite_verdict import first_of

BACKENDS = ("cpp", "triton", "reference")
WITHOUT_INDUCTOR = "aot_eager"  # what inductor is given, run as it is
# Beside the figures: embeddings [2b, D], a bad view and its image; what inductor generated.
TENSORS, CODE = "not_finite.pt", "not_finite_code.tar.gz"
INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class FailedStep:
    """What the search looks at.

    images, draw: what the step was given. losses: by name, each a loss of views z0 and z1 [b, D]; "step" is the step's
    own. compiler: of torch.compile, what the step was compiled with; None where it was not. views, result: what the
    step made; None where it has been made up for by others since.
    """

    step: TrainStep
    images: Tensor
    draw: Draw
    losses: dict[str, Loss]
    compiler: str | Callable | None
    views: Tensor | None = None
    result: StepResult | None = None


class Search:
    """Fills `found` stage by stage; `found["first"]` is the verdict so far."""

    def __init__(self, failed: FailedStep, bench: Bench, found: dict):
        self.failed, self.bench, self.found = failed, bench, found
        self.step = failed.step
        self.views = failed.views
        self.z: dict[str, Tensor] = {}
        self.tensors: dict[str, object] = {}

    def run(self) -> None:
        """All stages for which there is a reason and time."""
        for name, seconds, reason, stage in (
            ("as it happened", 0, self.happened, self.as_it_happened),
            ("weights", 0, None, self.weights),
            ("views", 0, None, self.make_views),
            ("eager", 5, None, lambda of: self.passed(of, "eager")),
            ("eager, again", 5, None, lambda of: self.passed(of, "eager, again")),
            ("loss", 5, None, self.loss),
            ("compiled", 5, self.compiled, lambda of: self.passed(of, "compiled", compiled=True)),
            ("eager, float32", 5, None, self.float32),
            ("eager, without cuDNN", 10, self.eager_is_bad, self.without_cudnn),
            ("eager, contiguous", 5, self.eager_is_bad, self.contiguous),
            ("loss, compiled alone", 20, self.loss_is_bad, self.compiled_loss),
            ("inductor's code", 0, self.only_compiled, self.inductor_code),
            ("compiled, module by module", 60, self.only_compiled, lambda of: self.parts(of, self.failed.compiler)),
            ("compiled without inductor", 40, self.only_compiled, lambda of: self.parts(of, WITHOUT_INDUCTOR)),
        ):
            if reason is not None and not reason():
                continue
            entry = self.found[name] = {}
            if seconds and not self.bench.dry and self.bench.left() < seconds:
                entry["left out"] = f"{self.bench.left():.0f} s were left"
                continue
            self.found["searching"] = name
            self.bench.save()
            begin = time.monotonic()
            with self.bench.guarded(entry, f"where it is not finite, {name}"):
                stage(entry)
            with self.bench.guarded(self.found, "the verdict"):
                self.found["first"] = first_of(self.found)
                torch.save(self.tensors, self.bench.out.with_name(TENSORS))
            self.bench.say(f"not finite, {name}, {time.monotonic() - begin:.1f} s: {entry}")
        self.found["searching"] = "ended"
        self.bench.save()
        self.bench.say(f"first that is not finite: {self.found['first']}")

    # ------------------------------------------------------------------------------------------ reasons

    def happened(self) -> bool:
        """Whether there is what the step left."""
        return self.failed.result is not None

    def compiled(self) -> bool:
        """Whether the step was."""
        return self.failed.compiler is not None

    def eager_is_bad(self) -> bool:
        """Whether the pass as it is made embeddings that are not finite."""
        return self.found["eager"].get("embeddings", 0) > 0

    def only_compiled(self) -> bool:
        """Whether the compiled forward pass, and no other, is bad."""
        bad = [self.found.get(name, {}).get("embeddings", 0) > 0 for name in ("as it happened", "compiled")]
        return self.compiled() and any(bad) and self.found["eager"].get("embeddings") == 0

    def loss_is_bad(self) -> bool:
        """Whether any loss of finite embeddings was not finite."""
        passes = [self.found.get(name, {}) for name in ("as it happened", "eager", "compiled")]
        bad = any(of.get("embeddings") == 0 and not of.get("loss is finite", True) for of in passes)
        return self.compiled() and bad

    # ------------------------------------------------------------------------------------------ stages

    def as_it_happened(self, of: dict[str, object]) -> None:
        """Views, embeddings, loss and gradients that the step left; nothing is made again."""
        result = self.failed.result
        of["views"] = share(self.failed.views)
        self.keep("step", result.z)
        of |= of_embeddings(result.z, result.loss)
        of |= {"gradient norm": str(result.grad_norm.item()), **gradients(self.step.model)}

    def weights(self, of: dict[str, object]) -> None:
        """Shares of parameters and buffers that are not finite."""
        named = {**dict(self.step.model.named_parameters()), **dict(self.step.model.named_buffers())}
        shares = {name: share(tensor) for name, tensor in named.items()}
        of["not finite"] = {name: part for name, part in shares.items() if part > 0}

    def make_views(self, of: dict[str, object]) -> None:
        """The views again, from the same draw: the same, finite, the CPU's?"""
        images, draw = self.failed.images, self.failed.draw
        made = self.step._views(images, draw)
        self.views = made if self.views is None else self.views
        of |= {"share": share(made), "largest": made.float().nan_to_num(0, 0, 0).abs().max().item()}
        of["the step's"] = torch.allclose(made, self.views, rtol=0, atol=0, equal_nan=True)
        worst = next((views for views in (self.views, made) if share(views) > 0), None)
        if worst is not None:
            of["first bad view"] = view = bad_view(self.step, images, draw, worst)
            image = images[view["view"] % len(images)]
            self.tensors |= {"bad view": worst[view["view"]].cpu(), "its image": image.cpu()}
            of["shares by backend"] = self.shares_of_views()
        of["largest difference from the CPU's"] = str(difference_from_cpu(self.step, images, draw, made))

    def shares_of_views(self) -> dict[str, object]:
        """Of every backend's views, how many numbers are not finite."""
        augment, found = self.step.views.augment, {}
        before = augment.backend
        for name in BACKENDS:
            found[name] = {}
            with self.bench.guarded(found[name], f"views by {name}"):
                augment.backend = name
                found[name]["share"] = share(self.step.views.apply(self.failed.images, self.failed.draw))
        augment.backend = before
        return found

    def passed(self, of: dict[str, object], name: str, *, compiled: bool = False, views: Tensor | None = None) -> None:
        """One forward and backward pass of the step's views, and how far its embeddings are from the others'."""
        z = passes(self.step, self.views if views is None else views, of, compiled=compiled)
        of |= {f"difference from {other}": farthest(z, made) for other, made in self.z.items()}
        self.keep(name, z)

    def float32(self, of: dict[str, object]) -> None:
        """Without autocast."""
        autocast, self.step.autocast = self.step.autocast, None
        try:
            self.passed(of, "eager, float32", views=self.views.float())
        finally:
            self.step.autocast = autocast

    def without_cudnn(self, of: dict[str, object]) -> None:
        """PyTorch's own convolutions and norms."""
        with torch.backends.cudnn.flags(enabled=False):
            self.passed(of, "eager, without cuDNN")

    def contiguous(self, of: dict[str, object]) -> None:
        """Weights as they are, views in the other layout."""
        self.passed(of, "eager, contiguous", views=self.views.contiguous())

    def loss(self, of: dict[str, object]) -> None:
        """Of the embeddings that were made so far, by every backend."""
        for name, z in self.z.items():
            if share(z) == 0:
                of[name] = loss_by_all(z, self.failed.losses, self.bench.guarded)

    def compiled_loss(self, of: dict[str, object]) -> None:
        """The same, each loss compiled by itself, of the first embeddings that are finite."""
        name, z = next((name, z) for name, z in self.z.items() if share(z) == 0)
        of[name] = loss_by_all(z, self.failed.losses, self.bench.guarded, self.failed.compiler)

    def inductor_code(self, of: dict[str, object]) -> None:
        """A copy of it, to be read where there is no GPU."""
        folder = Path(os.environ[INDUCTOR])
        files = sorted(folder.rglob("*.py"))
        with tarfile.open(self.bench.out.with_name(CODE), "w:gz") as archive:
            for file in files:
                archive.add(file, file.relative_to(folder))
        of["files"] = len(files)

    def parts(self, of: dict[str, object], compiler: str | Callable | None) -> None:
        """The forward pass compiled with the outputs of all modules, as differences from eager's."""
        self.keep(f"with parts, by {compiler}", pass_with_parts(self.step, self.views, compiler, of))

    def keep(self, name: str, z: Tensor) -> None:
        """Embeddings for later stages and for the file of tensors."""
        self.z[name] = z.detach()
        self.tensors[f"embeddings, {name}"] = z.detach().cpu()
