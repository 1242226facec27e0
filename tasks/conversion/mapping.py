"""Which features an EOPatch gets: a declarative mapping from an evalscript's outputs, and two builders of it."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator

from tasks.arrayfiles import BLOSC_HEADER, FileFormat
from tasks.errors import InvalidInput
from tasks.evalscript import Output, SampleType
from tasks.form import FormModel
from tasks.grid import Tile

REFLECTANCE_SCALE = 1e-4
"""Reflectance per unit of a UINT16 band."""
INDEX_SCALE, INDEX_OFFSET, INDEX_NO_DATA = 1e-4, -1.0, 65535
"""Indices travel as UINT16 ``round(10000 * (index + 1))``, 65535 being no data."""

LARGEST_CHUNK = 2**31 - 1 - BLOSC_HEADER
"""Bytes of what is compressed by Blosc in one piece."""

StoredType = Literal["uint8", "int8", "uint16", "int16", "int64", "float32"]
"""NumPy types of stored features."""


class FeatureRule(FormModel):
    """How one feature is made of one or several outputs: ``value = number * scale + offset``."""

    model_config = ConfigDict(title="Feature")

    feature_type: Literal["data", "mask", "data_timeless", "mask_timeless"] = Field(
        title="Feature type",
        description="eo-learn's feature type. Of a timeless feature the bands of a file are bands, of others dates.",
        examples=["data"],
    )
    name: str = Field(
        title="Feature name",
        description="Name of the feature in the EOPatch.",
        examples=["BANDS"],
        pattern=r"^[^./\\|;:\n\t*?\[\]]+$",  # what eo-learn forbids, and patterns of file names
    )
    outputs: tuple[str, ...] = Field(
        title="Outputs",
        description="Ids of the evalscript's outputs that stand along the band axis, in this order.",
        examples=[["B02", "B03", "B04"]],
        min_length=1,
    )
    bands_per_date: int = Field(
        default=1,
        title="Bands per date",
        description="How many bands the files have for each date; along the band axis stand those of the first output, "
        "then those of the second. Of features with dates only.",
        examples=[4],
        ge=1,
    )
    band_order: Literal["by date", "by band"] = Field(
        default="by date",
        title="Order of the bands in a file",
        description="Where there are several bands per date. by date: all bands of the first date, then those of the "
        "second. by band: the first band of all dates, then the second of all dates.",
        examples=["by date"],
    )
    bands: int | None = Field(
        default=None,
        title="Bands",
        description="How many bands the files of a timeless feature have together, which an empty tile's gets as well. "
        "Empty: what the evalscript's setup says, or one for each output.",
        examples=[3],
        ge=1,
    )
    scale: float = Field(
        default=1.0,
        title="Scale",
        description="Factor from delivered numbers to values.",
        examples=[REFLECTANCE_SCALE],
        allow_inf_nan=False,
    )
    offset: float = Field(
        default=0.0,
        title="Offset",
        description="Added to the value after scaling.",
        examples=[-1.0],
        allow_inf_nan=False,
    )
    no_data: float | None = Field(
        default=None,
        title="No-data number",
        description="Delivered number that stands for no data; it becomes 0. Empty: every number is a value, whatever "
        "a file's nodata tag says.",
        examples=[INDEX_NO_DATA],
        allow_inf_nan=False,
    )
    dtype: StoredType = Field(
        default="float32", title="Data type", description="NumPy type of the stored values.", examples=["float32"]
    )
    sample_type: SampleType | None = Field(
        default=None,
        title="Sample type",
        description="Sample type that the files must have, as in the evalscript's setup. Empty: any.",
        examples=["UINT16"],
    )

    @model_validator(mode="after")
    def _mask_is_discrete(self) -> Self:
        if "mask" in self.feature_type and self.dtype == "float32":
            raise ValueError(
                f"Feature {self.name} is a {self.feature_type}, which holds integers, but its dtype is float32"
            )
        return self

    @model_validator(mode="after")
    def _dates_have_bands(self) -> Self:
        if self.bands_per_date > 1 and not self.temporal:
            raise ValueError(
                f"Feature {self.name} is a {self.feature_type}, which has no dates and takes all bands of a file, but "
                f"its bands_per_date is {self.bands_per_date}; leave that out"
            )
        return self

    @property
    def temporal(self) -> bool:
        """Whether the feature has a time axis."""
        return not self.feature_type.endswith("_timeless")

    @property
    def depth(self) -> int:
        """Length of the band axis, as far as it is known beforehand."""
        return (None if self.temporal else self.bands) or len(self.outputs) * self.bands_per_date

    @property
    def keeps_numbers(self) -> bool:
        """Whether the numbers that are delivered are the values."""
        return (self.scale, self.offset, self.no_data or 0) == (1.0, 0.0, 0)

    def positions(self, date: int, dates: int) -> slice:
        """Where a date's bands stand in a file of so many dates."""
        if self.band_order == "by date":
            return slice(date * self.bands_per_date, (date + 1) * self.bands_per_date)
        return slice(date, dates * self.bands_per_date, dates)


