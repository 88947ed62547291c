"""From options to a data set: by --dataset, or by what --data holds."""

import contextlib
from collections.abc import Callable

from simclr_fast.config import DataOptions, SourceOptions
from simclr_fast.data.array_sets import KINDS, mnist5k, torchvision_set
from simclr_fast.data.auto import about, found_in, or_images
from simclr_fast.data.folders import image_folder
from simclr_fast.data.hugging_face import hugging_face
from simclr_fast.data.messages import say
from simclr_fast.data.packed import is_packed
from simclr_fast.data.packed_sets import packed_set
from simclr_fast.data.pixels import torchcodec_decoders
from simclr_fast.data.sources import Dataset
from simclr_fast.data.tables import table_set
from simclr_fast.errors import ConfigError

READERS: dict[str, Callable[[SourceOptions], Dataset]] = {
    "imagefolder": image_folder,
    "table": table_set,
    "huggingface": hugging_face,
    "packed": packed_set,
    **dict.fromkeys(KINDS, torchvision_set),
}
OF_IMAGE_FILES = ("imagefolder", "table", "huggingface")
ALSO_A_FILE = ("table", "huggingface")  # the others are folders


def load_dataset(options: SourceOptions) -> Dataset:
    """The data set of the options; what `auto` found is said.

    Raises ConfigError where it is missing or has another layout, DataError where a packed one is damaged.
    """
    options, why = found_in(options)
    if options.dataset not in ("mnist5k", *READERS):
        raise ConfigError(f"--dataset {options.dataset}: there is none of that name; pass auto, {', '.join(READERS)}")
    if options.dataset == "mnist5k":
        if options.data != DataOptions().data:
            raise ConfigError(
                f"--data {options.data}: --dataset mnist5k lies in a package, and reads no folder; pass --dataset auto "
                "to look at what is there"
            )
        return mnist5k()
    is_there = options.data.is_dir() or (options.dataset in ALSO_A_FILE and options.data.is_file())
    if not is_there and not (options.dataset in KINDS and options.download):
        raise ConfigError(f"--data {options.data}: there is no such folder (for --dataset {options.dataset})")
    if options.dataset != "packed" and is_packed(options.data):
        raise ConfigError(
            f"--dataset {options.dataset}: --data {options.data} holds a packed set; pass --dataset auto to read it, "
            "or another --data"
        )
    if options.dataset in OF_IMAGE_FILES:
        torchcodec_decoders()  # where it is missing, that is said at the start
    was_found = why is not None and options.dataset == "table"
    with or_images(options.data) if was_found else contextlib.nullcontext():
        dataset = READERS[options.dataset](options)
    if why is not None:
        say(about(options, dataset, why))
    return dataset
