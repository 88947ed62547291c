"""The arguments that --model-kwargs hands to whatever builds a backbone: numbers, booleans and words, nothing else."""

from collections.abc import Mapping, Sequence

from simclr_fast.errors import ConfigError, first_line

Value = bool | int | float | str

# What would make a library read files or download weights, contradict what this program decides by itself, or give
# another kind of model. Names that begin like those of weights are refused as well.
REFUSED = {
    "num_classes": "the classifier is left out",
    "progress": "nothing is downloaded while a backbone is built",
    "cache_dir": "nothing is downloaded while a backbone is built",
    "in_chans": "the images decide",
    "in_channels": "the images decide",
    "img_size": "--size decides",
    "image_size": "--size decides",
    **dict.fromkeys(("features_only", "scriptable", "exportable", "no_jit"), "it makes another kind of model"),
}
REFUSED_PREFIXES = ("weights", "pretrained", "checkpoint")
# A stored run may be anyone's: without a bound, a few bytes of it could ask for a billion layers.
LARGEST = 16_384


def parse(pairs: Sequence[str]) -> dict[str, Value]:
    """{"drop_path_rate": 0.1} of ("drop_path_rate=0.1",). Raises ConfigError for what is not key=value, or refused."""
    found: dict[str, Value] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier() or not text:
            raise ConfigError(f"--model-kwargs {shown(pair)}: pass key=value, as in drop_path_rate=0.1")
        if key.startswith(REFUSED_PREFIXES):
            raise ConfigError(f"--model-kwargs {shown(pair)}: weights to start from are named by --pretrained")
        if key in REFUSED:
            raise ConfigError(f"--model-kwargs {shown(pair)}: {REFUSED[key]}; leave it out")
        if key in found:
            raise ConfigError(f"--model-kwargs {shown(pair)}: {key} is there twice; pass it once")
        found[key] = _value(text)
        if isinstance(found[key], int | float) and not abs(found[key]) <= LARGEST:  # which no NaN is
            raise ConfigError(f"--model-kwargs {shown(pair)}: pass a number of at most {LARGEST}")
    return found


def pairs(kwargs: Mapping[str, Value]) -> tuple[str, ...]:
    """The option's value for a dict of arguments, which `parse` gives back."""
    written = lambda value: str(value).lower() if isinstance(value, bool) else str(value)
    return tuple(f"{key}={written(value)}" for key, value in kwargs.items())


def shown(text: str) -> str:
    """Text of a file or a command line, short enough for one line."""
    plain = " ".join(text.split())
    return plain if len(plain) <= 80 else f"{plain[:77]}..."


def _value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def refused_by_library(name: str, kwargs: Mapping[str, Value], error: Exception) -> ConfigError:
    """The one line for arguments with which a library did not build the backbone."""
    reason = shown(first_line(error))
    return ConfigError(f"--model-kwargs {shown(' '.join(pairs(kwargs)))}: {name} cannot be built with them ({reason})")
