"""What localhub knows of Sentinel-2 itself: the names of its collections, and what its files add to reflectance.

Sources: the service's pages "Sentinel-2 L1C" and "Sentinel-2 L2A" (data type identifier, Harmonize Values); the
Sentinel-2 products specification (RADIO_ADD_OFFSET, BOA_ADD_OFFSET); the STAC extensions Raster and Processing.
"""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from localhub.engine.bands import UNITS

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "sentinel-2-l1c": "sentinel-2-l1c",
        "sentinel-2-l2a": "sentinel-2-l2a",
        "S2L1C": "sentinel-2-l1c",
        "S2L2A": "sentinel-2-l2a",
    }
)
"""Collection by the names that a request may use; any other collection has one name."""

_COMMON_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06",
        "rededge3": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09", "cirrus": "B10", "swir16": "B11",
        "swir22": "B12", "aot": "AOT", "scl": "SCL", "cloud": "CLD", "snow": "SNW",
    }
)  # fmt: skip
"""Band by the name of its asset in Earth Search."""
_AT_RESOLUTION: Final = re.compile(r"(.+)_(\d+)m")
"""Name of an asset in the Copernicus Data Space, which has bands at several resolutions."""

OPTICAL_BANDS: Final = frozenset(band for band, units in UNITS.items() if "REFLECTANCE" in units)
"""The bands that hold reflectance."""

_FIRST_BASELINE_WITH_OFFSET = (4, 0)
_USUAL_OFFSET_DN = 1000
_DN_OF_ONE = 10_000
_BASELINES = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
"""Where items name the processing baseline: Planetary Computer and Earth Search, its first version, and the Copernicus
Data Space (STAC extension Processing)."""
_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
"""Where Earth Search says that its files are harmonised already, whatever else the item says."""


def by_band(collection: str, assets: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an item's assets by the service's names of bands, of several resolutions the finest.

    Those of collections other than Sentinel-2's stay as they are, as do assets of other names.
    """
    if not collection.startswith("sentinel-2"):
        return assets
    found: dict[str, tuple[int, Any]] = {}
    for name, asset in assets.items():
        match = _AT_RESOLUTION.fullmatch(name)
        band, resolution_m = (match[1], int(match[2])) if match else (_COMMON_NAMES.get(name, name), 0)
        if band not in found or resolution_m < found[band][0]:
            found[band] = resolution_m, asset
    return {band: asset for band, (_, asset) in found.items()}


def added_dn(collection: str, band: str, properties: Mapping[str, Any], asset: Mapping[str, Any]) -> int:
    """Return what a band's file adds to its reflectance, in DN, so that DN = 10000 * REFLECTANCE + this.

    0 for bands other than Sentinel-2's optical ones, before processing baseline 04.00, and where the item says that it
    was taken off. Otherwise what the asset says (`offset` and `scale` of its raster), and else 1000 if the item names a
    baseline. An item without both has nothing added.
    """
    if not collection.startswith("sentinel-2") or band not in OPTICAL_BANDS:
        return 0
    baseline = _baseline(properties)
    applied = any(properties.get(name) is True for name in _APPLIED)
    if applied or (baseline is not None and baseline < _FIRST_BASELINE_WITH_OFFSET):
        return 0
    told = _told_dn(asset)
    if told is not None:
        return told
    return 0 if baseline is None else _USUAL_OFFSET_DN


def _baseline(properties: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the processing baseline, (4, 0) for `04.00`; None where the item names none."""
    for name in _BASELINES:
        major, _, minor = str(properties.get(name, "")).partition(".")
        if major.isdecimal() and (minor or "0").isdecimal():
            return int(major), int(minor or 0)
    return None


def _told_dn(asset: Mapping[str, Any]) -> int | None:
    """Return the addition that an asset's raster tells of, in any of the places that STAC has had for it."""
    for holder, prefix in (
        (_first(asset.get("raster:bands")), ""),  # Raster 1
        (asset, "raster:"),  # Raster 2
        (_first(asset.get("bands")), "raster:"),  # STAC 1.1
    ):
        offset, scale = _number(holder.get(f"{prefix}offset")), _number(holder.get(f"{prefix}scale"))
        if offset is not None:
            return round(-offset / (scale or 1 / _DN_OF_ONE))
    return None


def _first(bands: Any) -> Mapping[str, Any]:
    found = bands[0] if isinstance(bands, list) and bands else {}
    return found if isinstance(found, Mapping) else {}


def _number(value: Any) -> float | None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_one else None
