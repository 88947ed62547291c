"""What the search for a tensor that is not finite makes again: views, forward and backward passes, modules' outputs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from simclr_fast.training.step import TrainStep
from simclr_fast.training.views import Draw

COMPARED_VIEWS = 8  # that the CPU makes, too: some seconds of one core at 224 pixels
NAMED = 3  # gradients that are named
OFF = 0.1  # of the largest output of a module: more than bfloat16 rounds


def share(tensor: Tensor) -> float:
    """Of its elements, how many are not finite."""
    return (~tensor.detach().isfinite()).count_nonzero().item() / max(1, tensor.numel())


def farthest(a: Tensor, b: Tensor) -> float | None:
    """Largest difference of elements that are finite in both; None where there are none."""
    both = a.isfinite() & b.isfinite()
    difference = (a.double() - b.double()).abs()[both]
    return difference.max().item() if len(difference) else None


def of_embeddings(z: Tensor, loss: Tensor) -> dict[str, object]:
    """What embeddings [2b, D] and their loss [] look like."""
    z = z.detach().double()
    u = nn.functional.normalize(z, dim=1)
    cosines = (u @ u.T).fill_diagonal_(-1.0)
    return {
        "embeddings": share(z),
        "rows of them": (~z.isfinite()).any(1).nonzero().flatten().tolist()[:8],
        "least norm of an embedding": str(z.norm(dim=1).min().item()),
        "largest cosine of two": str(cosines.max().item()),
        "loss": str(loss.item()),
        "loss is finite": bool(loss.isfinite()),
    }


def gradients(model: nn.Module) -> dict[str, object]:
    """Whose are not finite, the first that the backward pass comes to first."""
    bad = [name for name, p in model.named_parameters() if p.grad is not None and share(p.grad) > 0]
    return {"gradients": bad[::-1][:NAMED], "gradients that are not finite": len(bad)}


def passes(step: TrainStep, views: Tensor, of: dict[str, object], *, compiled: bool) -> Tensor:
    """A forward and a backward pass: embeddings [2b, D]. `of` gets the first bad module, loss and gradients."""
    project, compare = (step.project, step.compare) if compiled else (step._project, step._compare)
    step.optimizer.zero_grad(set_to_none=True)
    step.buffers.keep()
    modules: list[dict[str, object]] = []
    with noting_bad_modules(step.model, modules) if not compiled else torch.enable_grad():
        z = project(views)
    of["module"] = modules[0] if modules else None
    loss, _ = compare(z, False)
    of |= of_embeddings(z, loss)
    loss.backward()
    of |= gradients(step.model)
    step.buffers.take_back(torch.ones((), device=views.device))
    step.optimizer.zero_grad(set_to_none=True)
    return z.detach()


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """Modules without children, in the order in which they are registered."""
    return {name: module for name, module in model.named_modules() if not any(module.children())}


@contextmanager
def hooked(model: nn.Module, note: Callable[[str, nn.Module, tuple, Tensor], None]) -> Iterator[None]:
    """Lets note(name, module, inputs, output) see every call of a module without children."""
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name, module, inputs, output))
        for name, module in leaves(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def noting_bad_modules(model: nn.Module, bad: list[dict[str, object]]) -> AbstractContextManager[None]:
    """Appends each module without children whose output is not finite, with the share of its input that was not."""

    def note(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if share(output) > 0:
            kind = type(module).__name__
            bad.append({"name": name, "kind": kind, "input": share(inputs[0]), "output": share(output)})

    return hooked(model, note)


def pass_with_parts(step: TrainStep, views: Tensor, compiler: str | Callable | None, of: dict[str, object]) -> Tensor:
    """The forward pass compiled anew, with every module's output among its results, beside eager's of the same views.

    But for these outputs the graph is the step's. Returns the embeddings [2b, D]. `of` gets the first module, in the
    order of the calls, whose output is not finite, and the first that is off by a tenth of eager's largest.
    """
    calls: list[tuple[str, nn.Module]] = []
    made: list[Tensor] = []

    def run(views: Tensor) -> tuple[Tensor, list[Tensor]]:
        made.clear()
        return step._project(views), list(made)

    step.buffers.keep()
    torch._dynamo.reset()  # what the step was compiled to has been looked at
    # Cloned: what comes after a module may work in place.
    with hooked(step.model, lambda name, module, inputs, output: made.append(output.clone())):
        with hooked(step.model, lambda name, module, inputs, output: calls.append((name, module))), torch.no_grad():
            _, expected = run(views)
        z, outputs = torch.compile(run, backend=compiler, fullgraph=True, dynamic=False)(views)
    step.buffers.take_back(torch.ones((), device=views.device))
    of |= {"embeddings": share(z), "module": None, "first that is off": None}
    for (name, module), output, right in zip(calls, outputs, expected):
        of_module = {"name": name, "kind": type(module).__name__, "output": share(output)}
        if of_module["output"] > 0 and of["module"] is None:
            of["module"] = of_module
        largest = right.abs().amax().item()
        off = (output - right).abs_().nan_to_num_(0, 0, 0).amax().item()
        if off > OFF * largest and of["first that is off"] is None:
            of["first that is off"] = of_module | {"by": off, "largest of eager": largest}
    return z.detach()


def difference_from_cpu(step: TrainStep, images: Tensor, draw: Draw, views: Tensor) -> float:
    """Of the first views of the batch; nan where some are not finite."""
    count = min(COMPARED_VIEWS, len(draw))
    part = draw[:count]
    warp = None if part.warp is None else part.warp.cpu()
    expected = step.views.apply(images[:count].cpu(), Draw(part.seed.cpu(), part.indices.cpu(), warp))
    made = torch.cat([view[:count] for view in views.chunk(2)]).cpu()
    return (made.double() - expected.double()).abs().max().item()


def bad_view(step: TrainStep, images: Tensor, draw: Draw, views: Tensor) -> dict[str, object]:
    """The first view that is not finite: its place in the batch of views, where it is bad, what was drawn for it."""
    bad = ~views.isfinite()
    place = int(bad.flatten(1).any(1).nonzero()[0])
    channel, row, column = bad[place].nonzero()[0].tolist()
    params = step.views.augment.sample(images, seed=draw.seed, indices=draw.indices)
    drawn = {name: value.flatten(0, 1)[place].tolist() for name, value in vars(params).items()}
    return {"view": place, "pixel": [channel, row, column], "share": share(views[place]), "params": drawn}
