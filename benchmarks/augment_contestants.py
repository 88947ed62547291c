"""Who competes at augmentation: every backend of ours and the peers, each as views(images uint8 [B, 3, H, W])."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness import installed
from simclr_fast import SimCLRAugment
from simclr_fast.augmentation import IMAGENET_MEAN, IMAGENET_STD
from simclr_fast.backends import BACKENDS, why_not

NAMES = (*BACKENDS, "torchvision", "kornia", "albumentations", "dali")
MODULES = {"dali": "nvidia.dali"}  # of those that are not called as their module
# What a peer leaves out or does more coarsely, although its views have the right statistics.
NOTES = {
    "torchvision": "v2, float, per sample",
    "kornia": "one jitter order for the whole batch",
    "albumentations": "no antialiasing; one image per thread",
    "dali": "colour as one matrix: the hue is approximate",
}
# Who takes images as they are decoded, [H, W, C]; they get them so, without a transposition in the timed part.
TAKES_NHWC = ("albumentations", "dali")
Views = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """What is drawn; probabilities of 0 take an op out."""

    size: int
    crop: bool = True
    hflip: float = 0.5
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.5
    solarize_p: float = 0.0

    @property
    def scale(self) -> tuple[float, float]:
        return (0.08, 1.0) if self.crop else (1.0, 1.0)

    @property
    def ratio(self) -> tuple[float, float]:
        return (3 / 4, 4 / 3) if self.crop else (1.0, 1.0)

    @property
    def blur_kernel(self) -> int:
        return self.size // 10 | 1

    @property
    def blurred(self) -> bool:
        """Whether a blur changes anything."""
        return self.blur_p > 0 and self.blur_kernel > 1


def _ours(backend: str, recipe: Recipe, device: torch.device, channels_last: bool) -> Views:
    return SimCLRAugment(
        recipe.size,
        scale=recipe.scale,
        ratio=recipe.ratio,
        **{name: value for name, value in vars(recipe).items() if name not in ("size", "crop")},
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        backend=backend,
    )


def torchvision_chain(recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """torchvision v2's transform of an image, or of a batch with one draw for all of its images."""
    from torchvision.transforms import v2

    chain = (
        (1.0, v2.ToDtype(torch.float32, scale=True)),
        (1.0, v2.RandomResizedCrop(recipe.size, recipe.scale, recipe.ratio, antialias=True)),
        (1.0, v2.RandomHorizontalFlip(recipe.hflip)),
        (recipe.jitter_p, v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], recipe.jitter_p)),
        (recipe.gray_p, v2.RandomGrayscale(recipe.gray_p)),
        (recipe.blurred, v2.RandomApply([v2.GaussianBlur(recipe.blur_kernel, (0.1, 2.0))], recipe.blur_p)),
        (recipe.solarize_p, v2.RandomSolarize(0.5, recipe.solarize_p)),
        (1.0, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)),
    )
    return v2.Compose([op for probability, op in chain if probability])


def _torchvision(recipe: Recipe, device: torch.device, channels_last: bool) -> Views:
    transform = torchvision_chain(recipe)
    return lambda images: torch.stack([transform(image) for _ in range(2) for image in images])


def _kornia(recipe: Recipe, device: torch.device, channels_last: bool) -> Views:
    from kornia import augmentation as ka

    kernel = (recipe.blur_kernel, recipe.blur_kernel)
    chain = (
        (1.0, ka.RandomResizedCrop((recipe.size, recipe.size), recipe.scale, recipe.ratio)),
        (1.0, ka.RandomHorizontalFlip(p=recipe.hflip)),
        (recipe.jitter_p, ka.ColorJitter(0.8, 0.8, 0.8, 0.2, p=recipe.jitter_p)),
        (recipe.gray_p, ka.RandomGrayscale(p=recipe.gray_p)),
        (recipe.blurred, ka.RandomGaussianBlur(kernel, (0.1, 2.0), p=recipe.blur_p)),
        (recipe.solarize_p, ka.RandomSolarize(0.0, 0.0, p=recipe.solarize_p)),
        (1.0, ka.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))),
    )
    transform = torch.nn.Sequential(*(op for probability, op in chain if probability))
    return lambda images: transform(torch.cat([images, images]).float().div(255))


