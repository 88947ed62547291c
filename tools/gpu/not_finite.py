"""Which tensor of a training step is the first that is not finite: module by module as it is, and compiled.

A failed step leaves the weights as they were, so its parts can be made again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from simclr_fast.training.step import TrainStep
from simclr_fast.training.views import Draw

COMPARED_VIEWS = 8  # that the CPU makes, too: some seconds of one core at 224 pixels


def where_not_finite(step: TrainStep, images: Tensor, draw: Draw) -> dict[str, object]:
    """Shares (fractions) that are not finite, in the order in which a step makes its tensors; {"first": their first}.

    "eager" and "compiled" hold what one forward and backward pass made of the same views, "eager, float32" what it made
    without autocast.
    """
    views = step._views(images, draw)
    weights = {name: share(p) for name, p in step.model.named_parameters()}
    found: dict[str, object] = {
        "weights": {name: part for name, part in weights.items() if part > 0},
        "views": share(views),
        "views, largest difference from the CPU's": difference_from_cpu(step, images, draw, views),
    }
    if found["views"] > 0:
        found["first bad view"] = bad_view(step, images, draw, views)
    found["eager"] = passes(step, views, compiled=False)
    found["compiled"] = passes(step, views, compiled=True)
    autocast, step.autocast = step.autocast, None
    found["eager, float32"] = passes(step, views.float(), compiled=False)
    step.autocast = autocast
    found["first"] = first_of(found)
    return found


def share(tensor: Tensor) -> float:
    """Of its elements, how many are not finite."""
    return (~tensor.detach().isfinite()).double().mean().item()


def passes(step: TrainStep, views: Tensor, *, compiled: bool) -> dict[str, object]:
    """A forward and a backward pass: the first bad module, shares of embeddings and gradients, the loss."""
    project, compare = (step.project, step.compare) if compiled else (step._project, step._compare)
    step.optimizer.zero_grad(set_to_none=True)
    modules: list[dict[str, object]] = []
    with noting_bad_modules(step.model, modules) if not compiled else torch.enable_grad():
        z = project(views)
    loss, _ = compare(z, False)
    u = torch.nn.functional.normalize(z.detach().double(), dim=1)
    cosines = (u @ u.T).fill_diagonal_(-1.0)
    loss.backward()
    gradients = {name: share(p.grad) for name, p in step.model.named_parameters() if p.grad is not None}
    bad = [name for name, part in gradients.items() if part > 0]
    step.optimizer.zero_grad(set_to_none=True)
    return {
        "module": modules[0] if modules else None,
        "embeddings": share(z),
        "least norm of an embedding": z.detach().double().norm(dim=1).min().item(),
        "largest cosine of two": cosines.max().item(),
        "loss": str(loss.item()),  # nan is no JSON
        # Backward comes to the last layers first.
        "gradients": bad[::-1][:3],
        "gradients that are not finite": len(bad),
    }


@contextmanager
def noting_bad_modules(model: nn.Module, bad: list[dict[str, object]]) -> Iterator[None]:
    """Appends each module without children whose output is not finite, with the share of its input that was not."""

    def hook_of(name: str):
        def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if share(output) > 0:
                kind = type(module).__name__
                bad.append({"name": name, "kind": kind, "input": share(inputs[0]), "output": share(output)})

        return note

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(hook_of(name)) for name, module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def first_of(found: dict[str, object]) -> str:
    """In words, the first tensor that is not finite."""
    if found["weights"]:
        return f"weights: {next(iter(found['weights']))}"
    if found["views"] > 0:
        return "views"
    said = []
    for kind in ("eager", "compiled", "eager, float32"):
        made = found[kind]
        if made["module"] is not None:
            said.append(f"{kind}: output of {made['module']['name']} ({made['module']['kind']})")
        elif made["embeddings"] > 0:
            said.append(f"{kind}: embeddings")
        elif made["loss"] in ("nan", "inf", "-inf"):
            said.append(f"{kind}: loss")
        elif made["gradients"]:
            said.append(f"{kind}: gradient of {made['gradients'][0]}")
    return "; ".join(said) or "none, when made again"
