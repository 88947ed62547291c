"""Writes folders in VOC's layout for tests: image sets of single-coloured images, their annotations and label files."""

from pathlib import Path

from PIL import Image


def write_image(path: Path, height: int, width: int, brightness: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (brightness,) * 3).save(path)


def write_voc(
    root: Path, name: str, *classes: str, stem: str = "", suffix: str = ".jpg", difficult: bool = False
) -> None:
    """A set <year>-<set> of one image, called like the set unless it has a stem, with an object of each class."""
    year, _, part = name.partition("-")
    base, stem = root / "VOCdevkit" / f"VOC{year}", stem or part
    write_image(base / "JPEGImages" / f"{stem}{suffix}", 30, 50)
    write_set(base, part, [stem])
    write_annotation(base, stem, dict.fromkeys(classes, difficult))


def write_set(base: Path, part: str, stems: list[str]) -> None:
    listing = base / "ImageSets" / "Main" / f"{part}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{stem}\n" for stem in stems))


def write_annotation(base: Path, stem: str, objects: dict[str, bool]) -> None:
    """objects: whether that of each class is difficult."""
    things = "".join(
        f"<object><name>{name}</name><difficult>{difficult:d}</difficult><bndbox><xmin>4.5</xmin><ymin>5</ymin>"
        "<xmax>30</xmax><ymax>20</ymax></bndbox></object>"
        for name, difficult in objects.items()
    )
    (base / "Annotations").mkdir(parents=True, exist_ok=True)
    (base / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{things}</annotation>")
