"""Pictures of a run, as PNG: where its tiles stand, and what an EOPatch looks like.

They are drawn through matplotlib's objects, without its global state, so that several threads may draw at a time.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from io import BytesIO
from itertools import groupby
from math import cos, radians
from typing import Any

import numpy as np
import shapely
from eolearn.core.constants import FeatureType
from eolearn.core.eodata import EOPatch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image
from pyproj import CRS, Transformer
from sentinelhub.geometry import BBox
from shapely import Polygon, affinity
from shapely.geometry.base import BaseGeometry

from tasks.classes import LAND_COVER_CLASSES, LandCoverClass
from tasks.evalscript import LAND_COVER_BANDS
from tasks.grid import Tile, lonlat_outline
from tasks.ledger import TileRecord, TileState


@dataclass(frozen=True, slots=True)
class StateStyle:
    """How a state is drawn: no two differ in hue alone.

    Attributes:
        colour: ``#rrggbb``, from Okabe and Ito, "Color Universal Design" (2008), and greys.
        hatch: matplotlib's hatch pattern, empty for none.
    """

    colour: str
    hatch: str = ""


STATE_STYLES = {
    TileState.FAILED: StateStyle("#d55e00", "xx"),
    TileState.NO_DATA: StateStyle("#f7f7f7", "//"),
    TileState.PENDING: StateStyle("#d9d9d9"),
    TileState.PROCESSED: StateStyle("#f0e442"),
    TileState.CONVERTED: StateStyle("#56b4e9"),
    TileState.LABELLED: StateStyle("#009e73"),
}
"""In the order of legends and tables: what needs attention comes first."""

DPI = 120
NAMED_TILES = 60
"""With more tiles than this a map shows no names."""
NO_DATA_COLOUR = "#bdbdbd"
EDGE_COLOUR = "#4d4d4d"
OTHER_CLASS_COLOUR = "#ff00ff"
_MAP_INCHES, _MAP_WIDTH_MIN, _MAP_HEIGHT_MIN = 8.0, 4.0, 0.5  # the legend needs the width
_PANEL_INCHES, _PANEL_PIXELS = 4.0, 600
_BANDS, _NDVI = (FeatureType.DATA, "BANDS"), (FeatureType.DATA, "NDVI")
_IS_DATA, _IS_VALID = (FeatureType.MASK, "IS_DATA"), (FeatureType.MASK, "IS_VALID")
_LULC = (FeatureType.MASK_TIMELESS, "LULC")
_Extent = tuple[float, float, float, float]
_TRUE_COLOUR = ("B04", "B03", "B02")


# ---- status map ----


def status_map(records: Sequence[TileRecord], area: BaseGeometry | None, title: str) -> bytes:
    """Draw the tiles coloured by state, with the outline of the area; a PNG.

    Tiles of one UTM zone are drawn in its coordinates, tiles of several in longitude and latitude.

    Args:
        records: one or more.
        area: polygons in longitude and latitude; None where tiles were given without an area.
        title: area and period.

    Raises:
        ValueError: there are no records.
    """
    if not records:
        raise ValueError("A map needs at least one tile; the list of records is empty.")
    frame = _map_frame(records)
    drawn = [
        (record, frame.outline(record.tile))
        for record in sorted(records, key=lambda record: (record.tile.epsg, record.state))
    ]
    figure, axes = _map_figure(shapely.total_bounds([outline for _, outline in drawn]), frame)
    for (_, state), group in groupby(drawn, key=lambda pair: (pair[0].tile.epsg, pair[0].state)):
        _draw_tiles(axes, STATE_STYLES[state], [outline for _, outline in group], 0.8 if len(records) <= 200 else 0.3)
    if area is not None:
        _draw_area(axes, frame.from_lonlat(area))
    if len(records) <= NAMED_TILES:
        _draw_names(figure, axes, drawn)
    figure.suptitle(f"{title}\n{len(records):,} tile{'s' if len(records) > 1 else ''}", fontsize=11)
    handles = _map_legend(records)
    if area is not None:
        handles.append(Patch(facecolor="none", edgecolor="black", linewidth=1.4, label="area"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _png(figure)


@dataclass(frozen=True, slots=True)
class _MapFrame:
    """Coordinates of a map: UTM in kilometres (epsg), or longitude and latitude (None) around a centre."""

    epsg: int | None
    centre_lonlat: tuple[float, float]

    @property
    def labels(self) -> tuple[str, str]:
        if self.epsg is None:
            return "longitude (°)", "latitude (°)"
        return f"easting (km), EPSG:{self.epsg}", "northing (km)"

    @property
    def aspect(self) -> float:
        """Height of a unit of y over the width of a unit of x."""
        return 1.0 if self.epsg is not None else 1 / max(cos(radians(self.centre_lonlat[1])), 0.1)

    def outline(self, tile: Tile) -> Polygon:
        if self.epsg is not None:
            return affinity.scale(shapely.box(*tile.bounds), 0.001, 0.001, origin=(0, 0))
        outline = lonlat_outline(tile)
        turns = round((outline.bounds[0] - self.centre_lonlat[0]) / 360)
        return affinity.translate(outline, xoff=-360 * turns)

    def from_lonlat(self, geometry: BaseGeometry) -> BaseGeometry:
        if self.epsg is None:
            return shapely.union_all([affinity.translate(geometry, xoff=turn) for turn in (-360, 0, 360)])
        convert = Transformer.from_crs(4326, self.epsg, always_xy=True).transform
        dense = shapely.segmentize(geometry, 0.05)
        return shapely.transform(dense, lambda points: np.column_stack(convert(points[:, 0], points[:, 1])) / 1000)


def _map_frame(records: Sequence[TileRecord]) -> _MapFrame:
    codes = {record.tile.epsg for record in records}
    centre = lonlat_outline(records[0].tile).centroid
    single = codes.pop() if len(codes) == 1 else None
    projected = single is not None and CRS.from_epsg(single).is_projected
    return _MapFrame(single if projected else None, (centre.x, centre.y))


def _map_figure(bounds: NDArray[np.float64], frame: _MapFrame) -> tuple[Figure, Axes]:
    """Make a figure as high as the tiles' extent asks for, within limits."""
    min_x, min_y, max_x, max_y = bounds
    ratio = (max_y - min_y) / (max_x - min_x) * frame.aspect
    width, height = min(_MAP_INCHES, _MAP_INCHES / ratio), min(_MAP_INCHES, _MAP_INCHES * ratio)
    size = (max(width, _MAP_WIDTH_MIN) + 1.2, max(height, _MAP_HEIGHT_MIN) + 1.7)
    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    axes = figure.add_subplot()
    margin_x, margin_y = 0.03 * (max_x - min_x), 0.03 * (max_y - min_y)
    axes.set(xlim=(min_x - margin_x, max_x + margin_x), ylim=(min_y - margin_y, max_y + margin_y))
    axes.set_aspect(frame.aspect)
    axes.set_xlabel(frame.labels[0])
    axes.set_ylabel(frame.labels[1])
    _plain_ticks(axes)
    return figure, axes


