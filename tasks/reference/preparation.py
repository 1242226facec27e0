"""A reference is identified, checked before anything is bought, and prepared once for all tiles."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Proj

from tasks.classes import known_class
from tasks.errors import InvalidInput
from tasks.grid import Tile
from tasks.grid.coordinates import crs_of
from tasks.reference.address import is_database
from tasks.reference.antimeridian import turn_of
from tasks.reference.classification import NULL, UNMAPPED, Classifier, as_text
from tasks.reference.files import identity_of_files, is_local, local_copy
from tasks.reference.parameters import Input, Reference, codes_of
from tasks.reference.polygons import Surroundings, areas_m2, around, by_epsg, polygonal, zones_of
from tasks.reference.postgis import PostgisSource
from tasks.reference.shapes import Geometries, Shapes, geometries_of, single_rings
from tasks.reference.sources import PLACES, Rows, Source, open_source
from tasks.storage import Storage

NAME_COLUMN = "LULC_NAME"
"""Where names are looked for when no column was named."""
SCALE_OFF = 0.05
"""By how much a metre of a CRS may differ from one on the ground; in UTM and national grids it is less than 0.002."""
FETCHED_TO_CHECK_BYTES = 50_000_000
"""A file on a server is fetched only to be checked up to this size: within seconds."""


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """What tells one state of a file from another.

    Attributes:
        name: last part of the path; host, database and table.
        size: bytes, or rows of a table.
        version: ETag or time of modification; of several files, a hash of them; of a table, a checksum of its content.
    """

    name: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class ReferenceSource:
    """Identity of a reference as META_INFO/REFERENCE keeps it; it is known without reading the files.

    Attributes:
        sources: of each file.
        class_table_sha256: hash of the class table.
        options_sha256: hash of the other options.
    """

    sources: tuple[SourceIdentity, ...]
    class_table_sha256: str
    options_sha256: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in the files: of rows near the tiles, but for those without a geometry, which are nowhere.

    Attributes:
        polygons: rows that touch a tile and are used.
        repaired: of them, those whose geometry was invalid and was made valid.
        without_polygon: rows without a geometry, or with one that has no area or points without a place.
        without_class: rows whose class is null.
        too_small: rows below the smallest area, or of which a negative buffer leaves nothing.
        unmapped: rows that were left out because their value is in no class, by value.
    """

    polygons: int
    repaired: int
    without_polygon: int
    without_class: int
    too_small: int
    unmapped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PreparedReference:
    """Polygons that are ready to be burned, on the local disk, and what was found on the way.

    Attributes:
        reference: as given.
        source: where the polygons come from.
        folder: with the files of :mod:`tasks.reference.polygons`.
        findings: what the files had.
    """

    reference: Reference
    source: ReferenceSource
    folder: str
    findings: Findings


def reference_source(reference: Reference, storage: Storage) -> ReferenceSource:
    """Identify a reference by its files' sizes and versions and by its options.

    Raises:
        InvalidInput: a file does not exist.
    """
    return ReferenceSource(
        sources=tuple(_identity(one, storage) for one in reference.inputs),
        class_table_sha256=reference.class_table_sha256,
        options_sha256=reference.options_sha256,
    )


def check_reference(reference: Reference, storage: Storage) -> ReferenceSource:
    """Identify a reference as :func:`reference_source`, and check layers, CRSs, columns and classes.

    A large file on a server is not fetched for this: :func:`prepare_reference` checks it when it is used.

    Raises:
        InvalidInput: as :func:`prepare_reference`, but for the polygons themselves.
    """
    source = reference_source(reference, storage)
    for one, identity in zip(reference.inputs, source.sources, strict=True):
        if _is_near(one, storage) or identity.size <= FETCHED_TO_CHECK_BYTES:
            with _opened(one, storage) as table:
                classifier = _classifier(reference)
                for values in table.values(one.class_column):
                    _check_kind(values, one, one.class_column)
                    classifier.ids(values)
                if name_column := _name_column(one, table):
                    _check_kind(next(table.values(name_column), None), one, name_column)
            _judge(classifier, reference, one)
    return source


