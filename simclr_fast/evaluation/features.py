"""Features of a frozen encoder, and of its two baselines: the pixels themselves and the encoder as initialised."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_fast.augmentation import SimCLREval
from simclr_fast.config import AugmentOptions
from simclr_fast.data import Source

TAKEN = 64  # images held at a time as they are: photographs of many megapixels would fill the memory


class Preprocess:
    """Test-time views: resize the shorter side to size * 8/7 and cut the centre out, as published; then normalise.

    Images that are `size` x `size` already are only normalised.
    """

    def __init__(self, size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        self.size = size
        self.normalize = SimCLREval(size, mean=mean, std=std)
        self.resize = SimCLREval(size, resize=round(size * 8 / 7), mean=mean, std=std)

    @staticmethod
    def of(augment: AugmentOptions) -> "Preprocess":
        """The test-time view that belongs to a recipe."""
        return Preprocess(augment.img_size, mean=augment.mean, std=augment.std)

    def __call__(self, images: Tensor | list[Tensor]) -> Tensor:
        """Images uint8 [B, C, H, W], or a list of B images [C, H, W], to float32 [B, C, size, size] on their device."""
        fits = torch.tensor([image.shape[-2:] == (self.size, self.size) for image in images])
        if fits.all() or not fits.any():
            return (self.normalize if fits.all() else self.resize)(images)
        views = torch.empty(len(images), len(images[0]), self.size, self.size, device=images[0].device)
        for places, transform in ((fits.nonzero(), self.normalize), ((~fits).nonzero(), self.resize)):
            views[places.flatten()] = transform([images[place] for place in places.flatten().tolist()])
        return views


class Pixels(nn.Module):
    """The raw-pixel baseline: the image itself, averaged down to at most 32 pixels a side, as a vector."""

    def forward(self, images: Tensor) -> Tensor:
        side = min(32, images.shape[-1])
        return F.adaptive_avg_pool2d(images, side).flatten(1)


@torch.no_grad()
def embed(
    encoder: nn.Module,
    source: Source,
    preprocess: Preprocess,
    device: torch.device,
    indices: Tensor | None = None,
    batch_size: int = 500,
) -> Tensor:
    """Features [N, D], float32 on the CPU, of the images at `indices` (all by default), in eval mode."""
    was_training = encoder.training
    encoder.eval()
    indices = torch.arange(len(source)) if indices is None else indices
    features: Tensor | None = None
    done = 0
    for part in indices.split(batch_size):
        images = torch.cat([preprocess(source.take(few, device)) for few in part.split(TAKEN)])
        found = encoder(images.to(memory_format=torch.channels_last)).float().cpu()
        if features is None:  # one allocation: to gather parts and join them would take twice the memory
            features = found.new_empty(len(indices), found.shape[1])
        features[done : done + len(part)] = found
        done += len(part)
    encoder.train(was_training)
    return features
