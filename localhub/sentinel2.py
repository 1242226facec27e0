"""What localhub knows of Sentinel-2 itself: names of the collections and the bands' source resolutions.

Source: the service's Sentinel-2 documentation as summarised in the research note evalscript-v3, section 6.
"""

from collections.abc import Mapping
from types import MappingProxyType

from localhub.reader import ResamplingName

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "sentinel-2-l1c": "sentinel-2-l1c",
        "sentinel-2-l2a": "sentinel-2-l2a",
        "S2L1C": "sentinel-2-l1c",
        "S2L2A": "sentinel-2-l2a",
    }
)
"""Collection by the names that a request may use."""

RESOLUTION_M: Mapping[str, float] = MappingProxyType(
    dict.fromkeys(("B02", "B03", "B04", "B08", "AOT"), 10.0)
    | dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12", "SNW", "CLD"), 20.0)
    | dict.fromkeys(("B01", "B09", "B10"), 60.0)
    | {"CLP": 160.0}
)
"""Ground resolution of the source; bands of classes are absent, they are never interpolated."""


def resampling(
    band: str, resolution_m: float, upsampling: ResamplingName, downsampling: ResamplingName
) -> ResamplingName:
    """Return the method that brings `band` to `resolution_m`: the request's up- or downsampling, else nearest."""
    source = RESOLUTION_M.get(band, resolution_m)
    if resolution_m == source:
        return "NEAREST"
    return upsampling if resolution_m < source else downsampling
