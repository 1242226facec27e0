"""The body of a create request: what it may hold, and the errors that name what is wrong with it.

Fields and defaults follow the published OpenAPI description; where that is known to be mistaken, the research note
batch-v2, sections 2.2 to 2.8. Unknown keys are ignored, as the service does. The evalscript is not looked at here: the
service checks it at analysis.
"""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import shapely
from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from shapely.geometry.base import BaseGeometry

from localhub.delivery import Template, parse_s3_url, parse_template
from localhub.errors import ApiError, bad_payload
from localhub.reader import ResamplingName
from localhub.sentinel2 import ALIASES
from localhub.zarroutput.parameters import ArrayLayout, ArrayOverride, ArrayParameters, Group, group_template, layouts
from tasks.grid import GRIDS, MAX_PIXELS, RasterSize, grid_with

WGS84 = 4326
_OTHER_CRS = (
    2154, 2180, 2193, 3003, 3004, 3005, 3006, 3031, 3035, 3161, 3346, 3413, 3416, 3578, 3580, 3765, 3794, 3844, 3857,
    3912, 3995, 4026, 5514, 28992, 32184,
)  # fmt: skip
SUPPORTED_CRS = frozenset({WGS84, *_OTHER_CRS, *range(32601, 32661), *range(32701, 32761)})
"""EPSG codes that the documentation lists for `bounds.properties.crs`."""

_CRS_URL = re.compile(r"https?://www\.opengis\.net/def/crs/(?:OGC/1\.3/CRS84|EPSG/0/(\d+))")
_COLLECTION = re.compile(r"dem|hls|modis|(?:sentinel|landsat|byoc|batch|zarr)-[A-Za-z0-9._-]*[A-Za-z0-9]")
"""Names as the description and the pages on collections have them: of missions, or of users' own collections."""
_OWN = ("byoc-", "batch-", "zarr-")
"""How the names of users' own collections begin (schema BYOCDataset)."""
_SECRETS = frozenset({"accessKey", "secretAccessKey"})
_REDACTED = "***"
_TYPES = frozenset({"tiling-grid", "geopackage", "raster", "zarr"})


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, extra="ignore")

    @field_validator("*")
    @classmethod
    def _is_not_null(cls, value: object) -> object:
        """Refuse null, which no field of the description may be; None stands for an absent field here."""
        if value is None:
            raise ValueError("null is not a value of this field; give one, or leave the field out")
        return value


class Bounds(_Model):
    """Area of interest: a geometry or, without one, a box of two opposite corners; x (easting, longitude) first."""

    bbox: tuple[float, float, float, float] | None = None
    geometry: dict[str, Any] | None = None
    properties: dict[str, Any] = {}

    @property
    def epsg(self) -> int:
        """EPSG code of the coordinates; CRS84 counts as 4326, the order is x, y in both."""
        url = str(self.properties.get("crs", "http://www.opengis.net/def/crs/OGC/1.3/CRS84"))
        match = _CRS_URL.fullmatch(url)
        code = int(match[1] or WGS84) if match else 0
        if code not in SUPPORTED_CRS:
            raise ValueError(f"CRS '{url}' is not supported; give http://www.opengis.net/def/crs/EPSG/0/<code>")
        return code

    @property
    def area(self) -> BaseGeometry | None:
        """The area as a geometry in the bounds' own CRS, None when the request gives none."""
        if self.geometry is not None:
            return _polygon(self.geometry)
        if self.bbox is None:
            return None
        x0, y0, x1, y1 = self.bbox
        return shapely.box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))

    @model_validator(mode="after")
    def _is_an_area(self) -> Self:
        area = self.area
        if area is not None and not (area.is_valid and area.area > 0):
            raise ValueError(f"the area is empty or crosses itself ({shapely.is_valid_reason(area)}); repair it")
        _ = self.epsg
        return self


def _polygon(geojson: dict[str, Any]) -> BaseGeometry:
    if geojson.get("type") not in ("Polygon", "MultiPolygon"):  # any JSON value, not hashable ones only
        raise ValueError(f"the geometry is a {geojson.get('type')}; give a GeoJSON Polygon or MultiPolygon")
    try:
        polygon = shapely.from_geojson(json.dumps(geojson))
    except shapely.errors.GEOSException as error:
        raise ValueError(f"the geometry is not GeoJSON: {error}") from error
    if polygon.has_z:
        raise ValueError("the geometry has heights; give x and y (longitude and latitude) only")
    return polygon