def _draw_tiles(axes: Axes, style: StateStyle, outlines: Sequence[Polygon], linewidth: float) -> None:
    rings = [shapely.get_coordinates(outline) for outline in outlines]
    tiles = PolyCollection(rings, facecolor=style.colour, edgecolor=EDGE_COLOUR, linewidth=linewidth, hatch=style.hatch)
    axes.add_collection(tiles)


def _draw_area(axes: Axes, area: BaseGeometry) -> None:
    for ring in shapely.get_parts(shapely.boundary(area)):
        axes.plot(*shapely.get_coordinates(ring).T, color="black", linewidth=1.4)


def _draw_names(figure: Figure, axes: Axes, drawn: Sequence[tuple[TileRecord, Polygon]]) -> None:
    """Write each name into the visible part of its tile, in two lines, as large as the smallest tile allows."""
    points_per_unit = figure.get_figwidth() * 72 * 0.8 / (axes.get_xlim()[1] - axes.get_xlim()[0])
    names = [record.tile.name.replace("_", "\n", 1) for record, _ in drawn]
    letters = max(len(line) for name in names for line in name.split("\n"))
    narrowest = min(outline.bounds[2] - outline.bounds[0] for _, outline in drawn)
    size = min(narrowest * points_per_unit / letters * 1.3, 11)
    halo = [withStroke(linewidth=2.5, foreground="white", alpha=0.8)]
    for index, (name, (_, outline)) in enumerate(zip(names, drawn, strict=True)):
        visible = shapely.difference(outline, shapely.union_all([above for _, above in drawn[index + 1 :]]))
        x, y = (outline if visible.is_empty else visible).centroid.coords[0]
        axes.text(x, y, name, fontsize=size, ha="center", va="center", path_effects=halo)


def _map_legend(records: Sequence[TileRecord]) -> list[Patch]:
    counts = Counter(record.state for record in records)
    return [
        Patch(
            facecolor=style.colour, edgecolor=EDGE_COLOUR, hatch=style.hatch, label=f"{state.value}: {counts[state]:,}"
        )
        for state, style in STATE_STYLES.items()
        if counts[state]
    ]


# ---- quick-look ----


