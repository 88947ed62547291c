"""Decoding JPEGs on the training device, and by the CPU what its decoder refuses."""

import io
import logging
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from simclr_fast.data.pixels import is_jpeg, torchcodec_decoders
from simclr_fast.data.shrink import shrink
from simclr_fast.data.sources import EncodedImages, one_line
from simclr_fast.data.unreadable import load_or_replace
from simclr_fast.errors import ConfigError, DataError

# Encoded bytes of the JPEGs that are decoded in one call, so that few photographs lie on the device at full size: some
# four of 12 megapixels, and a whole chunk of ImageNet's.
TOGETHER = 16 << 20

log = logging.getLogger(__name__)


class DeviceDecoder:
    """Decodes JPEGs by torchcodec's batched decoder, which is nvJPEG on CUDA.

    What is no JPEG, and what that decoder refuses (CMYK, broken files), goes through the CPU decoder one image at a
    time; `on_cpu` counts these images, and the first one for each reason is logged. A decoder that decodes
    nothing at all is an error: ConfigError at the start, DataError in the middle of a run.
    """

    def __init__(self, source: EncodedImages, device: torch.device):
        self.source, self.device = source, device
        self.on_cpu = 0
        self._told: set[str] = set()
        self._known_good = _gray_jpeg()
        failure = self._failure()
        if failure is not None:
            raise ConfigError(f"--decode-device {device.type}: it decodes no JPEG here ({failure}); use cpu")

    def decode(self, encoded: list[Tensor], indices: list[int], bad: dict[int, str]) -> list[Tensor]:
        """Encoded images, uint8 [bytes] each, as RGB on the device, uint8 [3, H, W] each.

        Large ones are brought down as the source's are. `indices` names them in the data set. Adds a message per
        unreadable image to `bad`, and puts another in its place, as `load_or_replace` does.
        """
        images: list[Tensor | None] = [None] * len(encoded)
        jpegs = []
        for place, data in enumerate(encoded):
            if is_jpeg(data):
                jpegs.append(place)
            else:
                images[place] = self._by_cpu(indices[place], "is no JPEG", bad)
        for group in _groups(jpegs, encoded):
            self._decode_jpegs(group, encoded, indices, images, bad)
        return images

    def _decode_jpegs(
        self,
        places: list[int],
        encoded: list[Tensor],
        indices: list[int],
        images: list[Tensor | None],
        bad: dict[int, str],
    ) -> None:
        """Fills `images` at these places. One refusal fails a whole call, hence the halving to find whose it is."""
        if not places:
            return
        try:
            decoded = self._by_batch([encoded[p] for p in places])
        except RuntimeError as error:
            if len(places) > 1:
                half = len(places) // 2
                self._decode_jpegs(places[:half], encoded, indices, images, bad)
                self._decode_jpegs(places[half:], encoded, indices, images, bad)
                return
            if (failure := self._failure()) is not None:
                raise DataError(
                    f"--decode-device {self.device.type}: it decodes no JPEG any more ({failure})"
                ) from error
            (place,) = places
            images[place] = self._by_cpu(indices[place], f"is refused by the GPU's decoder ({one_line(error)})", bad)
        else:
            for place, image in zip(places, decoded):
                images[place] = shrink(image, self.source.shrink_to)

    def _by_batch(self, encoded: list[Tensor]) -> list[Tensor]:
        return torchcodec_decoders().decode_jpeg(encoded, mode="RGB", device=self.device)

    def _by_cpu(self, index: int, why: str, bad: dict[int, str]) -> Tensor:
        self.on_cpu += 1
        if why not in self._told:
            self._told.add(why)
            log.warning("%s %s: decoded on the CPU, as are others like it", self.source.name(index), why)
        image = load_or_replace(self.source.decode, index, len(self.source), bad, self.source.labels)
        return image.to(self.device, non_blocking=True)

    def _failure(self) -> str | None:
        """What the decoder says of a picture that it must be able to decode; None where it does."""
        try:
            self._by_batch([self._known_good])[0].cpu()
        except RuntimeError as error:
            return one_line(error)
        return None


def _groups(places: list[int], encoded: list[Tensor]) -> Iterator[list[int]]:
    """The places in their order, in groups whose encoded bytes are at most TOGETHER, or of one."""
    group: list[int] = []
    size = 0
    for place in places:
        size += len(encoded[place])
        if group and size > TOGETHER:
            yield group
            group, size = [], len(encoded[place])
        group.append(place)
    if group:
        yield group


def _gray_jpeg() -> Tensor:
    """A JPEG that every decoder knows, uint8 [bytes]."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (128, 128, 128)).save(file, "JPEG")
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