class FeatureMapping(FormModel):
    """Which features an EOPatch gets, and from which outputs."""

    model_config = ConfigDict(title="Feature mapping")

    features: tuple[FeatureRule, ...] = Field(
        title="Features",
        description="One rule per feature.",
        examples=[[{"feature_type": "data", "name": "NDVI", "outputs": ["NDVI"], "scale": 0.0001, "offset": -1.0}]],
        min_length=1,
    )
    quality_output: str | None = Field(
        default="QUALITY",
        title="Quality output",
        description="Output that says per date: 0 no data, 1 valid, above 1 data of lesser quality. MASK/IS_DATA "
        "(above 0) and MASK/IS_VALID (equal to 1) are made of it, and features with dates are 0 where it is 0. "
        "Empty: neither.",
        examples=["QUALITY"],
    )

    @model_validator(mode="after")
    def _features_are_distinct(self) -> Self:
        names = [(rule.feature_type, rule.name.lower()) for rule in self.features]
        if self.quality_output is not None:
            names += [("mask", "is_data"), ("mask", "is_valid")]
        twice = sorted({f"{kind}/{name}" for kind, name in names if names.count((kind, name)) > 1})
        if twice:
            raise ValueError(
                f"Features must differ by more than upper and lower case, but {', '.join(twice)} occurs twice"
            )
        return self

    @model_validator(mode="after")
    def _quality_has_a_band_per_date(self) -> Self:
        for rule in self.features:
            if self.quality_output in rule.outputs and rule.bands_per_date > 1:
                raise ValueError(
                    f"Feature {rule.name} has {rule.bands_per_date} bands per date, but the quality output "
                    f"{self.quality_output}, which it takes, has one; give either its own"
                )
        return self

    @property
    def outputs(self) -> frozenset[str]:
        """Ids of all outputs that the mapping needs."""
        ids = {output for rule in self.features for output in rule.outputs}
        return frozenset(ids if self.quality_output is None else ids | {self.quality_output})

    @property
    def temporal(self) -> bool:
        """Whether any feature has a time axis."""
        return self.quality_output is not None or any(rule.temporal for rule in self.features)

    @property
    def sha256(self) -> str:
        """Hash that changes with what a tile becomes; what earlier versions did not have counts only if it is used."""
        new = {
            place: {"bands"} if rule.bands_per_date > 1 else {"bands", "bands_per_date", "band_order"}
            for place, rule in enumerate(self.features)
        }
        return hashlib.sha256(self.model_dump_json(exclude={"features": new}).encode()).hexdigest()


