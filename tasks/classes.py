"""The land-cover classes of the reference: one table, as eo-learn's SI_LULC example defines it.

Source: eo-learn, examples/land-cover-map/SI_LULC_pipeline.ipynb, class ``LULCClass`` (names, ids and colours).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LandCoverClass:
    """One class of the reference.

    Attributes:
        id: value in the raster, 0..255; 0 means that there is no reference.
        name: upper case with underscores, as in the source.
        colour: ``#rrggbb``, for pictures.
    """

    id: int
    name: str
    colour: str


LAND_COVER_CLASSES = (
    LandCoverClass(0, "NO_DATA", "#ffffff"),
    LandCoverClass(1, "CULTIVATED_LAND", "#ffff00"),
    LandCoverClass(2, "FOREST", "#054907"),
    LandCoverClass(3, "GRASSLAND", "#ffa500"),
    LandCoverClass(4, "SHRUBLAND", "#806000"),
    LandCoverClass(5, "WATER", "#069af3"),
    LandCoverClass(6, "WETLAND", "#95d0fc"),
    LandCoverClass(7, "TUNDRA", "#967bb6"),
    LandCoverClass(8, "ARTIFICIAL_SURFACE", "#dc143c"),
    LandCoverClass(9, "BARELAND", "#a6a6a6"),
    LandCoverClass(10, "SNOW_AND_ICE", "#000000"),
)
"""In order of id, so that the index of a class is its id."""

FURTHER_COLOURS = (
    "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#8dd3c7",
    "#bebada", "#fb8072", "#80b1d3", "#fdb462", "#b3de69", "#fccde5", "#bc80bd", "#ccebc5",
)  # fmt: skip
"""For classes that SI_LULC does not have, by id: ColorBrewer's Dark2 and Set3 (C. Brewer, colorbrewer2.org)."""


def known_class(number: int) -> LandCoverClass:
    """The class of an id as SI_LULC has it; else one that is named by its id, with a colour of its own."""
    if number < len(LAND_COVER_CLASSES):
        return LAND_COVER_CLASSES[number]
    return LandCoverClass(number, str(number), FURTHER_COLOURS[number % len(FURTHER_COLOURS)])
