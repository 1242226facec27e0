"""The body of a Process API request: what it may hold, and the raster that it asks for.

Fields and defaults: the service's OpenAPI description, schemas ProcessRequest and below.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

import shapely
from pydantic import BaseModel, Field, ValidationError, model_validator
from shapely.geometry.base import BaseGeometry

from localhub.errors import bad_payload
from localhub.payload import Bounds, Input, Script, bad_fields, refuse_repeats
from tasks.grid import Tile

MOST_PIXELS = 2500
"""Columns, and rows, of an image."""
DEFAULT_PIXELS = 256

TAR_TYPES = ("application/tar", "application/x-tar")
"""Media types of an archive of files."""

MediaType = Literal["image/png", "image/jpeg", "image/tiff", "application/json"]

_Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
_Resolution = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = Input.model_config


class Format(_Model):
    """How an output is encoded."""

    type: MediaType = "image/png"
    quality: int = Field(default=90, ge=0, le=100)
    """Of JPEG."""


class Response(_Model):
    """One file of the answer."""

    identifier: str = "default"
    format: Format = Format()

    @model_validator(mode="after")
    def _json_is_userdata(self) -> Self:
        if (self.identifier == "userdata") != (self.format.type == "application/json"):
            raise ValueError("application/json goes with the identifier 'userdata', and images with all others")
        return self


class Output(_Model):
    """Size of the images, and the files of the answer."""

    width: _Pixels | None = None
    height: _Pixels | None = None
    resx: _Resolution | None = None
    """Width of a pixel in the unit of the bounds' CRS."""
    resy: _Resolution | None = None
    responses: tuple[Response, ...] = ()
    """None: the output `default` as a PNG."""

    @model_validator(mode="after")
    def _is_one_size(self) -> Self:
        sized = self.width is not None or self.height is not None
        if (self.resx is None) != (self.resy is None):
            raise ValueError("resx and resy go together; give both, or width and height")
        if sized and self.resx is not None:
            raise ValueError("width and height exclude resx and resy; give one pair or the other")
        return self

    @model_validator(mode="after")
    def _tells_files_apart(self) -> Self:
        refuse_repeats([response.identifier for response in self.responses])
        return self

    @property
    def files(self) -> tuple[Response, ...]:
        """The responses, with the default."""
        return self.responses or (Response(),)


class ProcessBody(_Model):
    """The whole body."""

    input: Input
    output: Output = Output()
    evalscript: Script

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        _ = self.tile
        return self

    @property
    def tile(self) -> Tile:
        """The raster: over the bbox, or else the geometry's; outside of the geometry there is no data."""
        bounds = self.input.bounds
        x0, y0, x1, y1 = bounds.bbox or _area(bounds).bounds
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"the bbox {list(box)} has no surface; give two opposite corners")
        width = _pixels("width", box[2] - box[0], self.output.width, self.output.resx)
        height = _pixels("height", box[3] - box[1], self.output.height, self.output.resy)
        outline = None if bounds.geometry is None else _within(box, _area(bounds))
        return Tile("image", bounds.epsg, box, width, height, outline)


def _area(bounds: Bounds) -> BaseGeometry:
    if bounds.area is None:
        raise ValueError("input.bounds needs a bbox or a geometry")
    return bounds.area


def _pixels(name: str, length: float, pixels: int | None, resolution: float | None) -> int:
    if resolution is None:
        return pixels or DEFAULT_PIXELS
    derived = max(1, round(length / resolution))
    if derived > MOST_PIXELS:  # the text is the service's own
        raise ValueError(
            f"`{name} = {derived}`, calculated from res{'xy'[name == 'height']}, is larger than allowed {MOST_PIXELS}."
        )
    return derived


def _within(box: tuple[float, float, float, float], area: BaseGeometry) -> bytes:
    """Return the surface of `area` within `box` as WKB."""
    parts = shapely.get_parts(shapely.intersection(area, shapely.box(*box)))
    surfaces = [part for part in parts if part.area > 0]
    if not surfaces:
        raise ValueError("the geometry lies outside of the bbox; give one of them, or an area within the box")
    return shapely.to_wkb(shapely.MultiPolygon(surfaces))


def parse_process_request(payload: Any) -> ProcessBody:
    """Return the validated body; raise the API's 400 with a note per field that is wrong."""
    try:
        return ProcessBody.model_validate_json(json.dumps(payload), strict=True)
    except ValidationError as error:
        raise bad_fields(error) from error


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with."""

    media_type: str
    """Of one file, or of a tar archive."""
    responses: tuple[Response, ...]
    """The files, in the formats that they are to have."""


def answer_of(output: Output, accept: str | None) -> Answer:
    """Return the answer; a media type in the header `Accept` goes before the format of the one response.

    Raises:
        ApiError: 400, several files and no archive asked for, or a type that the file cannot have.
    """
    asked = _named_type(accept)
    if asked in TAR_TYPES:
        return Answer(asked, output.files)
    if len(output.files) > 1:
        raise bad_payload(
            f"{len(output.files)} responses come in an archive: set the header Accept to {' or '.join(TAR_TYPES)}, "
            f"not to {accept!r}."
        )
    (response,) = output.files
    if asked is None:
        return Answer(response.format.type, output.files)
    try:
        changed = Response(
            identifier=response.identifier,
            format=Format.model_validate({**response.format.model_dump(), "type": asked}),
        )
    except ValidationError as error:
        offered = ", ".join((*get_args(MediaType), *TAR_TYPES))
        raise bad_payload(
            f"Accept: {accept} does not fit the response '{response.identifier}'; choose one of {offered}."
        ) from error
    return Answer(asked, (changed,))


def _named_type(accept: str | None) -> str | None:
    """Return the first media type of the header, None when it takes any."""
    types = [part.partition(";")[0].strip().lower() for part in (accept or "").split(",")]
    return None if types == [""] or "*/*" in types else types[0]
