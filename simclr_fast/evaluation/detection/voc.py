"""VOC's layout: the image sets of VOCdevkit/VOC<year>, their images, and the objects in their annotations."""

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

from simclr_fast.config import flag
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.detection.data import Annotated, Annotations, existing

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """An image set: name is <year>-<set>, base its VOCdevkit/VOC<year>, stems the names of its images in order."""

    name: str
    base: Path
    stems: list[str]

    @property
    def part(self) -> str:
        """The name without the year."""
        return self.name.partition("-")[2]

    @property
    def places(self) -> list[Path]:
        """A path of each image, without the suffix that its file has."""
        return [self.base / "JPEGImages" / stem for stem in self.stems]

    @property
    def listing(self) -> Path:
        return self.base / "ImageSets" / "Main" / f"{self.part}.txt"

    def image(self, stem: str) -> Path:
        """The file of an image; where there is none, that of a JPEG."""
        candidates = [self.base / "JPEGImages" / f"{stem}{suffix}" for suffix in SUFFIXES]
        return next((path for path in candidates if path.is_file()), candidates[0])


def open_sets(root: Path, names: tuple[str, ...], option: str) -> list[ImageSet]:
    """The image sets <year>-<set> of VOCdevkit below root; option: the one that names them.

    Raises ConfigError for a set that is missing or empty, and for an image that is in several sets or twice in one.
    """
    sets = [_open_set(root, name, option) for name in names]
    seen: set[Path] = set()
    for one in sets:
        for place in one.places:
            if place in seen:
                raise ConfigError(
                    f"{flag(option)} {' '.join(names)}: {place} is in them twice; pass sets without common images"
                )
            seen.add(place)
    return sets


def _open_set(root: Path, name: str, option: str) -> ImageSet:
    year = name.partition("-")[0]
    devkit = root / "VOCdevkit"
    base = devkit / f"VOC{year}"
    if not base.is_dir():
        years = ", ".join(sorted(path.name.removeprefix("VOC") for path in devkit.glob("VOC*")))
        remedy = f"pass one of the years there ({years})" if years else "pass the folder that holds VOCdevkit as --data"
        raise ConfigError(f"{flag(option)} {name}: there is no folder {base}; {remedy}")
    one = ImageSet(name, base, [])
    try:
        lines = one.listing.read_text().splitlines()
    except (OSError, ValueError) as error:
        there = sorted(path.stem for path in one.listing.parent.glob("*.txt") if "_" not in path.stem)
        raise ConfigError(
            f"{flag(option)} {name}: no image set is to be read ({error}); pass one of {', '.join(there) or 'none'}"
        ) from error
    one.stems.extend(line.strip() for line in lines if line.strip())
    if not one.stems:
        raise ConfigError(f"{flag(option)} {name}: {one.listing} lists no image; pass another set")
    return one


def read_objects(image_set: ImageSet) -> Annotations:
    """The images of a set with their objects, and the classes that these are of, sorted by name.

    Raises ConfigError for what is missing and for XML of another layout.
    """
    images = [_read_image(image_set, stem) for stem in image_set.stems]
    classes = sorted({name for image in images for name in image.names})
    return Annotations(existing(images, image_set.listing, SUFFIXES), classes)


def _read_image(image_set: ImageSet, stem: str) -> Annotated:
    file = image_set.base / "Annotations" / f"{stem}.xml"
    annotated = Annotated(image_set.image(stem))
    try:
        for thing in ElementTree.parse(file).getroot().iter("object"):
            box = thing.find("bndbox")
            annotated.boxes.append(tuple(float(box.find(side).text) for side in ("xmin", "ymin", "xmax", "ymax")))
            annotated.names.append(thing.find("name").text.strip())
            annotated.crowds.append(thing.findtext("difficult", "0").strip() == "1")
    except (OSError, ElementTree.ParseError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: no VOC annotation ({type(error).__name__}: {error})") from error
    return annotated