def land_cover_mapping(
    bands: Sequence[str], indices: Iterable[str], band_dtype: Literal["float32", "uint16"] = "float32"
) -> FeatureMapping:
    """Give the features of the land-cover evalscript: BANDS, each index, QUALITY, IS_DATA, IS_VALID and VALID_COUNT.

    Args:
        bands: ids along the band axis of BANDS, in this order.
        indices: ids of the indices, each its own feature.
        band_dtype: float32 stores reflectance, uint16 reflectance times 10000.
    """
    scale = REFLECTANCE_SCALE if band_dtype == "float32" else 1.0
    reflectance = FeatureRule(
        feature_type="data", name="BANDS", outputs=tuple(bands), scale=scale, dtype=band_dtype, sample_type="UINT16"
    )
    quality = FeatureRule(feature_type="mask", name="QUALITY", outputs=("QUALITY",), dtype="uint8", sample_type="UINT8")
    # int64 is what eo-learn's CountValid gives
    count = FeatureRule(
        feature_type="mask_timeless", name="VALID_COUNT", outputs=("VALID_COUNT",), dtype="int64", sample_type="UINT16"
    )
    return FeatureMapping(features=(reflectance, *map(_index_rule, indices), quality, count))


def _index_rule(index: str) -> FeatureRule:
    return FeatureRule(
        feature_type="data",
        name=index,
        outputs=(index,),
        scale=INDEX_SCALE,
        offset=INDEX_OFFSET,
        no_data=INDEX_NO_DATA,
        sample_type="UINT16",
    )


def default_mapping(
    outputs: Sequence[Output], *, temporal: bool = True, bands_per_scene: Mapping[str, int] | None = None
) -> FeatureMapping:
    """Give a mapping for any evalscript: each output becomes a DATA feature of its own name, numbers as delivered.

    An output's bands are dates, except where it has a single band and another output has several, or as many as there
    are scenes: that one is timeless. An output named QUALITY becomes a mask and the mapping's quality output.

    Args:
        outputs: as ``setup`` declares them.
        temporal: False for a script that gives no dates (no ``userdata.json``): every output is timeless.
        bands_per_scene: of the outputs that grow with the number of scenes, see `tasks.evalscript.Script`.

    Raises:
        InvalidInput: an output has several bands per scene, and their order is not known, or no feature can have the
            name and type of an output.
    """
    growing = bands_per_scene or {}
    unordered = [f"{output} ({bands})" for output, bands in growing.items() if temporal and bands > 1]
    if unordered:
        raise InvalidInput(
            f"The evalscript's outputs {', '.join(unordered)} have several bands per scene, as many as stand in "
            "brackets; give a feature mapping that says their bands_per_date and band_order."
        )
    several = bool(growing) or max((bands for _, bands, _ in outputs), default=1) > 1
    try:
        rules = tuple(
            FeatureRule(
                feature_type=_default_type(
                    output, temporal=temporal and (output in growing or bands > 1 or not several)
                ),
                name=output,
                outputs=(output,),
                dtype=stored_type(sample_type),
                sample_type=sample_type,
            )
            for output, bands, sample_type in outputs
        )
        has_quality = any(rule.name == "QUALITY" and rule.feature_type == "mask" for rule in rules)
        return FeatureMapping(features=rules, quality_output="QUALITY" if has_quality else None)
    except ValidationError as error:
        reasons = "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
        raise InvalidInput(
            f"The evalscript's outputs {', '.join(output for output, _, _ in outputs)} cannot become features of the "
            f"same names and types: {reasons}. Give a feature mapping."
        ) from error


def with_bands(mapping: FeatureMapping, outputs: Iterable[Output]) -> FeatureMapping:
    """Put into the rules of timeless features how many bands their files have, as far as ``setup`` tells.

    Args:
        mapping: of these outputs.
        outputs: as ``setup`` declares them.
    """
    bands = {output: count for output, count, _ in outputs}

    def completed(rule: FeatureRule) -> FeatureRule:
        counts = [bands.get(output, 0) for output in rule.outputs]
        return rule if rule.temporal or not all(counts) else rule.model_copy(update={"bands": sum(counts)})

    return mapping.model_copy(update={"features": tuple(map(completed, mapping.features))})