def _albumentations(recipe: Recipe, device: torch.device, channels_last: bool) -> Views:
    import albumentations as al
    import cv2
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(1)  # images run in parallel instead
    chain = [al.RandomResizedCrop((recipe.size, recipe.size), recipe.scale, recipe.ratio)]
    chain += [al.HorizontalFlip(p=recipe.hflip)]
    jitter = ((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2))
    chain += [al.ColorJitter(*jitter, p=recipe.jitter_p)] if recipe.jitter_p else []
    chain += [al.ToGray(p=recipe.gray_p)] if recipe.gray_p else []
    kernel = (recipe.blur_kernel, recipe.blur_kernel)
    chain += [al.GaussianBlur(kernel, (0.1, 2.0), p=recipe.blur_p)] if recipe.blurred else []
    chain += [al.Solarize((0.5, 0.5), p=recipe.solarize_p)] if recipe.solarize_p else []
    transform = al.Compose([*chain, al.Normalize(IMAGENET_MEAN, IMAGENET_STD), ToTensorV2()])
    pool = ThreadPoolExecutor(torch.get_num_threads())

    def views(images: Tensor) -> Tensor:
        arrays = images.permute(0, 2, 3, 1).numpy()
        return torch.stack([done["image"] for done in pool.map(lambda a: transform(image=a), [*arrays, *arrays])])

    return views


def _dali(recipe: Recipe, device: torch.device, channels_last: bool) -> Views:
    from nvidia.dali import fn, pipeline_def

    waiting: list = []

    def maybe(probability: float):
        return fn.random.coin_flip(probability=probability)

    @pipeline_def(
        num_threads=torch.get_num_threads(), device_id=None if device.type == "cpu" else 0, prefetch_queue_depth=1
    )
    def chain():
        images = fn.external_source(source=lambda: waiting.pop(), batch=True, layout="HWC", batch_size=None)
        if device.type == "cuda":
            images = images.gpu()
        images = fn.random_resized_crop(
            images, size=recipe.size, random_area=recipe.scale, random_aspect_ratio=recipe.ratio, antialias=True
        )
        if recipe.jitter_p:
            on = maybe(recipe.jitter_p)
            draw = lambda low, high: 1.0 + on * (fn.random.uniform(range=(low, high)) - 1.0)
            images = fn.color_twist(
                images,
                brightness=draw(0.2, 1.8),
                contrast=draw(0.2, 1.8),
                saturation=draw(0.2, 1.8),
                hue=on * fn.random.uniform(range=(-72.0, 72.0)),
            )
        if recipe.gray_p:
            images = fn.saturation(images, saturation=1.0 - maybe(recipe.gray_p))
        if recipe.blurred:
            sigma = fn.random.uniform(range=(0.1, 2.0))
            # DALI has no per-sample switch: a window of sigma 0.01 leaves the image as it is.
            on = maybe(recipe.blur_p)
            images = fn.gaussian_blur(images, window_size=recipe.blur_kernel, sigma=on * sigma + (1 - on) * 0.01)
        return fn.crop_mirror_normalize(
            images,
            mirror=maybe(recipe.hflip),
            mean=[255 * m for m in IMAGENET_MEAN],
            std=[255 * s for s in IMAGENET_STD],
            output_layout="HWC" if channels_last else "CHW",
        )

    pipes: dict[int, object] = {}

    def views(images: Tensor) -> Tensor:
        batch = torch.cat([images, images]).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        if len(batch) not in pipes:
            pipes[len(batch)] = chain(batch_size=len(batch), exec_dynamic=True)
            pipes[len(batch)].build()
        waiting.insert(0, batch)
        out = torch.from_dlpack(pipes[len(batch)].run()[0].as_tensor())
        return out.permute(0, 3, 1, 2) if channels_last else out

    return views


BUILDERS = {"torchvision": _torchvision, "kornia": _kornia, "albumentations": _albumentations, "dali": _dali}


def absent(name: str, recipe: Recipe, device: torch.device) -> str | None:
    """Why this contestant does not take part; None if it does."""
    if name in BACKENDS:
        return why_not(name, "augment", device)
    if not installed(MODULES.get(name, name)):
        return "not installed"
    if name == "albumentations" and device.type == "cuda":
        return "runs on the CPU only"
    if name == "dali" and recipe.solarize_p:
        return "has no solarize"
    return None


def build(name: str, recipe: Recipe, device: torch.device, channels_last: bool) -> Views:
    """The named contestant's views(images) -> [2 B, 3, size, size], float32, normalised."""
    if name in BACKENDS:
        return _ours(name, recipe, device, channels_last)
    return BUILDERS[name](recipe, device, channels_last)
