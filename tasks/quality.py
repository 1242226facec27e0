"""What labels are made of, tile by tile: kept in each EOPatch's marker and in a file beside the data."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any, Self

_COUNTS = ("polygons", "overlapping", "overlap_pixels", "repaired", "without_class")
_PIXELS = "pixels_of_class_"


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """What a tile's labels are made of; several tiles together where they are added up.

    Attributes:
        pixels: number of pixels by class id, 0 (no reference) among them, without the classes that do not occur.
        polygons: number of polygons that touch the tile.
        overlapping: of them, those that share pixels with another one.
        overlap_pixels: pixels whose centre lies in several polygons.
        repaired: of the polygons, those whose geometry was invalid.
        without_class: further polygons, left out because their class is null.
        unmapped: further polygons, left out because their value is in no class, by value.
    """

    pixels: Mapping[int, int]
    polygons: int
    overlapping: int
    overlap_pixels: int
    repaired: int
    without_class: int
    unmapped: Mapping[str, int]

    @property
    def coverage(self) -> float:
        """Share of pixels with a class other than 0, 0 to 1."""
        total = sum(self.pixels.values())
        return 1.0 - self.pixels.get(0, 0) / total if total else 0.0

    def __add__(self, other: Self) -> "LabelQuality":
        return LabelQuality(
            **{name: getattr(self, name) + getattr(other, name) for name in _COUNTS},
            pixels=dict(Counter(self.pixels) + Counter(other.pixels)),
            unmapped=dict(Counter(self.unmapped) + Counter(other.unmapped)),
        )

    def as_json(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self) | {"pixels": {str(number): count for number, count in self.pixels.items()}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Take what :meth:`as_json` gave."""
        pixels = {int(number): int(count) for number, count in content["pixels"].items()}
        return cls(**{name: int(content[name]) for name in _COUNTS}, pixels=pixels, unmapped=content["unmapped"])


NOTHING = LabelQuality({}, 0, 0, 0, 0, 0, {})
"""The labels of no tile."""


def quality_csv(tiles: Mapping[str, LabelQuality], reference: str) -> str:
    """Write one row a tile, by name: coverage, counts, unmapped values as JSON, pixels of each class.

    Args:
        tiles: by name.
        reference: what tells the reference of all of them from others.
    """
    classes = sorted({number for one in tiles.values() for number in one.pixels})
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["tile", "reference", "coverage", *_COUNTS, "unmapped", *(f"{_PIXELS}{number}" for number in classes)]
    )
    for name, one in sorted(tiles.items()):
        counts = [getattr(one, count) for count in _COUNTS]
        pixels = [one.pixels.get(number, 0) for number in classes]
        writer.writerow(
            [name, reference, f"{one.coverage:.6f}", *counts, json.dumps(one.unmapped, sort_keys=True), *pixels]
        )
    return text.getvalue()


def read_quality_csv(text: str, reference: str) -> dict[str, LabelQuality]:
    """Read what :func:`quality_csv` wrote about the same reference.

    Raises:
        KeyError, ValueError: it is something else.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a tile may have very many unmapped values
    try:
        return {row["tile"]: _read(row) for row in csv.DictReader(StringIO(text)) if row["reference"] == reference}
    except csv.Error as error:
        raise ValueError(f"not a file of labels' quality: {error}") from error


def together(tiles: Iterable[LabelQuality]) -> LabelQuality:
    """Add tiles up."""
    return sum(tiles, NOTHING)


def _read(row: Mapping[str, str]) -> LabelQuality:
    pixels = {
        int(column.removeprefix(_PIXELS)): int(count)
        for column, count in row.items()
        if column.startswith(_PIXELS) and count != "0"
    }
    return LabelQuality(
        **{name: int(row[name]) for name in _COUNTS}, pixels=pixels, unmapped=json.loads(row["unmapped"])
    )
