"""Features of a frozen encoder, and of its two baselines: the pixels themselves and the encoder as initialised."""

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_fast.config import AugmentOptions
from simclr_fast.data import EncodedImages, ImageArrays

DECODE_THREADS = 16


class Preprocess:
    """Test-time views: resize the shorter side to size * 8/7 and cut the centre out, as published; then normalise.

    Images that are `size` x `size` already are only normalised.
    """

    def __init__(self, size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        self.size = size
        self.mean = torch.tensor(mean).view(1, -1, 1, 1)
        self.std = torch.tensor(std).view(1, -1, 1, 1)

    @staticmethod
    def of(augment: AugmentOptions) -> "Preprocess":
        """The test-time view that belongs to a recipe."""
        return Preprocess(augment.img_size, mean=augment.mean, std=augment.std)

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 [B, C, H, W] to float32 [B, C, size, size] on the same device."""
        x = images.float() / 255
        height, width = x.shape[-2:]
        if (height, width) != (self.size, self.size):
            shorter = round(self.size * 8 / 7)
            scale = shorter / min(height, width)
            shape = (max(shorter, round(height * scale)), max(shorter, round(width * scale)))
            x = F.interpolate(x, shape, mode="bilinear", antialias=True)
            top, left = (shape[0] - self.size) // 2, (shape[1] - self.size) // 2
            x = x[..., top : top + self.size, left : left + self.size]
        return (x - self.mean.to(x.device)) / self.std.to(x.device)


class Pixels(nn.Module):
    """The raw-pixel baseline: the image itself, averaged down to at most 32 pixels a side, as a vector."""

    def forward(self, images: Tensor) -> Tensor:
        side = min(32, images.shape[-1])
        return F.adaptive_avg_pool2d(images, side).flatten(1)


@torch.no_grad()
def embed(
    encoder: nn.Module,
    source: ImageArrays | EncodedImages,
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
    with ThreadPoolExecutor(DECODE_THREADS) as pool:  # decoding releases the interpreter's lock
        for part in indices.split(batch_size):
            if isinstance(source, ImageArrays):
                images = preprocess(source.images[part].to(device))
            else:
                decoded = pool.map(source.decoded, part.tolist())
                images = torch.cat([preprocess(image[None].to(device)) for image in decoded])
            images = images.to(memory_format=torch.channels_last)
            found = encoder(images).float().cpu()
            if features is None:  # one allocation: to gather parts and join them would take twice the memory
                features = found.new_empty(len(indices), found.shape[1])
            features[done : done + len(part)] = found
            done += len(part)
    encoder.train(was_training)
    return features