def quicklook(
    patch: EOPatch,
    tile_name: str,
    day: date | None = None,
    bands: Sequence[str] = LAND_COVER_BANDS,
    classes: Sequence[LandCoverClass] = LAND_COVER_CLASSES,
) -> bytes:
    """Draw an EOPatch: true colour and NDVI of one date, and the reference, of those that it has; a PNG.

    Where IS_DATA (or, for the reference, the class) is 0, the picture
    is grey and hatched.

    Args:
        patch: with some of DATA/BANDS, DATA/NDVI, MASK/IS_DATA, MASK/IS_VALID, MASK_TIMELESS/LULC.
        tile_name: for the title.
        day: the date nearest to it is drawn; by default the one with the most valid pixels, the greenest among equals.
        bands: names along the band axis of BANDS; without B04, B03 and B02 there is no true colour.
        classes: names and colours of the reference; other classes share a colour.

    Raises:
        ValueError: the EOPatch has no feature to draw.
    """
    drawn = [(title, draw) for title, feature, draw in _available(bands, classes) if feature in patch]
    if not drawn or patch.bbox is None:
        raise ValueError(f"EOPatch {tile_name} needs a bbox and one of DATA/BANDS, DATA/NDVI, MASK_TIMELESS/LULC.")
    moment = _moment(patch, day)
    extent, unit = _extent(patch.bbox)
    figure, panels = _panels([title for title, _ in drawn], extent)
    for panel, (_, draw) in zip(panels, drawn, strict=True):
        draw(panel, patch, moment)
        panel.axes.set_xlabel(f"easting ({unit})", fontsize=9)
    panels[0].axes.set_ylabel(f"northing ({unit})", fontsize=9)
    when = f" · {patch.timestamps[moment]:%Y-%m-%d}" if patch.timestamps else ""
    figure.suptitle(f"{tile_name}{when} · EPSG:{patch.bbox.crs.epsg}", fontsize=12)
    return _png(figure)


@dataclass(frozen=True, slots=True)
class _Panel:
    """One picture of a quick-look: its axes, the room below them for a legend, and left, right, bottom, top."""

    axes: Axes
    footer: Axes
    extent: _Extent

    def show(self, image: NDArray[Any], **style: Any) -> AxesImage:
        return self.axes.imshow(image, extent=self.extent, interpolation="nearest", **style)


def _panels(titles: Sequence[str], extent: _Extent) -> tuple[Figure, list[_Panel]]:
    """Make panels side by side, each with its title."""
    ratio = (extent[3] - extent[2]) / (extent[1] - extent[0])
    side, left, gap, top, bottom = _PANEL_INCHES, 0.8, 0.3, 0.75, 1.6
    width, height = left + len(titles) * (side + gap), top + side * ratio + bottom
    figure = Figure(figsize=(width, height), dpi=DPI)
    panels = []
    for index, title in enumerate(titles):
        x = left + index * (side + gap)
        axes = figure.add_axes((x / width, bottom / height, side / width, side * ratio / height))
        footer = figure.add_axes((x / width, 0, side / width, (bottom - 0.55) / height))
        footer.set_axis_off()
        axes.set_title(title, fontsize=11)
        axes.patch.set(facecolor=NO_DATA_COLOUR, hatch="//", edgecolor="white")
        axes.tick_params(labelsize=8, labelleft=index == 0)
        _plain_ticks(axes)
        panels.append(_Panel(axes, footer, extent))
    return figure, panels


def _moment(patch: EOPatch, day: date | None) -> int:
    """Index of the date to draw."""
    if day is not None and patch.timestamps:
        distances = [abs((timestamp.date() - day).days) for timestamp in patch.timestamps]
        return int(np.argmin(distances))
    valid = next((patch[feature] for feature in (_IS_VALID, _IS_DATA) if feature in patch), None)
    shares = np.ones(len(patch.timestamps or [0])) if valid is None else valid.mean(axis=(1, 2, 3))
    best = np.flatnonzero(shares >= shares.max() - 0.005)
    if _NDVI not in patch:
        return int(best[0])
    greenness = [float(_thin(patch[_NDVI][index]).mean()) for index in best]
    return int(best[np.argmax(greenness)])


def _draw_true_colour(panel: _Panel, patch: EOPatch, moment: int, positions: Sequence[int]) -> None:
    rgb = _thin(patch[_BANDS][moment])[..., list(positions)].astype("float32")
    has_data = _has_data(patch, moment, rgb)
    lit = rgb[has_data] if has_data.any() else np.zeros((1, 3), "float32")
    haze = np.percentile(lit, 1, axis=0)  # the darkest of each band: what the air adds
    span = max(float(np.percentile(lit - haze, 99)), 1e-6)
    stretched = np.clip((rgb - haze) / span, 0, 1) ** (1 / 1.4)
    panel.show(np.dstack([stretched, has_data]))


