"""One tile's delivered files become one EOPatch: a declarative mapping from outputs to features, and its execution.

The service delivers one GeoTIFF per output of the evalscript, its band axis being the date, or dates and bands, and
``userdata.json`` with the dates. Here every file is checked against the tile, decoded, put into eo-learn's axis order
and committed (:mod:`tasks.eopatches`) with ``META_INFO/BATCH`` as marker. Names and types follow eo-learn's SI_LULC
example.

Where a date has no data, values are 0, never NaN, and IS_DATA says so. A pixel that has data but whose index is
undefined (0/0) gets an index of 0.
"""

from tasks.conversion.convert import (
    MARKER,
    ConversionRecord,
    PatchOptions,
    Provenance,
    convert,
    convert_chunk,
    convert_tile,
    is_converted,
)
from tasks.conversion.delivery import TileFiles
from tasks.conversion.features import decode
from tasks.conversion.mapping import (
    FeatureMapping,
    FeatureRule,
    check_bands,
    check_frames,
    check_mapping,
    default_mapping,
    land_cover_mapping,
    with_bands,
)

__all__ = [
    "MARKER",
    "ConversionRecord",
    "FeatureMapping",
    "FeatureRule",
    "PatchOptions",
    "Provenance",
    "TileFiles",
    "check_bands",
    "check_frames",
    "check_mapping",
    "convert",
    "convert_chunk",
    "convert_tile",
    "decode",
    "default_mapping",
    "is_converted",
    "land_cover_mapping",
    "with_bands",
]
