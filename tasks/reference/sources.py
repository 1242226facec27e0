"""Where reference polygons come from: vector files as GDAL reads them, and GeoParquet.

They are read in batches, so that memory is bounded. Rows come with their place in the source, since a spatial index
gives them in another order.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyogrio
from numpy.typing import NDArray
from pyogrio.util import vsi_path
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from tasks.errors import InvalidInput

BATCH_ROWS = 10_000
"""Rows that are read at a time; with polygons of 1,000 points that is 160 MB, a few times."""
_JSON = {"GeoJSON", "GeoJSONSeq", "ESRIJSON", "TopoJSON", "JSONFG"}
DRIVERS = {"GPKG", "ESRI Shapefile", "FlatGeobuf", "OpenFileGDB"} | _JSON
"""Formats that are read, by GDAL's names: those of which :mod:`tasks.reference.files` knows all files."""
ROW_BY_ROW = "OGR_FLATGEOBUF_STREAM_BASE_IMPL"
"""Setting of GDAL that has a FlatGeobuf read as other formats are, more slowly."""
PLACES = 2**40
"""More than a source has rows, and than any place in it."""
_WITHOUT_AREA = ("point", "line", "circularstring", "compoundcurve", "multicurve")
"""In the names of types whose geometries have no area."""
_ARCS = (8, 12)
"""First and last WKB type of geometries with arcs: CircularString and MultiSurface (OGC 06-103r4, table 7)."""

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a source, all of the same length.

    Attributes:
        place: number of the row in the source, ascending as the source's rows do, below :data:`PLACES`.
        values: of the class column.
        names: of the name column; None without one.
        polygons: WKB.
    """

    place: NDArray[np.int64]
    values: pa.Array
    names: pa.Array | None
    polygons: pa.Array


class Source(Protocol):
    """A table with polygons."""

    title: str

    @property
    def crs(self) -> CRS:
        """Of the coordinates."""

    @property
    def columns(self) -> Sequence[str]:
        """All but the geometry."""

    def values(self, column: str) -> Iterator[pa.Array]:
        """Give the values of a column, batch by batch."""

    def rows(self, class_column: str, name_column: str | None, bounds: Bounds | None) -> Iterator[Rows]:
        """Give rows batch by batch; with ``bounds`` at least those whose polygon comes near them."""

    def extent(self) -> Bounds | None:
        """Bounds of all polygons; None where that would have to be found out, or ``rows`` leaves nothing out."""

    def without_geometry(self) -> int | None:
        """Count the rows without a geometry; None where ``rows`` gives them all, to be counted there."""


def open_source(path: str, layer: str | None, title: str) -> Source:
    """Open a file.

    Args:
        path: on the local disk.
        layer: its layer; None where it has only one.
        title: how messages call it, such as "Reference file land-use.gpkg".

    Raises:
        InvalidInput: the file is not readable as vector data, has no CRS, or not this layer.
    """
    if Path(path).suffix.lower() in {".parquet", ".geoparquet"}:
        return ParquetSource(path, layer, title)
    return VectorSource(path, layer, title)


class VectorSource:
    """A layer of a file that GDAL reads."""

    def __init__(self, path: str, layer: str | None, title: str) -> None:
        self.title = title
        self._path = path
        self._check_path()
        try:
            self._layer = self._only(layer)
            self._info = pyogrio.read_info(path, layer=self._layer)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
            raise self._unreadable(error) from error
        self._check_driver(self._info["driver"])
        self.crs = known_crs(self._info["crs"], title)
        check_types([self._info["geometry_type"]], title)
        if self._info["driver"] == "FlatGeobuf":
            self._check_last()
            if not self._indexed:  # GDAL's own stream is wrong where a row has no geometry
                pyogrio.set_gdal_config_options({ROW_BY_ROW: "YES"})

    @property
    def columns(self) -> Sequence[str]:
        """All but the geometry."""
        return [str(column) for column in self._info["fields"]]

    def values(self, column: str) -> Iterator[pa.Array]:
        """See :class:`Source`."""
        count = 0
        for batch, _ in self._batches([column], None, read_geometry=False):
            yield self._codes(batch, column)
            count += batch.num_rows
        self._check_complete(count)

    def rows(self, class_column: str, name_column: str | None, bounds: Bounds | None) -> Iterator[Rows]:
        """See :class:`Source`; only a file with a spatial index leaves anything out."""
        columns = list(dict.fromkeys([class_column, *([name_column] if name_column else [])]))
        before = 0
        for batch, meta in self._batches(columns, bounds if self._indexed else None):
            fids = batch.column(meta["fid_column"] or "OGC_FID").to_numpy()
            place = self._places(fids) if self._indexed else np.arange(before, before + len(fids))
            names = _descriptions(_in_utf8(batch, name_column, self.title)) if name_column else None
            geometries = batch.column(meta["geometry_name"] or "wkb_geometry")
            self._check_stream(geometries)
            polygons = self._linear(geometries, fids)
            yield Rows(place, self._codes(batch, class_column), names, polygons)
            before += len(fids)
        if not self._indexed:
            self._check_complete(before)

    def extent(self) -> Bounds | None:
        """See :class:`Source`."""
        extent: Bounds | None = self._info["total_bounds"]
        return extent

    def without_geometry(self) -> int | None:
        """See :class:`Source`."""
        if self._info["driver"] != "GPKG":  # FlatGeobuf with an index has none
            return None
        geometry = self._info["geometry_name"].replace('"', '""')
        index = f"rtree_{self._layer}_{self._info['geometry_name']}_rowid".replace('"', '""')
        try:  # the index holds what has a geometry
            sql = f'SELECT count(*) AS count FROM "{index}"'  # noqa: S608 - names of the file, quoted
            return int(self._info["features"] - pyogrio.raw.read(self._path, sql=sql, read_geometry=False)[3][0][0])
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):  # there is no index
            where = f'"{geometry}" IS NULL OR ST_IsEmpty("{geometry}")'
            return int(sum(batch.num_rows for batch, _ in self._batches([], None, read_geometry=False, where=where)))

    @property
    def _indexed(self) -> bool:
        """Whether there is a spatial index inside, and rows have numbers that do not change with what is read."""
        driver = self._info["driver"]
        return driver == "GPKG" or (driver == "FlatGeobuf" and bool(self._info["capabilities"]["fast_spatial_filter"]))

    def _codes(self, batch: pa.RecordBatch, column: str) -> pa.Array:
        """Values of a column; of integers with a domain of coded values GDAL gives the descriptions as well."""
        values = _in_utf8(batch, column, self.title)
        kind = self._info["ogr_types"][list(self._info["fields"]).index(column)]
        coded = isinstance(values, pa.DictionaryArray) and kind in {"OFTInteger", "OFTInteger64"}
        return values.indices if coded else values

    def _places(self, fids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of rows; of those that are too large, such as times, their rank stands above all others."""
        if len(fids) == 0 or fids.max() < PLACES // 2:
            return fids
        return np.where(fids < PLACES // 2, fids, PLACES // 2 + np.searchsorted(self._all_fids, fids))

    @cached_property
    def _all_fids(self) -> NDArray[np.int64]:
        """In ascending order."""
        batches = [
            batch.column(meta["fid_column"] or "OGC_FID")
            for batch, meta in self._batches([], None, read_geometry=False)
        ]
        return np.sort(np.concatenate(batches))

    def _linear(self, polygons: pa.Array, fids: NDArray[np.int64]) -> pa.Array:
        """Geometries whose arcs are chains of segments, as GDAL makes them."""
        curved = _curved(polygons)
        if len(curved) == 0:
            return polygons
        geometries = polygons.to_numpy(zero_copy_only=False)
        try:
            geometries[curved] = pyogrio.raw.read(self._path, layer=self._layer, columns=[], fids=fids[curved])[2]
        except RuntimeError as error:
            raise self._unreadable(error) from error
        return pa.array(geometries, polygons.type)

    def _check_complete(self, count: int) -> None:
        """Check that all rows came: a stream of GDAL ends in silence before a row that cannot be read.

        Fewer than there should be are no harm where rows are only marked as deleted, which reading row by row tells.
        """
        said = self._info["features"]
        if count >= said:
            return
        try:
            there = len(
                pyogrio.raw.read(self._path, layer=self._layer, columns=[], read_geometry=False, return_fids=True)[1]
            )
        except RuntimeError:
            there = said
        if there > count:
            raise InvalidInput(
                f"{self.title} says that it has {said:,} rows, but {count:,} could be read; copy it again."
            )

    def _check_last(self) -> None:
        """Check that a FlatGeobuf has its last row: where it is cut off just before one, reading ends in silence."""
        said = self._info["features"]
        try:
            if said > 0:
                pyogrio.raw.read(self._path, layer=self._layer, columns=[], fids=[said - 1])
        except RuntimeError as error:
            raise InvalidInput(
                f"{self.title} says that it has {said:,} rows, but the last one cannot be read; copy it again."
            ) from error

    def _batches(
        self, columns: list[str], bounds: Bounds | None, **options: Any
    ) -> Iterator[tuple[pa.RecordBatch, dict[str, Any]]]:
        try:
            with pyogrio.open_arrow(
                self._path,
                layer=self._layer,
                columns=columns,
                bbox=bounds,
                return_fids=True,
                batch_size=BATCH_ROWS,
                use_pyarrow=True,
                **options,
            ) as (meta, reader):
                for batch in reader:
                    yield batch, meta
        except (pa.ArrowException, OSError, RuntimeError) as error:
            raise self._unreadable(error) from error

    def _only(self, layer: str | None) -> str:
        given = pyogrio.list_layers(self._path)
        layers = [str(name) for name, geometry_type in given if geometry_type is not None]
        if layer is None and len(layers) == 1:
            return layers[0]
        if layer in layers:
            return str(layer)
        if len(given) > 0:
            self._check_driver(pyogrio.read_info(self._path, layer=0)["driver"])
        asked = "no layer was named" if layer is None else f"layer {layer} is not in it"
        found = ", ".join(layers) or "none with geometries"
        raise InvalidInput(f"{self.title}: {asked}; name one of its layers: {found}.")

    def _check_stream(self, geometries: pa.Array) -> None:
        """Check that each row of a FlatGeobuf with an index has a geometry, as GDAL's stream takes for granted."""
        try:
            geometries.validate(full=self._info["driver"] == "FlatGeobuf")
        except pa.ArrowInvalid as error:
            raise InvalidInput(
                f"{self.title} has a spatial index and rows without a geometry, which GDAL mixes up; write it again, "
                f"for example with: ogr2ogr --config {ROW_BY_ROW} YES polygons.gpkg FILE"
            ) from error

    def _check_path(self) -> None:
        """Check that pyogrio takes the path for that of a file, and not for an archive and what is in it."""
        if not vsi_path(self._path).endswith(self._path):
            raise InvalidInput(
                f"{self.title} cannot be opened, as its path has a '!' or ';', or '?' at the end; rename it."
            )

    def _check_driver(self, driver: str) -> None:
        if driver not in DRIVERS:
            raise InvalidInput(
                f"{self.title} is in the format '{driver}', which is not read; GeoPackage, Shapefile, GeoJSON, "
                "FlatGeobuf, file geodatabases and GeoParquet are. Convert it, for example with: ogr2ogr polygons.gpkg "
                "FILE"
            )

    def _unreadable(self, error: Exception) -> InvalidInput:
        return InvalidInput(f"{self.title} is not readable as vector data: {error}.")


class ParquetSource:
    """A GeoParquet file (specification 1.0 and 1.1, encoding WKB), which has one table."""

    def __init__(self, path: str, layer: str | None, title: str) -> None:
        self.title = title
        try:
            self._file = pq.ParquetFile(path)
            meta = json.loads((self._file.schema_arrow.metadata or {})[b"geo"])
            self._geometry = meta["primary_column"]
            described = meta["columns"][self._geometry]
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise InvalidInput(f"{title} is not readable as GeoParquet: {error!r}.") from error
        if layer is not None:
            raise InvalidInput(f"{title}: layer {layer} is not in it; GeoParquet has no layers, leave layer empty.")
        encoding = described.get("encoding")
        if encoding != "WKB":
            raise InvalidInput(f"{title}: geometries in the encoding {encoding} are not supported; write them as WKB.")
        self.crs = known_crs(described.get("crs", "OGC:CRS84"), title)
        types = described.get("geometry_types", described.get("geometry_type", []))  # one or several up to version 0.4
        check_types([types] if isinstance(types, str) else types, title)

    @cached_property
    def columns(self) -> Sequence[str]:
        """All but the geometry."""
        return [name for name in self._file.schema_arrow.names if name != self._geometry]

    def values(self, column: str) -> Iterator[pa.Array]:
        """See :class:`Source`."""
        for batch in self._batches([column]):
            yield _in_utf8(batch, column, self.title)

    def rows(self, class_column: str, name_column: str | None, bounds: Bounds | None) -> Iterator[Rows]:
        """See :class:`Source`; all rows are read."""
        del bounds
        columns = [class_column, *([name_column] if name_column else []), self._geometry]
        before = 0
        for batch in self._batches(list(dict.fromkeys(columns))):
            names = _in_utf8(batch, name_column, self.title) if name_column else None
            place = np.arange(before, before + batch.num_rows)
            yield Rows(place, _in_utf8(batch, class_column, self.title), names, batch.column(self._geometry))
            before += batch.num_rows

    def extent(self) -> Bounds | None:
        """See :class:`Source`."""
        return None

    def without_geometry(self) -> int | None:
        """See :class:`Source`."""
        return None

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from map(_without_views, self._file.iter_batches(BATCH_ROWS, columns=columns))
        except (pa.ArrowException, OSError) as error:
            raise InvalidInput(f"{self.title} is not readable as GeoParquet: {error}.") from error


def _in_utf8(batch: pa.RecordBatch, column: str, title: str) -> pa.Array:
    """Give a column whose text is what Arrow takes it for."""
    values = batch.column(column)
    text = values.dictionary if pa.types.is_dictionary(values.type) else values
    try:
        text.validate(full=pa.types.is_string(text.type) or pa.types.is_large_string(text.type))
    except pa.ArrowInvalid as error:
        raise InvalidInput(
            f"{title}, column {column} has text that is not in the encoding that the file says: {error}. Correct the "
            ".cpg of a Shapefile, or write the file again, for example with: "
            "ogr2ogr -oo ENCODING=CP1250 polygons.gpkg FILE"
        ) from error
    return values


def _without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows whose text and WKB are no views, for which Arrow has few functions."""
    plain = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    schema = pa.schema([field.with_type(plain.get(field.type, field.type)) for field in batch.schema])
    return batch if schema == batch.schema else batch.cast(schema)


def _descriptions(values: pa.Array) -> pa.Array:
    """Text in place of the codes of a domain; null for a code that is not in it."""
    if not isinstance(values, pa.DictionaryArray):
        return values
    codes, described = values.indices, len(values.dictionary)
    known = pc.and_(pc.greater_equal(codes, 0), pc.less(codes, described))
    return values.dictionary.take(pc.if_else(known, codes, None))


def _curved(polygons: pa.Array) -> NDArray[np.intp]:
    """Rows whose WKB is a geometry with arcs, also with Z and M."""
    column = polygons.cast(pa.large_binary())
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    rows = np.flatnonzero(np.diff(offsets) >= 5)
    kinds = np.ndarray(max(len(data) - 3, 0), "<u4", data, strides=(1,))[offsets[rows] + 1]
    big_endian = data[offsets[rows]] == 0
    kinds[big_endian] = kinds[big_endian].byteswap()
    kinds %= 1000
    return rows[(kinds >= _ARCS[0]) & (kinds <= _ARCS[1])]


def check_types(types: Sequence[str | None], title: str) -> None:
    """Check that a source may hold polygons, by its types of geometries.

    Raises:
        InvalidInput: it holds nothing but points or lines.
    """
    if types and not any(map(has_areas, types)):
        raise InvalidInput(
            f"{title} has no polygon but geometries of type {', '.join(map(str, types))}; choose another file or layer."
        )


def has_areas(kind: str | None) -> bool:
    """Whether a type of geometries is, or may be, one of areas."""
    return kind is None or not any(word in kind.lower() for word in _WITHOUT_AREA)


def known_crs(given: Any, title: str) -> CRS:
    """Give a source's CRS.

    Raises:
        InvalidInput: there is none, PROJ does not know it, or it is not tied to the Earth.
    """
    try:
        if given is not None:
            crs = CRS.from_user_input(given)
            if not (str(given).startswith("EPSG:") and (crs.is_projected or crs.is_geographic)):
                Transformer.from_crs(crs, 4326)
            return crs
    except CRSError as error:
        raise InvalidInput(f"{title} has a coordinate reference system that is not known: {error}.") from error
    except ProjError as error:
        raise InvalidInput(
            f"{title} is in the coordinate reference system '{crs.name}', which is not tied to the Earth; assign the "
            "one that its coordinates are in, for example with: ogr2ogr -a_srs EPSG:32633 with-crs.gpkg FILE"
        ) from error
    raise InvalidInput(
        f"{title} has no coordinate reference system; assign the one that its coordinates are in, for example with: "
        "ogr2ogr -a_srs EPSG:32633 with-crs.gpkg FILE"
    )
