"""Folders of JPEG files to read in benchmarks: synthetic pictures that compress, and decode, as photographs do."""

import io
from pathlib import Path

import torch
from PIL import Image

DISTINCT = 64  # pictures that are made; the other files hold the same


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Noise whose spectrum falls as that of photographs, so that it compresses as they do: 500 x 375 in some 100 kB."""
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    frequency = torch.fft.fftfreq(height)[:, None].hypot(torch.fft.rfftfreq(width))
    frequency[0, 0] = 1
    image = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency**1.2, s=(height, width))
    image = (image - image.mean()) / image.std() * 45 + 128
    return Image.fromarray(image.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def write_files(folder: Path, files: int, height: int, width: int) -> None:
    """So many files in one class, as torchvision.datasets.ImageFolder reads them."""
    (folder / "photographs").mkdir(parents=True)
    for number in range(files):
        path = folder / "photographs" / f"{number:06d}.jpg"
        if number < DISTINCT:
            encoded = io.BytesIO()
            photograph(height, width, number).save(encoded, "JPEG", quality=92)
            path.write_bytes(encoded.getvalue())
        else:
            path.write_bytes((path.parent / f"{number % DISTINCT:06d}.jpg").read_bytes())
