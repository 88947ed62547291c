"""The public augmentation: `SimCLRAugment` for training views, `SimCLREval` for the test-time transform."""

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simclr_fast.backends import check_backend
from simclr_fast.ops.augment import AugmentParams, AugmentRecipe, ImageBatch, augment, sample
from simclr_fast.ops.augment.params import FLAGS, JITTER_OPS, PACKED_WORDS, pack_window

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_OUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The strengths of the SimCLR paper for s = 1: brightness, contrast, saturation, hue.
_JITTER = (0.8, 0.8, 0.8, 0.2)
MAX_VIEWS = 8

Images = Tensor | Sequence[Tensor]


class _FusedTransform(nn.Module):
    """What the two transforms share: the output's size, normalisation, type and layout."""

    def __init__(
        self,
        size: int | tuple[int, int],
        mean: float | Sequence[float],
        std: float | Sequence[float],
        dtype: torch.dtype | None,
        memory_format: torch.memory_format,
        backend: str,
    ):
        super().__init__()
        self.size = _size(size, "size")
        self.mean, self.std = _per_channel(mean, "mean"), _per_channel(std, "std")
        if min(self.std) <= 0:
            raise ValueError(f"std={std} must be > 0; pass 1.0 for no scaling")
        self.dtype = torch.float32 if dtype is None else dtype
        if self.dtype not in _OUT_DTYPES:
            raise TypeError(f"dtype={dtype} is not served; pass torch.float32, torch.float16 or torch.bfloat16")
        if memory_format not in (torch.channels_last, torch.contiguous_format):
            raise ValueError(
                f"memory_format={memory_format} is not served; pass torch.channels_last or torch.contiguous_format"
            )
        check_backend(backend)
        self.channels_last = memory_format == torch.channels_last
        self.backend = backend

    @property
    def memory_format(self) -> torch.memory_format:
        """Of the output; no attribute, because pickle's protocols before the fourth take no torch.memory_format."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def _run(self, images: ImageBatch, packed: Tensor, blur_kernel: int) -> Tensor:
        mean, std = (
            self._fit(values, name, images.channels) for name, values in (("mean", self.mean), ("std", self.std))
        )
        return augment(images, packed, self.size, mean, std, blur_kernel, self.dtype, self.channels_last, self.backend)

    @staticmethod
    def _fit(values: tuple[float, ...], name: str, channels: int) -> list[float]:
        if len(values) not in (1, channels):
            raise ValueError(
                f"{name} has {len(values)} values, the images have {channels} channel(s); pass one, as {name}=0.5"
            )
        return list(values) * (channels // len(values))

    def extra_repr(self) -> str:
        """The settings that differ between uses."""
        return f"size={self.size}, dtype={self.dtype}, memory_format={self.memory_format}, backend={self.backend!r}"


class SimCLRAugment(_FusedTransform):
    """The SimCLR augmentation of a whole batch, all views in one fused call, each sample with its own draws.

    Equal to torchvision.transforms.v2 on float tensors, applied per sample: RandomResizedCrop (antialiased bilinear),
    RandomHorizontalFlip, ColorJitter in a random order, RandomGrayscale, GaussianBlur, RandomSolarize, Normalize.
    Not differentiable.

    Args:
        size: height and width of the output, or one number for both.
        scale: range of the crop's area, as a fraction of the image's.
        ratio: range of the crop's width / height.
        hflip: probability of a horizontal flip.
        strength: the paper's s: 1.0 for ImageNet, 0.5 for CIFAR.
        jitter: (brightness, contrast, saturation, hue): factors are uniform in [max(0, 1 - x), 1 + x], the hue shift in
            [-x, x] turns. None is (0.8, 0.8, 0.8, 0.2), as in the paper. Both are multiplied by `strength`.
        jitter_p, gray_p, blur_p, solarize_p: probabilities.
        blur_sigma: range of the blur's sigma, in output pixels.
        blur_kernel: odd number of taps; None is a tenth of the output's height, made odd, or the most that the output's
            reflection holds (1 means no blur).
        solarize_threshold: values at or above it are inverted, in [0, 1].
        mean, std: per channel, or one number for all; the defaults are ImageNet's.
        views: views per image, 1..8.
        dtype: of the output: float32 (None), float16 or bfloat16.
        memory_format: of the output: torch.channels_last or torch.contiguous_format.
        backend: "auto", "cpp", "triton" or "reference"; see simclr_fast.backends.

    Examples:
        >>> aug = SimCLRAugment(32, strength=0.5, blur_p=0.0)
        >>> views = aug(images)                 # uint8 [B, 3, H, W] -> [2 B, 3, 32, 32]
        >>> z0, z1 = model(views).chunk(2)      # rows i and i + B are a positive pair
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        strength: float = 1.0,
        jitter: tuple[float, float, float, float] | None = None,
        jitter_p: float = 0.8,
        gray_p: float = 0.2,
        blur_p: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_kernel: int | None = None,
        solarize_p: float = 0.0,
        solarize_threshold: float = 0.5,
        mean: float | Sequence[float] = IMAGENET_MEAN,
        std: float | Sequence[float] = IMAGENET_STD,
        views: int = 2,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.channels_last,
        backend: str = "auto",
    ):
        super().__init__(size, mean, std, dtype, memory_format, backend)
        self.views = _integer(views)
        if self.views is None or not 1 <= self.views <= MAX_VIEWS:
            raise ValueError(f"views={views!r} must be an integer in 1..{MAX_VIEWS}")
        self.blur_kernel = _blur_kernel(blur_kernel, self.size)
        strengths = _strengths(jitter, strength)
        given = (hflip, jitter_p, gray_p, blur_p, solarize_p)
        for name, p in zip(("hflip", "jitter_p", "gray_p", "blur_p", "solarize_p"), given):
            if not _is_fraction(p):
                raise ValueError(f"{name}={p!r} must be a probability in [0, 1]")
        if not _is_fraction(solarize_threshold):
            raise ValueError(f"solarize_threshold={solarize_threshold!r} must be in [0, 1]")
        probabilities = dict(zip(FLAGS, given))
        if not any(strengths):
            probabilities["jitter"] = 0.0
        if self.blur_kernel == 1:
            probabilities["blur"] = 0.0
        ranges = {
            "area": _range(scale, "scale", "0 < low <= high <= 1", lambda low, high: 0 < low <= high <= 1),
            **{name: (max(0.0, 1 - part), 1 + part) for name, part in zip(JITTER_OPS, strengths)},
            "hue": (-strengths[3], strengths[3]),
            "sigma": _range(blur_sigma, "blur_sigma", "0 < low <= high", lambda low, high: 0 < low <= high),
        }
        bounds = _range(ratio, "ratio", "0 < low <= high", lambda low, high: 0 < low <= high)
        self.recipe = AugmentRecipe.of(ranges, bounds, probabilities, solarize_threshold)

    def forward(
        self,
        images: Images,
        generator: torch.Generator | None = None,
        *,
        indices: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        """All views of all images: [views * B, C, *size], view-major, normalised.

        Args:
            images: [B, C, H, W] or a list of [C, H, W] of any sizes; uint8 or floats in [0, 1]; C is 1 or 3.
            generator: draws the seed, on its device; None is torch's default generator.
            indices: int64 [B], the number of each sample in its data set; None is 0..B-1. With a `seed` of one's own, a
                sample gets the same views whichever batch it comes in.
            seed: an integer or an int64 tensor [1], instead of a drawn one. Equal seeds give equal draws: where several
                processes number their samples alike, each needs a seed, or a `generator`, of its own.

        Raises:
            TypeError, ValueError: images, indices or seed are not as above.
            RuntimeError: the named backend cannot serve the images' device.
        """
        batch = ImageBatch.of(images)
        return self._run(batch, self._draw(batch, generator, indices, seed), self.blur_kernel)

    def sample(
        self,
        images: Images,
        generator: torch.Generator | None = None,
        *,
        indices: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> AugmentParams:
        """The parameters that `forward` would draw, [views, B] each; only the images' sizes and device matter."""
        return AugmentParams.unpack(self._draw(ImageBatch.of(images), generator, indices, seed))

    def apply(self, images: Images, params: AugmentParams) -> Tensor:
        """`forward` with given parameters, instead of drawn ones.

        Out-of-range parameters raise ValueError on the CPU. On a GPU, where looking at them would wait for it, boxes
        are clamped into the image.
        """
        batch = ImageBatch.of(images)
        if not isinstance(params, AugmentParams):
            raise TypeError(f"params is a {type(params).__name__}; pass what SimCLRAugment.sample returned")
        if (params.views, params.batch_size) != (self.views, batch.batch_size):
            raise ValueError(
                f"params are for {params.views} views of {params.batch_size} images, this call has {self.views} views "
                f"of {batch.batch_size}; sample them for this batch"
            )
        if params.top.device != batch.data.device:
            raise ValueError(f"params are on {params.top.device}, images on {batch.data.device}; use params.to(device)")
        packed = params.pack()
        if packed.device.type == "cpu":
            heights, widths = torch.tensor(batch.sizes, device="cpu").T
            params.check(heights, widths, *self.size)
        return self._run(batch, packed, self.blur_kernel)

    def _draw(
        self, batch: ImageBatch, generator: torch.Generator | None, indices: Tensor | None, seed: int | Tensor | None
    ) -> Tensor:
        device = batch.data.device
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator is a {type(generator).__name__}; pass a torch.Generator or None. Labels do not go through "
                "SimCLRAugment, which takes images alone"
            )
        if seed is not None and not isinstance(seed, Tensor):
            value = _integer(seed)
            if value is None or not -(2**63) <= value < 2**63:
                raise TypeError(f"seed={seed!r} must be an integer of 64 bits, or an int64 tensor of one element")
            seed = value
        if seed is None:
            seed = torch.randint(2**63 - 1, (1,), generator=generator, dtype=torch.int64, device=device)
        elif isinstance(seed, int):
            seed = torch.full((1,), seed, dtype=torch.int64, device=device)
        elif seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != device:
            raise TypeError(
                f"seed is {seed.dtype} {tuple(seed.shape)} on {seed.device}; pass an integer, or int64 [1] on {device}"
            )
        if indices is not None and not isinstance(indices, Tensor):
            raise TypeError(
                f"indices is a {type(indices).__name__}; pass torch.as_tensor(indices, device={str(device)!r})"
            )
        if indices is not None and (
            indices.dtype != torch.int64 or indices.shape != (batch.batch_size,) or indices.device != device
        ):
            raise ValueError(
                f"indices is {indices.dtype} {tuple(indices.shape)} on {indices.device}; "
                f"pass int64 [{batch.batch_size}] on {device}"
            )
        return sample(batch, self.recipe, self.views, seed.reshape(1), indices, self.backend)


class SimCLREval(_FusedTransform):
    """The test-time transform through the same kernels: resize, centre crop, normalise.

    Equal to torchvision.transforms.v2 Resize(resize, antialias=True), CenterCrop(size), Normalize on float tensors.

    Args:
        size: height and width of the output, or one number for both.
        resize: length of the image's shorter side before the crop, at least `size`; None is the longer side of `size`.
            ImageNet's habit is size=224, resize=256.
        mean, std, dtype, memory_format, backend: as for SimCLRAugment.

    Examples:
        >>> features = backbone(SimCLREval(224, resize=256)(images))
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        resize: int | None = None,
        mean: float | Sequence[float] = IMAGENET_MEAN,
        std: float | Sequence[float] = IMAGENET_STD,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format = torch.channels_last,
        backend: str = "auto",
    ):
        super().__init__(size, mean, std, dtype, memory_format, backend)
        self.resize = max(self.size) if resize is None else _integer(resize)
        if self.resize is None or self.resize < max(self.size):
            raise ValueError(
                f"resize={resize!r} must be an integer of at least {max(self.size)} (the size of the crop)"
            )

    def forward(self, images: Images) -> Tensor:
        """[B, C, *size], normalised; images as for SimCLRAugment."""
        batch = ImageBatch.of(images)
        rows = [self._window(*size) for size in batch.sizes]
        packed = torch.tensor(rows, dtype=torch.int32, device="cpu").reshape(1, len(rows), PACKED_WORDS)
        packed = packed.to(batch.data.device)
        return self._run(batch, packed.expand(1, batch.batch_size, -1), blur_kernel=1)

    def _window(self, height: int, width: int) -> list[int]:
        """Packed parameters: the whole image, resized to the window's surroundings.

        Resize truncates the longer side, CenterCrop rounds half a pixel to the even number, as Python does.
        """
        short = min(height, width)
        resized = [self.resize * side // short for side in (height, width)]
        halves = [(full - out) // 2 for full, out in zip(resized, self.size)]
        odd = [(full - out) % 2 for full, out in zip(resized, self.size)]
        shift = [half + one * (half % 2) for half, one in zip(halves, odd)]
        return pack_window(height, width, resized, shift)


def _integer(value: object) -> int | None:
    """value, which may be NumPy's, as an int; None for what is no integer."""
    if isinstance(value, bool) or not isinstance(value, int | numbers.Integral):
        return None
    return value if isinstance(value, int) else int(value)


def _size(size: int | tuple[int, int], name: str) -> tuple[int, int]:
    pair = tuple(_integer(side) for side in size) if isinstance(size, Sequence) else (_integer(size),) * 2
    if len(pair) != 2 or not all(side is not None and side >= 1 for side in pair):
        raise ValueError(f"{name}={size!r} must be an integer >= 1, or (height, width)")
    return pair


def _floats(values: object) -> tuple[float, ...]:
    """Numbers, which may be NumPy's or a tensor's, as floats; () for what is no sequence of numbers."""
    try:
        return () if isinstance(values, str) else tuple(float(value) for value in values)
    except (TypeError, ValueError):
        return ()


def _is_fraction(value: object) -> bool:
    return any(0 <= number <= 1 for number in _floats((value,)))


def _per_channel(values: float | Sequence[float], name: str) -> tuple[float, ...]:
    channels = _floats((values,) if isinstance(values, numbers.Real) else values)
    if len(channels) not in (1, 3) or not all(map(math.isfinite, channels)):
        raise ValueError(f"{name}={values!r} must be one finite number or three")
    return channels


def _range(bounds: tuple[float, float], name: str, rule: str, holds) -> tuple[float, float]:
    pair = _floats(bounds)
    if len(pair) != 2 or not all(map(math.isfinite, pair)) or not holds(*pair):
        raise ValueError(f"{name}={bounds!r} must be (low, high) with {rule}")
    return pair


def _blur_kernel(blur_kernel: int | None, size: tuple[int, int]) -> int:
    most = 2 * min(size) - 1  # taps for which the output's reflection at its edges is enough
    kernel = min(int(0.1 * size[0]) | 1, most) if blur_kernel is None else _integer(blur_kernel)
    if kernel is None or kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"blur_kernel={blur_kernel!r} must be an odd integer >= 1")
    if kernel > most:
        raise ValueError(f"blur_kernel={kernel} reaches beyond the reflection of a {size} output; at most {most} taps")
    return kernel


def _strengths(jitter: tuple[float, float, float, float] | None, strength: float) -> tuple[float, ...]:
    factors = _floats((strength,))
    if not factors or not (math.isfinite(factors[0]) and factors[0] >= 0):
        raise ValueError(f"strength={strength!r} must be finite and >= 0")
    parts = tuple(part * factors[0] for part in _floats(_JITTER if jitter is None else jitter))
    if len(parts) != 4 or not all(math.isfinite(part) and part >= 0 for part in parts):
        raise ValueError(f"jitter={jitter!r} must be four finite numbers >= 0: brightness, contrast, saturation, hue")
    if parts[3] > 0.5:
        raise ValueError(f"hue jitter {parts[3]} (jitter[3] * strength) must be at most 0.5 of a turn")
    return parts
