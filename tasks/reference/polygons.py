"""The reference file: polygons that are read and checked once, and written once per CRS."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from pydantic import ConfigDict, Field, field_validator

from tasks.classes import LAND_COVER_CLASSES
from tasks.eopatches import file_identity
from tasks.errors import InvalidInput
from tasks.form import FormModel

ID_COLUMN, NAME_COLUMN = "LULC_ID", "LULC_NAME"
"""Columns of LULC_REFERENCE, and of the prepared files."""
ROW_COLUMN = "ROW"
"""Column of the prepared files that keeps the order of the reference file; a spatial index sorts them otherwise."""
SHOWN_VALUES = 10
"""How many wrong values a message names."""


FETCHED_TO_CHECK_BYTES = 50_000_000
"""A file on a server is fetched only to be checked up to this size: within seconds."""


class Reference(FormModel):
    """Polygons with land-cover classes."""

    model_config = ConfigDict(title="Reference polygons")

    file: str = Field(
        title="File",
        description="Vector file that geopandas reads (GeoPackage, Shapefile, GeoJSON, FlatGeobuf, zipped too): a path "
        "or a URL such as s3://.",
        examples=["data/land-use.gpkg"],
        min_length=1,
    )
    layer: str | None = Field(
        default=None, title="Layer", description="Needed where the file has several.", examples=["land_use"]
    )
    class_column: str = Field(
        default="LULC_ID", title="Class column", description="Column with the classes.", examples=["LULC_ID"]
    )
    name_column: str | None = Field(
        default=None,
        title="Name column",
        description="Column with the classes' names. Empty: LULC_NAME if the file has it, else the SI_LULC names.",
        examples=["LULC_NAME"],
    )
    class_table: dict[str, int] | None = Field(
        default=None,
        title="Class table",
        description="Class id, 0 to 255, for each value of the class column. Empty: the values are the ids.",
        examples=[{"1100": 1, "2000": 2, "forest": 2}],
    )

    @field_validator("class_table", mode="before")
    @classmethod
    def _keys_are_text(cls, value: object) -> object:
        return {_as_text(key): number for key, number in value.items()} if isinstance(value, Mapping) else value

    @field_validator("class_table")
    @classmethod
    def _ids_fit(cls, value: dict[str, int] | None) -> dict[str, int] | None:
        wrong = {key: number for key, number in (value or {}).items() if not 0 <= number <= 255}
        if wrong:
            raise ValueError(f"class ids must be 0 to 255, but the table has {wrong}")
        return value

    @property
    def class_table_sha256(self) -> str:
        """Hash of the class table."""
        return _sha256(self.class_table)

    @property
    def options_sha256(self) -> str:
        """Hash of everything but the file and the class table."""
        return _sha256(self.model_dump(exclude={"file", "class_table"}))


@dataclass(frozen=True, slots=True)
class ReferenceSource:
    """Identity of a reference as META_INFO/REFERENCE keeps it; it is known without reading the file.

    Attributes:
        name: last part of the file's path.
        size: bytes.
        version: ETag or time of modification.
        class_table_sha256: hash of the class table.
        options_sha256: hash of the other options.
    """

    name: str
    size: int
    version: str
    class_table_sha256: str
    options_sha256: str


@dataclass(frozen=True, slots=True)
class PreparedReference:
    """Checked polygons on the local disk, one file per CRS, and what was found on the way.

    Attributes:
        source: where they come from.
        files: path of a FlatGeobuf with a spatial index, by EPSG code.
        polygons: rows that are used.
        repaired: rows with an invalid geometry that was made valid; they are among ``polygons``.
        without_polygon: rows left out because they have no geometry, or one without an area.
        without_class: rows left out because their class is null.
    """

    source: ReferenceSource
    files: Mapping[int, str]
    polygons: int
    repaired: int
    without_polygon: int
    without_class: int


def reference_source(reference: Reference, files: AbstractFileSystem, path: str) -> ReferenceSource:
    """Identify a reference by its file's size and version and by its options.

    Raises:
        InvalidInput: the file does not exist.
    """
    try:
        identity = file_identity(files, path)
    except FileNotFoundError as error:
        raise InvalidInput(f"Reference file {reference.file} does not exist; correct the path.") from error
    return ReferenceSource(
        name=Path(path).name,
        size=int(identity["size"]),
        version=str(identity["version"]),
        class_table_sha256=reference.class_table_sha256,
        options_sha256=reference.options_sha256,
    )


def check_reference(reference: Reference, files: AbstractFileSystem, path: str) -> ReferenceSource:
    """Identify a reference as :func:`reference_source`, and check layer, CRS, columns and classes.

    A large file on a server is not fetched for this: :func:`prepare_reference` checks it when it is used.

    Raises:
        InvalidInput: as :func:`prepare_reference`, but for the polygons themselves.
    """
    source = reference_source(reference, files, path)
    if isinstance(files, LocalFileSystem) or source.size <= FETCHED_TO_CHECK_BYTES:
        with tempfile.TemporaryDirectory(prefix="eopatch-flow-") as folder:
            rows = _read(reference, _local_copy(files, path, Path(folder)), geometries=False)
        _classes(rows[reference.class_column], reference)
    return source


def prepare_reference(
    reference: Reference, files: AbstractFileSystem, path: str, epsgs: Iterable[int], folder: Path
) -> PreparedReference:
    """Read and check the polygons once, and write them to ``folder`` in each CRS with a spatial index.

    Args:
        reference: file and columns.
        files: file system of the file.
        path: the file's path there.
        epsgs: CRSs of the tiles.
        folder: local working folder; it is made.

    Raises:
        InvalidInput: the file is missing, not readable, or has no CRS; a column or a class is unknown; there is no
            polygon.
    """
    source = reference_source(reference, files, path)
    folder.mkdir(parents=True, exist_ok=True)
    rows = _read(reference, _local_copy(files, path, folder))
    classes = _classes(rows[reference.class_column], reference)
    polygons, repaired = _polygons(rows)
    usable = polygons.notna() & classes.notna()
    if not usable.any():
        raise InvalidInput(
            f"Reference file {reference.file} has no polygon with a class; choose another file or layer."
        )
    table = gpd.GeoDataFrame(
        {ID_COLUMN: classes[usable].astype("int32"), NAME_COLUMN: _names(rows, classes, reference)[usable]},
        geometry=polygons[usable],
        crs=rows.crs,
    )
    table[ROW_COLUMN] = np.arange(len(table))
    return PreparedReference(
        source=source,
        files={epsg: _write(table, epsg, folder) for epsg in sorted(set(epsgs))},
        polygons=len(table),
        repaired=repaired,
        without_polygon=int(polygons.isna().sum()),
        without_class=int(classes.isna().sum()),
    )


def _local_copy(files: AbstractFileSystem, path: str, folder: Path) -> str:
    """Path of the file on the local disk; a remote one is copied, a Shapefile with the files that belong to it."""
    if isinstance(files, LocalFileSystem):
        return path
    stem, suffix = path.rsplit(".", 1)[0], Path(path).suffix.lower()
    parts = [str(part) for part in files.glob(f"{stem}.*")] if suffix == ".shp" else [path]
    for part in parts:
        files.get_file(part, str(folder / Path(part).name))
    return str(folder / Path(path).name)


def _read(reference: Reference, path: str, *, geometries: bool = True) -> gpd.GeoDataFrame:
    """Read classes, names and geometries of the layer, rows in the file's order; a plain table without geometries."""
    try:
        layer = _layer(reference, path)
        info = pyogrio.read_info(path, layer=layer)
        columns = _columns(reference, [str(column) for column in info["fields"]])
        if info["crs"] is None:
            raise InvalidInput(
                f"Reference file {reference.file} has no coordinate reference system; assign the one that its "
                "coordinates are in, for example with: ogr2ogr -a_srs EPSG:32633 with-crs.gpkg FILE"
            )
        return pyogrio.read_dataframe(
            path, layer=layer, columns=columns, read_geometry=geometries, force_2d=True, on_invalid="ignore"
        )
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise InvalidInput(f"Reference file {reference.file} is not readable as vector data: {error}.") from error


