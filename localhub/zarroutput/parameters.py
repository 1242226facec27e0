"""What a request may ask of Zarr arrays, and the arrays that follow from it.

Rules: OpenAPI description, `BatchV2ZarrOutputGroup`, `BatchV2ZarrOutputArrayParameters` and `BatchV2ArrayOverride`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from localhub.delivery import Template, is_file_name, parse_s3_url
from localhub.zarroutput.compression import DEFAULT, Compressor, completed

Dtype = Literal["|u1", "|i1", "<u2", ">u2", "<i2", ">i2", "<f4", ">f4", "<f8", ">f8"]
FillValue = int | float | Literal["NaN", "Infinity", "-Infinity"]
"""As JSON has it; the three words are those of the Zarr specification."""

COORDINATES: Final = ("time", "y", "x")
"""Names of the coordinate arrays, and of the dimensions of all others in their order."""
_REQUIRED = ("dtype", "order", "chunks", "fill_value")
_HELD: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "u1": frozenset({"UINT8", "AUTO"}),
        "i1": frozenset({"INT8"}),
        "u2": frozenset({"UINT16", "UINT8", "AUTO"}),
        "i2": frozenset({"INT16", "UINT8", "INT8", "AUTO"}),
    }
)
"""Sample types that an integer type may store; floats store all of them."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @field_validator("*")
    @classmethod
    def _is_not_null(cls, value: object, info: ValidationInfo) -> object:
        """Refuse null, but for a compressor, where the Zarr specification gives it a meaning."""
        if value is None and info.field_name != "compressor":
            raise ValueError("null is not a value of this field; give one, or leave the field out")
        return value


Length = Annotated[int, Field(gt=0)]


class ArrayParameters(_Model):
    """What holds for all arrays; each field may come from an override instead."""

    dtype: Dtype | None = None
    """Type and byte order of the values."""
    order: Literal["C"] | None = None
    """Row-major chunks."""
    chunks: tuple[Literal[1], Length, Length] | None = None
    """Sides of a chunk in time, y and x; those in y and x divide the sides of each tile."""
    fill_value: FillValue | None = None
    """Value of pixels without a chunk; chunks that hold nothing else are not written."""
    compressor: Annotated[dict[str, Any], AfterValidator(completed)] | None = None
    """As the specification of Zarr has it; absent takes the default, null does not compress."""


class ArrayOverride(ArrayParameters):
    """What holds for one array instead."""

    custom_attributes: dict[str, Any] | None = Field(default=None, alias="customAttributes")
    """Attributes of the array, which override those that it would have."""


class Coordinates(_Model):
    """The group's coordinate system."""

    origin: Literal["topLeft", "bottomLeft"] = "topLeft"
    """Corner of the first pixel: y falls from row to row, or rises."""


class Group(_Model):
    """What holds for the group."""

    zarr_format: Literal[2]
    coordinates: Coordinates = Coordinates()
    custom_attributes: dict[str, Any] = Field(default={}, alias="customAttributes")
    """Attributes of the group, which override those that it would have."""


@dataclass(frozen=True)
class ArrayLayout:
    """How one array is stored."""

    name: str
    """The response's identifier."""
    dtype: Dtype
    chunk_height: int
    chunk_width: int
    fill_value: FillValue
    compressor: Compressor | None
    """None does not compress."""
    custom_attributes: Mapping[str, Any]

    @cached_property
    def fill(self) -> NDArray[Any]:
        """The fill value in the array's type, without dimensions."""
        return np.array(float(self.fill_value) if "f" in self.dtype else int(self.fill_value), self.dtype)

    def holds(self, sample_type: str) -> bool:
        """Tell whether the array's type may store an output of that sample type."""
        return "f" in self.dtype or sample_type in _HELD[self.dtype[1:]]


def layouts(
    identifiers: Iterable[str], parameters: ArrayParameters, overrides: Mapping[str, ArrayOverride]
) -> tuple[ArrayLayout, ...]:
    """Return the arrays of the responses, in their order.

    Raises:
        ValueError: an array lacks a field, cannot have its name or store its fill value, or an override has no array.
    """
    names = tuple(identifiers)
    if unknown := sorted(overrides.keys() - set(names)):
        raise ValueError(f"arrayOverrides names {unknown}, which no response has; there are {sorted(names)}")
    return tuple(_layout(name, parameters, overrides.get(name, ArrayOverride())) for name in names)


def _layout(name: str, parameters: ArrayParameters, override: ArrayOverride) -> ArrayLayout:
    if name in COORDINATES or name.startswith(".") or not is_file_name(name):
        raise ValueError(f"response '{name}' cannot be the name of an array; give it another identifier")
    given = {**_given(parameters), **_given(override)}
    if missing := [field for field in _REQUIRED if given.get(field) is None]:
        raise ValueError(f"array '{name}' lacks {', '.join(missing)}; give arrayParameters or arrayOverrides.{name}")
    _check_fill_value(name, given["dtype"], given["fill_value"])
    _, height, width = given["chunks"]
    compressor = given.get("compressor", DEFAULT)
    attributes = given.get("custom_attributes") or {}
    return ArrayLayout(name, given["dtype"], height, width, given["fill_value"], compressor, attributes)


def _given(parameters: ArrayParameters) -> dict[str, Any]:
    return {field: getattr(parameters, field) for field in parameters.model_fields_set}


def _check_fill_value(name: str, dtype: str, value: FillValue) -> None:
    if not _is_representable(dtype, value):
        raise ValueError(f"array '{name}': fill_value {value!r} cannot be stored as {dtype}; choose one that can")


def _is_representable(dtype: str, value: FillValue) -> bool:
    if isinstance(value, str):
        return "f" in dtype
    if "f" in dtype:
        return abs(value) <= float(np.finfo(dtype).max)
    limits = np.iinfo(dtype)
    return limits.min <= value <= limits.max and value == math.floor(value)


def group_template(url: str) -> Template:
    """Return the folder of a group that a delivery URL stands for; `<requestId>` is all that may vary in it.

    Raises:
        ValueError: the URL has another placeholder.
    """
    bucket, key = parse_s3_url(url)
    if set("<>") & set(key.replace("<requestId>", "")):
        raise ValueError(f"'{url}' has a placeholder other than <requestId>, which is all that a Zarr group takes")
    return Template(bucket, f"{key.strip('/')}/" if key.strip("/") else "")