def check_units(reference: Reference, tiles: Iterable[Tile]) -> None:
    """Check that a metre is a metre in the CRSs of the tiles, where the options need it.

    Raises:
        InvalidInput: a CRS has other units, or a scale at a tile that is off by more than :data:`SCALE_OFF`.
    """
    options = [name for name in ("buffer_m", "min_area_m2") if getattr(reference, name)]
    advice = "leave them at 0, or choose another tiling grid"
    for epsg, members in by_epsg(tiles) if options else ():
        unit = crs_of(epsg).axis_info[0].unit_name
        if unit != "metre":
            raise InvalidInput(
                f"buffer_m and min_area_m2 need tiles in metres, but those in EPSG:{epsg} are in {unit}s; {advice}."
            )
        scales = _scales(members, epsg, of_areas=options == ["min_area_m2"])
        worst = int(np.argmax(np.abs(scales - 1)))
        if not abs(scales[worst] - 1) <= SCALE_OFF:
            raise InvalidInput(
                f"buffer_m and min_area_m2 need tiles in metres, but at tile {members[worst].name} a metre on the "
                f"ground is {scales[worst]:.2f} in EPSG:{epsg}; {advice}."
            )


def _scales(tiles: Sequence[Tile], epsg: int, *, of_areas: bool) -> NDArray[np.float64]:
    """Length of a metre in the middle of each tile: in the direction where it is most off, or as a square's side.

    They are the axes and the area of Tissot's indicatrix (PROJ documentation, ``proj_factors``).
    """
    projection = Proj(crs_of(epsg))
    bounds = np.array([tile.bounds for tile in tiles])
    x, y = ((bounds[:, :2] + bounds[:, 2:]) / 2).T
    factors = projection.get_factors(*projection(x, y, inverse=True))
    if of_areas:
        return np.asarray(np.sqrt(factors.areal_scale))
    longest, shortest = np.asarray(factors.tissot_semimajor), np.asarray(factors.tissot_semiminor)
    return np.where(longest - 1 > 1 - shortest, longest, shortest)


def prepare_reference(reference: Reference, storage: Storage, tiles: Iterable[Tile], folder: Path) -> PreparedReference:
    """Read the polygons once, batch by batch, and leave in a folder what the tiles need of them.

    Args:
        reference: files, columns and options.
        storage: where files on S3 are.
        tiles: those that will be labelled.
        folder: local working folder; it is made.

    Raises:
        InvalidInput: a file is missing, not readable, or has no CRS, or no polygons; a column or a class is unknown;
            the tiles have no metres.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, tiles = reference_source(reference, storage), list(tiles)
    check_units(reference, tiles)
    with _Preparation(reference, tiles, folder) as preparation:
        for number, one in enumerate(reference.inputs):
            with _opened(one, storage) as table:
                preparation.add(number, one, table)
    return PreparedReference(reference, source, str(folder), preparation.findings)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a source, which are near tiles.

    Attributes:
        rows: their numbers.
        shapes: their polygons, valid.
        near: (zone, row), whether a polygon is near a tile of the zone.
        repaired: whether a polygon was invalid.
        unusable: rows without an area among them, and besides them rows that cannot be read or reach to infinity.
        nowhere: rows besides them that have no geometry.
    """

    rows: NDArray[np.int64]
    shapes: Shapes
    near: NDArray[np.bool_]
    repaired: NDArray[np.bool_]
    unusable: int
    nowhere: int