class TimeRange(_Model):
    """Acquisition times, both ends included, each with a zone."""

    from_: AwareDatetime = Field(default=datetime(1970, 1, 1, tzinfo=UTC), alias="from")
    to: AwareDatetime = Field(default=datetime(2100, 1, 1, tzinfo=UTC))

    @field_validator("from_", "to", mode="before")
    @classmethod
    def _has_a_time(cls, value: object) -> datetime:
        if not isinstance(value, str) or "T" not in value:
            raise ValueError(f"{value!r} is not a date-time with a zone, such as 2019-01-31T14:00:00Z")
        return datetime.fromisoformat(value)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.to < self.from_:
            raise ValueError(f"the period ends ({self.to:%Y-%m-%dT%H:%M:%SZ}) before it starts; exchange from and to")
        return self


class DataFilter(_Model):
    """Which scenes count, and which comes first."""

    time_range: TimeRange = TimeRange()
    max_cloud_coverage: float = Field(default=100, ge=0, le=100)
    mosaicking_order: Literal["mostRecent", "leastRecent", "leastCC"] = "mostRecent"


class Processing(_Model):
    """Resampling of the source's pixels."""

    upsampling: ResamplingName = "NEAREST"
    downsampling: ResamplingName = "NEAREST"
    harmonize_values: bool = True
    """Whether Sentinel-2's optical values are comparable over processing baselines, and never negative."""


class Data(_Model):
    """One collection with its filter."""

    type: str
    """Name of the collection in the archive, in one of the spellings that the service knows."""
    id: str | None = None
    """Name of this entry, to which an evalscript's `datasource` refers."""
    data_filter: DataFilter = DataFilter()
    processing: Processing = Processing()

    @field_validator("type")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if value not in ALIASES and not _COLLECTION.fullmatch(value):
            raise ValueError(
                f"'{value}' is no collection; give a name such as sentinel-2-l1c, or byoc-<id> for one of your own"
            )
        return ALIASES.get(value, value)

    @model_validator(mode="before")
    @classmethod
    def _has_no_filter_of_its_own(cls, value: Any) -> Any:
        """Refuse what only other collections of the service are filtered by: it finds too much where it is ignored."""
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in ALIASES and not kind.startswith(_OWN):
            for name, model in (("dataFilter", DataFilter), ("processing", Processing)):
                _refuse_others(f"{name} of '{kind}'", value.get(name), model)
        return value

    @model_validator(mode="after")
    def _has_clouds_if_ordered_by_them(self) -> Self:
        if self.data_filter.mosaicking_order == "leastCC" and self.type.startswith(_OWN):
            raise ValueError(
                f"collection '{self.type}' has no cloud coverage to be ordered by; choose mostRecent or leastRecent"
            )
        return self


def _refuse_others(place: str, given: Any, model: type[_Model]) -> None:
    known = [field.alias for field in model.model_fields.values()]
    unknown = sorted(given.keys() - set(known)) if isinstance(given, dict) else []
    if unknown:
        raise ValueError(f"{place} has {unknown[0]}, which is not offered; it may have {', '.join(map(str, known))}")


