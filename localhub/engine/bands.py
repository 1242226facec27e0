"""Units in which a script may ask for a band, and the factor that turns stored numbers (DN) into each of them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from localhub.engine.errors import EvalscriptError, invalid, objection

NORMALIZATION_FACTOR: Final = 0.0001
"""Reflectance of one DN of Sentinel-2; the service multiplies in double precision (8795 gives 0.8795000000000001)."""

_OPTICAL: Final = MappingProxyType({"REFLECTANCE": NORMALIZATION_FACTOR, "DN": 1.0})
_PERCENT: Final = MappingProxyType({"PERCENT": 1.0})
_DEGREES: Final = MappingProxyType({"DEGREES": 1.0})
_OTHER: Final = MappingProxyType({"DN": 1.0})

UNITS: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        **dict.fromkeys((f"B{number:02d}" for number in range(1, 13)), _OPTICAL),
        "B8A": _OPTICAL,
        "AOT": MappingProxyType({"OPTICAL_DEPTH": 0.001, "DN": 1.0}),
        **dict.fromkeys(("SNW", "CLD"), _PERCENT),
        **dict.fromkeys(("sunAzimuthAngles", "sunZenithAngles", "viewAzimuthMean", "viewZenithMean"), _DEGREES),
    }
)
"""Band → unit → factor, the default unit first (Sentinel Hub's tables of Sentinel-2 bands). Other bands: DN only."""

SENTINEL_2_BANDS: Final = frozenset(UNITS) | {"SCL", "CLP", "CLM", "dataMask"}
"""Every band of Sentinel-2's collections, those that not every deployment has included."""

_OF_L2A_ONLY: Final = frozenset({"AOT", "SCL", "SNW", "CLD"})
_BANDS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {"sentinel-2-l1c": SENTINEL_2_BANDS - _OF_L2A_ONLY, "sentinel-2-l2a": SENTINEL_2_BANDS - {"B10"}}
)
"""Collection → its bands; other collections have whatever their owners put in."""
_NAMES_IN_MESSAGES: Final[Mapping[str, str]] = MappingProxyType({"sentinel-2-l1c": "S2L1C", "sentinel-2-l2a": "S2L2A"})
"""Collection → what the service calls it where it objects to a script; ``byoc-…`` stays as it is."""


def unit_factor(collection: str, band: str, unit: str | None) -> float:
    """Factor from stored numbers to ``unit``, or to the band's default unit.

    ``dataMask`` takes any unit, because scripts name one unit for all bands. Bands of collections other than
    Sentinel-2's have DN only.

    Raises:
        EvalscriptError: the collection never has such a band, or not in this unit.
    """
    if band not in _BANDS.get(collection, {band}):
        raise no_band(collection, band)
    units = _units(collection, band)
    if band == "dataMask":
        return 1.0
    if unit is None:
        return units[default_unit(collection, band)]
    factor = units.get(unit.upper())
    if factor is None:
        raise invalid(
            f"Band '{band}' of collection '{_in_messages(collection)}' requested in unsupported units '{unit}'! "
            f"Supported units for this band: [{', '.join(units)}]."
        )
    return factor


def default_unit(collection: str, band: str) -> str:
    """Return the unit of a band that a script names without one."""
    return next(iter(_units(collection, band)))


def _units(collection: str, band: str) -> Mapping[str, float]:
    return UNITS.get(band, _OTHER) if collection.startswith("sentinel-2") else _OTHER


def no_band(collection: str, band: str) -> EvalscriptError:
    """Word that a collection lacks a band, as the service does."""
    return objection(f"Collection '{_in_messages(collection)}' has no band '{band}'.")


def _in_messages(collection: str) -> str:
    return _NAMES_IN_MESSAGES.get(collection, collection)