class _Preparation:
    """The files for the tiles while they are made, and what is found meanwhile."""

    def __init__(self, reference: Reference, tiles: Iterable[Tile], folder: Path) -> None:
        self._reference = reference
        self._zones = zones_of(tiles, folder)
        self._counts: Counter[str] = Counter()
        self._unmapped: Counter[str] = Counter()
        self._names = {one.id: one.name for one in reference.classes or map(known_class, range(256))}
        self._priorities = {one.id: one.priority for one in reference.class_table or ()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for zone in self._zones:
            zone.close()

    @property
    def findings(self) -> Findings:
        names = ("polygons", "repaired", "without_polygon", "without_class", "too_small")
        return Findings(**{name: self._counts[name] for name in names}, unmapped=dict(self._unmapped))

    def add(self, number: int, one: Input, source: Source) -> None:
        """Take the polygons of a source."""
        boxes = [zone.boxes_in(source.crs, abs(self._reference.buffer_m)) for zone in self._zones]
        turn = turn_of(source.crs)
        near = [Surroundings(bounds, turn) for bounds in boxes]
        bounds = around(boxes, turn, source.extent)
        classifier = _classifier(self._reference)
        nowhere = 0
        name_column = _name_column(one, source)
        for rows in source.rows(one.class_column, name_column, bounds):
            _check_kind(rows.values, one, one.class_column)
            _check_kind(rows.names, one, name_column)
            for part in _told_parts(rows, near, one):
                nowhere += part.nowhere
                self._add_part(rows, part, number * PLACES, source.crs, near, classifier)
        counted = source.without_geometry()
        self._counts["without_polygon"] += nowhere if counted is None else counted
        _judge(classifier, self._reference, one)
        self._unmapped += classifier.unmapped

    def _add_part(
        self,
        rows: Rows,
        part: _Part,
        before: int,
        crs: CRS,
        surroundings: Sequence[Surroundings],
        classifier: Classifier,
    ) -> None:
        values = rows.values.take(pa.array(part.rows))
        ids = classifier.ids(values)
        names = None if rows.names is None else rows.names.take(pa.array(part.rows))
        columns: dict[str, NDArray[Any]] = {
            "order": self._order(ids, before + rows.place[part.rows]),
            "id": ids,
            "name": self._names_of(ids, values, names),
            "repaired": part.repaired,
        }
        used, small = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.bool_)
        for zone, around_it, near in zip(self._zones, surroundings, part.near, strict=True):
            here = np.flatnonzero(near)
            given = part.shapes.take(here)
            reprojected, cut = zone.reproject(given, crs, around_it)
            shapes, small[here] = self._shaped(reprojected, small[here], given, crs, cut)
            used[here] |= zone.add(shapes, **{name: column[here] for name, column in columns.items()})
        used &= ids >= 0
        self._counts.update(
            polygons=int(used.sum()),
            repaired=int((used & part.repaired).sum()),
            without_polygon=part.unusable,
            without_class=int((ids == NULL).sum()),
            too_small=int(small.sum()),
        )

    def _shaped(
        self,
        shapes: Shapes,
        small: NDArray[np.bool_],
        given: Shapes,
        crs: CRS,
        cut: NDArray[np.int64],
    ) -> tuple[Shapes, NDArray[np.bool_]]:
        """Leave small polygons out, and apply the buffer; tells which were too small, here or before.

        Of polygons that were cut, the area is that of the whole, as it was given.
        """
        if not self._reference.min_area_m2 and not self._reference.buffer_m:
            return shapes, small
        polygons = shapes.geometries().copy()
        there = ~shapely.is_missing(polygons)
        if self._reference.min_area_m2:
            areas = shapely.area(polygons)
            if len(cut):
                areas[cut] = areas_m2(given.take(cut), crs)
            polygons[areas < self._reference.min_area_m2] = None
        if self._reference.buffer_m:
            polygons = shapely.buffer(polygons, self._reference.buffer_m)
            polygons[shapely.is_empty(polygons)] = None
        return Geometries(polygons), small | there & shapely.is_missing(polygons)

    def _order(self, ids: NDArray[np.int16], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Higher priority comes later, then the later file, then the later row."""
        ranks = {priority: rank for rank, priority in enumerate(sorted({0, *self._priorities.values()}))}
        rank_of_id = np.array([ranks[self._priorities.get(number, 0)] for number in range(256)], np.int64)
        return rank_of_id[np.maximum(ids, 0)] * (PLACES * 256) + places

    def _names_of(self, ids: NDArray[np.int16], values: pa.Array, names: pa.Array | None) -> NDArray[np.object_]:
        """Name of each row's class; of a row whose value is in no class, that value."""
        if names is None:
            by_id = np.array([self._names.get(number, str(number)) for number in range(256)], object)
            found = by_id[np.maximum(ids, 0)]
        else:
            found = np.asarray(names.cast(pa.string()).to_numpy(zero_copy_only=False), object)
        unmapped = np.flatnonzero(ids == UNMAPPED)
        found[unmapped] = [as_text(value) for value in values.take(pa.array(unmapped)).to_pylist()]
        return found


def _told_parts(rows: Rows, zones: Sequence[Surroundings], one: Input) -> Iterator[_Part]:
    try:
        yield from _parts(rows, zones)
    except (NotImplementedError, shapely.errors.GEOSException) as error:  # such as a collection of arcs
        raise InvalidInput(
            f"{one.title} has geometries that cannot be used: {error}. Make them polygons, for example with: "
            "ogr2ogr -nlt CONVERT_TO_LINEAR polygons.gpkg FILE"
        ) from error


def _parts(rows: Rows, zones: Sequence[Surroundings]) -> Iterator[_Part]:
    """Give the rows near tiles: plain rings, then all others."""
    found, rings = single_rings(rows.polygons)
    near = _near(rings.bounds, zones)
    somewhere = near.any(axis=0)
    plain = np.flatnonzero(somewhere)
    plain = plain[rings.take(plain).plain()]
    yield _Part(found[plain], rings.take(plain), near[:, plain], np.zeros(len(plain), np.bool_), 0, 0)
    done = np.zeros(len(rows.place), np.bool_)
    done[found[~somewhere & np.isfinite(rings.bounds).all(axis=1)]] = done[found[plain]] = True
    yield _others(rows, np.flatnonzero(~done), zones)


def _others(rows: Rows, numbers: NDArray[np.int64], zones: Sequence[Surroundings]) -> _Part:
    wkb = rows.polygons.take(pa.array(numbers))
    geometries, closed = _read(wkb)
    bounds, empty = shapely.bounds(geometries), shapely.is_empty(geometries)
    near = _near(bounds, zones)
    some = np.flatnonzero(near.any(axis=0))
    polygons, repaired = polygonal(geometries[some])
    unplaced = ~np.isfinite(bounds).all(axis=1) & ~empty & wkb.is_valid().to_numpy(zero_copy_only=False)
    unusable = int(shapely.is_missing(polygons).sum() + unplaced.sum())
    nowhere = int(empty.sum()) + wkb.null_count
    repaired |= closed[some] & ~shapely.is_missing(polygons)
    return _Part(numbers[some], Geometries(polygons), near[:, some], repaired, unusable, nowhere)


def _read(wkb: pa.Array) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Geometries, None where there is none or GEOS cannot read it; and of which a ring was closed for that."""
    with np.errstate(invalid="ignore"):  # coordinates that are no numbers
        geometries = geometries_of(wkb, on_invalid="ignore")
    open_rings = np.flatnonzero(shapely.is_missing(geometries) & wkb.is_valid().to_numpy(zero_copy_only=False))
    geometries[open_rings] = shapely.from_wkb(wkb.to_numpy(zero_copy_only=False)[open_rings], on_invalid="fix")
    closed = np.zeros(len(geometries), np.bool_)
    closed[open_rings] = ~shapely.is_missing(geometries[open_rings])
    return geometries, closed


def _near(bounds: NDArray[np.float64], zones: Sequence[Surroundings]) -> NDArray[np.bool_]:
    """Whether bounds come near a tile of each zone, (zone, n)."""
    return np.stack([zone.meet(bounds) for zone in zones])


def _check_kind(values: pa.Array | None, one: Input, column: str | None) -> None:
    """Check that values are text or numbers, or anything else that can be written as text."""
    kind = pa.null() if values is None else values.type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    if binary or pa.types.is_nested(kind):
        raise InvalidInput(f"{one.title}, column {column} has values of type {kind}; choose one with text or numbers.")


def _classifier(reference: Reference) -> Classifier:
    table = reference.class_table
    return Classifier(None if table is None else {code: one.id for one in table for code in codes_of(one)})


def _judge(classifier: Classifier, reference: Reference, one: Input) -> None:
    if reference.unmapped == "refuse":
        classifier.refuse_unmapped(f"{one.title}, column {one.class_column}")


def _is_near(one: Input, storage: Storage) -> bool:
    """Whether nothing needs to be fetched to look at a column."""
    return is_database(one.file) or is_local(one.file, storage)


def _identity(one: Input, storage: Storage) -> SourceIdentity:
    if is_database(one.file):
        with _opened(one, storage) as table:
            assert isinstance(table, PostgisSource)  # noqa: S101 - as the URL says
            return SourceIdentity(table.place, *table.version(one.class_column, _name_column(one, table)))
    try:
        return SourceIdentity(Path(one.file).name, *identity_of_files(one.file, storage))
    except FileNotFoundError as error:
        raise InvalidInput(f"{one.title} does not exist; correct the path.") from error


@contextmanager
def _opened(one: Input, storage: Storage) -> Iterator[Source]:
    """Open a file or table of the reference, and check its columns; a file on a server is fetched for as long."""
    with ExitStack() as stack:
        source: Source
        if is_database(one.file):
            source = stack.enter_context(PostgisSource(one.file, one.layer, one.title, one.credentials_block))
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="eopatch-flow-"))
            source = open_source(local_copy(one.file, storage, Path(folder)), one.layer, one.title)
        for column in filter(None, (one.class_column, one.name_column)):
            if column not in source.columns:
                found = ", ".join(source.columns) or "none"
                raise InvalidInput(f"{one.title} has no column {column}; its columns are {found}.")
        yield source


def _name_column(one: Input, source: Source) -> str | None:
    return one.name_column or (NAME_COLUMN if NAME_COLUMN in source.columns else None)
