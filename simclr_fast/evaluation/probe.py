"""Linear classifiers trained by SGD on augmented images over a frozen encoder, several learning rates at once."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from simclr_fast.evaluation.batches import LabelledBatches
from simclr_fast.evaluation.linear import SMALLEST_STD, LinearClassifier
from simclr_fast.optim import lr_at

MOMENTUM = 0.9
REFERENCE_BATCH = 256  # lr_base is per this many images


class Standardize(nn.Module):
    """Brings features [B, D] to mean 0 and variance 1, by fixed statistics of training features [N, D].

    A linear map, so that the classifier on top stays linear in the features; with it one grid of learning rates suits
    every encoder (as the batch norm without parameters of He et al. 2022, arXiv:2111.06377, A.1).
    """

    def __init__(self, features: Tensor):
        super().__init__()
        std = features.std(dim=0)
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer(
            "std", std.clamp_min(0.01 * std.mean()).clamp_min(SMALLEST_STD)
        )  # blank pixels hardly vary

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


@dataclasses.dataclass(frozen=True)
class Probe:
    """A classifier on top of a frozen encoder, and the learning rate per 256 images that trained it."""

    lr_base: float
    classifier: LinearClassifier


def train_probes(
    encoder: nn.Module,
    features: int,
    batches: LabelledBatches,
    classes: int,
    *,
    steps: int,
    batch_size: int,
    lr_base: tuple[float, ...],
    title: str = "",
) -> list[Probe]:
    """One classifier per learning rate, all trained on the same features by SGD-Nesterov with a cosine, no decay.

    encoder: [B, C, S, S] -> [B, features]; runs in eval mode without gradients, so neither its parameters nor its batch
    norm statistics move.
    """
    device = batches.labels.device
    encoder.eval()
    weight = torch.zeros(len(lr_base), classes, features, device=device, requires_grad=True)
    bias = torch.zeros(len(lr_base), 1, classes, device=device, requires_grad=True)
    peaks = torch.tensor(lr_base, device=device).view(-1, 1, 1) * batch_size / REFERENCE_BATCH
    momenta = [torch.zeros_like(p) for p in (weight, bias)]
    for step, (images, labels) in enumerate(tqdm(batches.steps(steps), total=steps, desc=title, unit="step")):
        with torch.no_grad():
            x = encoder(images).float()
        logits = torch.einsum("bd,kcd->kbc", x, weight) + bias  # [K, B, classes]
        # The sum of the mean losses: each classifier's gradient is that of its own loss.
        loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(lr_base)), reduction="sum") / len(labels)
        grads = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            for p, grad, momentum in zip((weight, bias), grads, momenta):
                momentum.mul_(MOMENTUM).add_(grad)
                p.sub_(peaks * lr_at(step, 1.0, steps, 0) * (grad + MOMENTUM * momentum))  # Nesterov, as torch's SGD
    return [
        Probe(lr, LinearClassifier(w.detach(), b.detach()[0]))
        for lr, w, b in zip(lr_base, weight.unbind(), bias.unbind())
    ]


def best_probe(probes: list[Probe], features: Tensor, labels: Tensor) -> tuple[Probe, float]:
    """The probe with the highest accuracy on held-out features [N, D], and that accuracy."""
    scores = [(probe.classifier.predict(features) == labels).float().mean().item() for probe in probes]
    best = max(range(len(probes)), key=scores.__getitem__)
    return probes[best], scores[best]