def _layer(reference: Reference, path: str) -> str:
    layers = [str(name) for name, geometry_type in pyogrio.list_layers(path) if geometry_type is not None]
    if reference.layer is None and len(layers) == 1:
        return layers[0]
    if reference.layer in layers:
        return str(reference.layer)
    asked = "no layer was named" if reference.layer is None else f"layer {reference.layer} is not in it"
    found = ", ".join(layers) or "none with geometries"
    raise InvalidInput(f"Reference file {reference.file}: {asked}; name one of its layers: {found}.")


def _columns(reference: Reference, fields: list[str]) -> list[str]:
    """The class column and, where there is one, the name column."""
    asked = [reference.class_column] + ([reference.name_column] if reference.name_column else [])
    for column in asked:
        if column not in fields:
            found = ", ".join(fields) or "none"
            raise InvalidInput(f"Reference file {reference.file} has no column {column}; its columns are {found}.")
    implied = [NAME_COLUMN] if reference.name_column is None and NAME_COLUMN in fields else []
    return list(dict.fromkeys(asked + implied))


# ---- classes, names, polygons ----


def _classes(values: "pd.Series[Any]", reference: Reference) -> "pd.Series[float]":
    """Class id of each row, NaN where the class is null."""
    if reference.class_table is not None:
        texts = values.map(_as_text, na_action="ignore")
        classes = texts.map(reference.class_table, na_action="ignore").astype(float)
        known = ", ".join(reference.class_table)
        _refuse(values[values.notna() & classes.isna()], reference, f"not in the class table ({known}); add them")
        return classes
    advice = "no class ids, which are integers from 0 to 255; give a class_table from values to ids"
    if not pd.api.types.is_numeric_dtype(values):
        _refuse(values[values.notna()], reference, advice)
    classes = values.astype(float)
    _refuse(values[classes.notna() & ~classes.isin(range(256))], reference, advice)
    return classes