def check_frames(mapping: FeatureMapping, tiles: Iterable[Tile], file_format: FileFormat) -> None:
    """Check that a date of each feature, or all of a timeless one, fits into a chunk of zarr.

    Source of the limit: ``BLOSC_MAX_BUFFERSIZE`` of c-blosc 1.21.

    Raises:
        InvalidInput: it does not.
    """
    if file_format != "zarr":
        return
    width, height = max(((tile.width, tile.height) for tile in tiles), key=math.prod, default=(0, 0))
    for rule in mapping.features:
        size = width * height * rule.depth * np.dtype(rule.dtype).itemsize
        if size > LARGEST_CHUNK:
            raise InvalidInput(
                f"A chunk of zarr is a date and has at most 2 GB, but {rule.name} has {size / 1e9:.1f} GB: "
                f"{width} x {height} pixels, {rule.depth} bands {rule.dtype}. Choose npy.gz or a coarser resolution."
            )


def check_mapping(mapping: FeatureMapping, outputs: Iterable[str]) -> None:
    """Check that a mapping and an evalscript name the same outputs.

    Raises:
        InvalidInput: an output that is in the one and not in the other.
    """
    delivered = set(outputs)
    unknown, unused = sorted(mapping.outputs - delivered), sorted(delivered - mapping.outputs)
    if unknown:
        raise InvalidInput(
            f"The feature mapping needs the outputs {', '.join(unknown)}, but the evalscript gives "
            f"{', '.join(sorted(delivered))}; correct the mapping or the script's setup()."
        )
    if unused:
        raise InvalidInput(
            f"The evalscript's outputs {', '.join(unused)} are in no feature of the mapping; add a feature for each, "
            "or remove them from the script's setup() so that they are not paid for."
        )


def check_bands(mapping: FeatureMapping, outputs: Iterable[Output], bands_per_scene: Mapping[str, int]) -> None:
    """Check that all features with dates have the same dates, as far as the script tells numbers of bands.

    Args:
        mapping: of these outputs.
        outputs: as ``setup`` declares them.
        bands_per_scene: of the outputs that grow with the number of scenes, see `tasks.evalscript.Script`.

    Raises:
        InvalidInput: an output has no whole number of dates, or another one than the others.
    """
    per_date = [(output, rule.bands_per_date) for rule in mapping.features if rule.temporal for output in rule.outputs]
    if mapping.quality_output is not None:
        per_date.append((mapping.quality_output, 1))
    fixed = {output: bands for output, bands, _ in outputs if output not in bands_per_scene}
    _check_dates(per_date, fixed, "")
    _check_dates(per_date, {output: bands for output, bands in bands_per_scene.items() if bands}, " per scene")


def _check_dates(per_date: Iterable[tuple[str, int]], bands: Mapping[str, int], unit: str) -> None:
    """Check those outputs whose number of bands is known."""
    dates = {}
    for output, each in per_date:
        if bands.get(output, 0) % each:
            raise InvalidInput(
                f"Output {output} of the evalscript has {bands[output]} bands{unit}, but its feature has "
                f"bands_per_date {each}, of which that is no multiple; correct either."
            )
        if output in bands:
            dates[output] = bands[output] // each
    if len(set(dates.values())) > 1:
        told = ", ".join(f"{output} {count}" for output, count in sorted(dates.items()))
        raise InvalidInput(
            "All features with dates must have the same dates, but by the evalscript's numbers of bands these outputs "
            f"have so many dates{unit}: {told}. Correct feature types or bands_per_date of the feature mapping."
        )


def _default_type(output: str, *, temporal: bool) -> Literal["data", "mask", "data_timeless"]:
    if not temporal:
        return "data_timeless"
    return "mask" if output == "QUALITY" else "data"


def stored_type(sample_type: SampleType) -> StoredType:
    """NumPy type of a delivered file."""
    return "uint8" if sample_type == "AUTO" else sample_type.lower()  # type: ignore[return-value]
