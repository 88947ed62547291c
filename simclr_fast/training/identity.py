"""What tells one training set from another, for a run that goes on to refuse other images than it began with."""

import hashlib

from simclr_fast.data import Source

SAMPLE = 32  # images that are compared, evenly spread, so that a data set of millions takes no time


def data_identity(source: Source) -> dict[str, int | str]:
    """Number of images, channels, and a digest of some of the images by their places: {"images", "channels", "sha256"}.

    Names and folders do not matter, so a data set may be moved; the order of the images does, since draws depend on it.
    """
    size = len(source)
    count = min(size, SAMPLE)
    digest = hashlib.sha256()
    for k in range(count):
        data = _bytes(source, k * (size - 1) // max(1, count - 1))
        digest.update(len(data).to_bytes(8, "little") + data)
    return {"images": size, "channels": source.channels, "sha256": digest.hexdigest()[:16]}


def _bytes(source: Source, index: int) -> bytes:
    try:
        return source.read(index)
    except OSError:
        return b"unreadable"  # the loader reports it and replaces it; it is the same in a run that goes on