def _refuse(values: "pd.Series[Any]", reference: Reference, problem: str) -> None:
    if values.empty:
        return
    distinct = sorted({_as_text(value) for value in values})
    shown = ", ".join(distinct[:SHOWN_VALUES]) + (", …" if len(distinct) > SHOWN_VALUES else "")
    raise InvalidInput(
        f"Reference file {reference.file}, column {reference.class_column}: {len(values)} rows have values that are "
        f"{problem}. Values: {shown}."
    )


def _as_text(value: object) -> str:
    """A class as the class table's keys are written: 1300, 1300.0 and "1300" are the same class."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _names(rows: gpd.GeoDataFrame, classes: "pd.Series[float]", reference: Reference) -> "pd.Series[Any]":
    """Class name of each row; classes that SI_LULC does not know are named by their id."""
    column = reference.name_column or (NAME_COLUMN if NAME_COLUMN in rows else None)
    if column is not None:
        return pd.Series(rows[column], dtype=object)
    known = {land_cover.id: land_cover.name for land_cover in LAND_COVER_CLASSES}
    return classes.map(lambda number: known.get(int(number), str(int(number))), na_action="ignore").astype(object)


def _polygons(rows: gpd.GeoDataFrame) -> tuple["pd.Series[Any]", int]:
    """Valid (multi)polygon of each row, None where there is none with an area; and how many had to be repaired."""
    geometries = rows.geometry.to_numpy(copy=True)
    invalid = ~shapely.is_valid(geometries) & ~shapely.is_missing(geometries)
    geometries[invalid] = shapely.make_valid(geometries[invalid])
    for position in np.flatnonzero(shapely.get_type_id(geometries) == shapely.GeometryType.GEOMETRYCOLLECTION):
        geometries[position] = _polygonal_part(geometries[position])
    types = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
    polygonal = np.isin(shapely.get_type_id(geometries), types) & (shapely.area(geometries) > 0)
    geometries[~polygonal] = None
    return gpd.GeoSeries(geometries, index=rows.index, crs=rows.crs), int((invalid & polygonal).sum())


def _polygonal_part(collection: shapely.GeometryCollection) -> shapely.Geometry:
    parts = shapely.get_parts(shapely.get_parts(collection))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon"])


def _write(table: gpd.GeoDataFrame, epsg: int, folder: Path) -> str:
    """Write polygons in one CRS with a spatial index; those that the projection cannot hold are far from any tile."""
    projected = table.to_crs(epsg)
    path = folder / f"reference-{epsg}.fgb"
    finite = np.isfinite(projected.bounds.to_numpy()).all(axis=1)
    pyogrio.write_dataframe(projected[finite], path, driver="FlatGeobuf", promote_to_multi=True)
    return str(path)


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