def _draw_ndvi(panel: _Panel, patch: EOPatch, moment: int) -> None:
    ndvi = _thin(patch[_NDVI][moment])
    shown = np.ma.masked_where(~_has_data(patch, moment, ndvi), ndvi[..., 0])
    colours = colormaps["YlGn"].with_extremes(under="#9ecae1", bad=(0, 0, 0, 0))
    image = panel.show(shown, cmap=colours, vmin=0, vmax=0.9)
    scale = panel.footer.inset_axes((0.1, 0.8, 0.8, 0.16))
    panel.axes.figure.colorbar(image, cax=scale, orientation="horizontal", extend="both")
    scale.tick_params(labelsize=9)


def _draw_reference(panel: _Panel, patch: EOPatch, moment: int, classes: Sequence[LandCoverClass]) -> None:
    del moment  # the reference has no dates
    labels = patch[_LULC][..., 0]
    known = [entry for entry in classes if entry.id]
    place = np.full(256, len(known) + 1)  # in the list of colours: of what is in no class, and of the others
    place[[0, *(entry.id for entry in known)]] = range(len(known) + 1)
    colours = ListedColormap(["none", *(entry.colour for entry in known), OTHER_CLASS_COLOUR])
    panel.show(place[_thin(labels)], cmap=colours, vmin=-0.5, vmax=len(known) + 1.5)
    counts = np.bincount(place[labels.ravel()], minlength=len(known) + 2) / labels.size
    named = zip(known, counts[1:-1], strict=True)
    shares = [(_words(entry.name), entry.colour, "", share) for entry, share in named]
    shares.append(("Other classes", OTHER_CLASS_COLOUR, "", counts[-1]))
    shares.append(("No reference", NO_DATA_COLOUR, "//", counts[0]))
    handles = [
        Patch(
            facecolor=colour,
            edgecolor=EDGE_COLOUR if not hatch else "white",
            hatch=hatch,
            label=f"{name} {_percent(share)}",
        )
        for name, colour, hatch, share in shares
        if share
    ]
    panel.footer.legend(handles=handles, loc="upper center", ncols=2, frameon=False, fontsize=8.5, borderaxespad=0)


_Draw = Callable[[_Panel, EOPatch, int], None]


def _available(
    bands: Sequence[str], classes: Sequence[LandCoverClass]
) -> list[tuple[str, tuple[FeatureType, str], _Draw]]:
    """Panels from left to right: title, feature that is needed, and what draws it."""
    panels: list[tuple[str, tuple[FeatureType, str], _Draw]] = [
        ("NDVI", _NDVI, _draw_ndvi),
        ("Reference land cover", _LULC, partial(_draw_reference, classes=classes)),
    ]
    if not {*_TRUE_COLOUR} <= {*bands}:
        return panels
    positions = [list(bands).index(band) for band in _TRUE_COLOUR]
    return [("True colour", _BANDS, partial(_draw_true_colour, positions=positions)), *panels]


def _has_data(patch: EOPatch, moment: int, image: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the date has data: by IS_DATA, or without it where a value of the image is not 0."""
    if _IS_DATA in patch:
        return np.asarray(_thin(patch[_IS_DATA][moment])[..., 0], dtype=bool)
    return np.asarray(np.any(image != 0, axis=-1), dtype=bool)


def _thin(image: NDArray[Any]) -> NDArray[Any]:
    """Every n-th row and column of an image (height, width, ...), so that a panel needs no more."""
    step = max(1, max(image.shape[:2]) // _PANEL_PIXELS)
    return image[::step, ::step]


def _extent(bbox: BBox) -> tuple[_Extent, str]:
    """Left, right, bottom, top of the axes, and their unit: kilometres, or degrees in a geographic CRS."""
    min_x, min_y, max_x, max_y = bbox
    if CRS.from_epsg(bbox.crs.epsg).is_projected:
        return (min_x / 1000, max_x / 1000, min_y / 1000, max_y / 1000), "km"
    return (min_x, max_x, min_y, max_y), "°"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.005 else "< 1%"


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


# ---- both ----


def thumbnail(picture: bytes, width: int = 720) -> bytes:
    """Make a picture small enough to be embedded in a text: a JPEG, at most ``width`` pixels wide."""
    with Image.open(BytesIO(picture)) as image:
        small = image.convert("RGB")
    small.thumbnail((width, 4 * width))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


def _plain_ticks(axes: Axes) -> None:
    axes.ticklabel_format(useOffset=False, style="plain")


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", bbox_inches="tight", pad_inches=0.1)
    return buffer.getvalue()