class Input(_Model):
    """Area and collections; several of these are data fusion."""

    bounds: Bounds = Bounds()
    data: Annotated[tuple[Data, ...], Field(min_length=1)]

    @field_validator("data")
    @classmethod
    def _are_told_apart(cls, value: tuple[Data, ...]) -> tuple[Data, ...]:
        names = [data.id or str(position) for position, data in enumerate(value)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the id '{repeated[0]}' stands for several collections; give each its own")
        return value


class Format(_Model):
    """Media type of a response."""

    type: Literal["image/tiff", "application/json", "zarr/array"]


class Response(_Model):
    """One output that is delivered: a file for each feature, or an array of all of them."""

    identifier: str = "default"
    format: Format

    @model_validator(mode="after")
    def _json_is_userdata(self) -> Self:
        if (self.identifier == "userdata") != (self.format.type == "application/json"):
            raise ValueError(
                "application/json goes with the identifier 'userdata', and image/tiff or zarr/array with all others"
            )
        return self


_DEFAULT_RESPONSES = (Response(format=Format(type="image/tiff")),)


def refuse_repeats(names: Sequence[str]) -> None:
    """Raise ValueError when response identifiers repeat: their files could not be told apart."""
    if len(set(names)) < len(names):
        raise ValueError(f"response identifiers repeat: {', '.join(names)}; give each one once")


def _is_not_empty(script: str) -> str:
    if not script.strip():
        raise ValueError("Missing or empty evalscript.")
    return script


Script = Annotated[str, AfterValidator(_is_not_empty)]
"""The text of an evalscript; what it says is not looked at here."""


class ProcessOutput(_Model):
    """The responses; without any, the output `default` as a TIFF."""

    responses: tuple[Response, ...] = _DEFAULT_RESPONSES

    @field_validator("responses")
    @classmethod
    def _are_unique(cls, value: tuple[Response, ...]) -> tuple[Response, ...]:
        refuse_repeats([response.identifier for response in value])
        return value or _DEFAULT_RESPONSES


class ProcessRequest(_Model):
    """What is computed."""

    input: Input
    output: ProcessOutput
    evalscript: Script


class S3(_Model):
    """A place in an object store, with a pair of keys or the role that stands for them."""

    url: str
    access_key: str | None = Field(default=None, repr=False)
    secret_access_key: str | None = Field(default=None, repr=False)
    iam_role_arn: str | None = Field(default=None, alias="iamRoleARN")
    region: str | None = None
    regin: str | None = None
    """`region` as one published description misspells it."""

    @field_validator("url")
    @classmethod
    def _is_s3(cls, value: str) -> str:
        parse_s3_url(value)
        return value

    @model_validator(mode="after")
    def _has_access(self) -> Self:
        pair = (self.access_key, self.secret_access_key)
        if any(pair) != all(pair) or bool(self.iam_role_arn) == all(pair):
            raise ValueError("give either accessKey with secretAccessKey, or iamRoleARN")
        return self


class Place(_Model):
    """The object store of a place: S3 only."""

    s3: S3


class TilingGridInput(_Model):
    """Tiles of a grid that meet the area."""

    type: Literal["tiling-grid"]
    id: int
    resolution: float
    buffer_x: int = Field(default=0, ge=0, le=32767)
    buffer_y: int = Field(default=0, ge=0, le=32767)

    @model_validator(mode="after")
    def _is_offered(self) -> Self:
        grid_with(self.id, self.resolution)
        return self


Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]


class FeatureDefaults(_Model):
    """What features take that lack a size of their own: width and height, or a resolution."""

    width: Pixels | None = None
    height: Pixels | None = None
    resolution: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _is_one_size(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together; give both, or a resolution")
        if self.width is not None and self.resolution is not None:
            raise ValueError("width and height exclude a resolution; give one or the other")
        return self


class GeoPackageInput(_Model):
    """Features of a GeoPackage in an object store."""

    type: Literal["geopackage"]
    features: Place
    defaults: FeatureDefaults = FeatureDefaults()

    @property
    def raster_size(self) -> RasterSize:
        """The size of features that lack their own."""
        return RasterSize(self.defaults.width, self.defaults.height, self.defaults.resolution)


Resampling = Literal["nearest", "average", "gauss", "cubic", "cubicspline", "lanczos", "average_magphase", "mode"]
BlockSize = Annotated[int, Field(gt=0, le=8192, multiple_of=16)]


class CogParameters(_Model):
    """How cloud optimised GeoTIFFs are written."""

    overview_levels: tuple[Annotated[int, Field(ge=2)], ...] | None = None
    """Decimations; None takes powers of two, see `localhub.raster.overview_levels`."""
    overview_min_size: Annotated[int, Field(gt=0)] | None = None
    """Size in pixels below which there are no more overviews; None takes the block size."""
    resampling_algorithm: Resampling = "average"
    blockxsize: BlockSize = 1024
    blockysize: BlockSize = 1024
    use_predictor: bool = True

    def with_blocks(self, side_px: int) -> Self:
        """Return the parameters with square blocks of that side where the request names no size."""
        unnamed = {"blockxsize", "blockysize"} - self.model_fields_set
        return self.model_copy(update=dict.fromkeys(unnamed, side_px))


class RasterOutput(_Model):
    """Rasters, one file for each feature and response."""

    type: Literal["raster"]
    delivery: Place
    overwrite: bool = False
    skip_existing: bool = False
    cog_output: bool = False
    cog_parameters: CogParameters = CogParameters()
    create_collection: bool = False
    collection_id: str | None = None

    @model_validator(mode="after")
    def _makes_no_collection(self) -> Self:
        if self.create_collection or self.collection_id:
            raise ValueError("localhub has no collections of its own; leave createCollection and collectionId out")
        return self


class ZarrOutput(_Model):
    """One Zarr group, with an array for each response."""

    type: Literal["zarr"]
    delivery: Place
    group: Group
    array_parameters: ArrayParameters = Field(
        default=ArrayParameters(), validation_alias=AliasChoices("arrayParameters", "arrayParameter")
    )
    """What holds for all arrays. The singular is what the vendor's client sends."""
    array_overrides: dict[str, ArrayOverride] = {}
    """What holds for single arrays instead, by identifier of the response."""

    @property
    def bottom_left(self) -> bool:
        """Whether the rows of the arrays go north."""
        return self.group.coordinates.origin == "bottomLeft"


class CreateRequest(_Model):
    """The whole body."""

    process_request: ProcessRequest
    input: Annotated[TilingGridInput | GeoPackageInput, Field(discriminator="type")]
    output: Annotated[RasterOutput | ZarrOutput, Field(discriminator="type")]
    description: str | None = None
    instance_type: Literal["normal", "large"] = "normal"
    """Has no effect: the size of the service's machines, which one provider documents."""

    @property
    def template(self) -> Template:
        """The delivery template: that of every file, or the folder of the Zarr group."""
        url = self.output.delivery.s3.url
        if isinstance(self.output, ZarrOutput):
            return group_template(url)
        return parse_template(url, len(self.process_request.output.responses))

    @property
    def arrays(self) -> tuple[ArrayLayout, ...]:
        """The arrays of a Zarr group; none for raster output."""
        if not isinstance(self.output, ZarrOutput):
            return ()
        names = (response.identifier for response in self.process_request.output.responses)
        return layouts(names, self.output.array_parameters, self.output.array_overrides)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.input.type == "tiling-grid" and self.process_request.input.bounds.area is None:
            raise ValueError("processRequest.input.bounds needs a bbox or a geometry with tiling-grid input")
        _check_formats(self.process_request.output.responses, zarr=isinstance(self.output, ZarrOutput))
        if isinstance(self.output, ZarrOutput) and isinstance(self.input, TilingGridInput):
            _check_grid(self.input)
        _ = self.template, self.arrays
        return self


def _check_formats(responses: Iterable[Response], *, zarr: bool) -> None:
    for response in responses:
        if (response.format.type == "zarr/array") != zarr:
            raise ValueError(
                f"response '{response.identifier}' has the format {response.format.type}; output of type zarr takes "
                "zarr/array for every response, and output of type raster takes it for none"
            )


def _check_grid(wanted: TilingGridInput) -> None:
    """Check that a grid's tiles fit together in one array."""
    if not GRIDS[wanted.id].single_crs:
        offered = ", ".join(f"{grid.id} ({grid.name})" for grid in GRIDS.values() if grid.single_crs)
        raise ValueError(f"output of type zarr is not offered for tiling grid {wanted.id} in UTM; choose {offered}")
    if wanted.buffer_x or wanted.buffer_y:
        raise ValueError("bufferX and bufferY make tiles overlap, which an array cannot hold; leave them out with zarr")


def parse_create_request(payload: Any) -> CreateRequest:
    """Return the validated body; raise the API's 400 with a note per field that is wrong. Values are never repeated."""
    try:
        return CreateRequest.model_validate_json(json.dumps(payload), strict=True)
    except ValidationError as error:
        raise bad_fields(error) from error


def bad_fields(error: ValidationError) -> ApiError:
    """Return the 400 with a note per field that is wrong."""
    notes = {
        _field(detail["loc"]): detail["msg"].removeprefix("Value error, ")
        for detail in error.errors(include_url=False, include_input=False, include_context=False)
    }
    return bad_payload("; ".join(f"{field}: {note}" for field, note in notes.items()), notes)


def _field(location: tuple[int | str, ...]) -> str:
    """Return the path of a field in the payload, without the `type` that pydantic puts behind `input` and `output`."""
    return ".".join(str(part) for number, part in enumerate(location) if number != 1 or part not in _TYPES) or "request"


def without_secrets(value: Any) -> Any:
    """Return a JSON value with each access key and secret key replaced, at any depth."""
    if isinstance(value, dict):
        return {key: _REDACTED if key in _SECRETS else without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return value
