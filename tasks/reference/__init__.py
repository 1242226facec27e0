"""Reference polygons become LULC masks: read and checked once, reprojected once per CRS, rasterised tile by tile.

A pixel belongs to a polygon if its centre lies inside (GDAL's default rule); where polygons overlap, the later row of
the file wins. LULC is 0 outside all polygons. eo-learn's own task turns classes that are text into zeros in silence;
here everything that is not a class of 0 to 255 is refused with the file, the column and the values.
"""

from tasks.reference.polygons import (
    PreparedReference,
    Reference,
    ReferenceSource,
    check_reference,
    prepare_reference,
    reference_source,
)
from tasks.reference.rasterise import (
    MARKER,
    LabelRecord,
    is_labelled,
    rasterise,
    rasterise_chunk,
    rasterise_reference,
    rasterise_tile,
)

__all__ = [
    "MARKER",
    "LabelRecord",
    "PreparedReference",
    "Reference",
    "ReferenceSource",
    "check_reference",
    "is_labelled",
    "prepare_reference",
    "rasterise",
    "rasterise_chunk",
    "rasterise_reference",
    "rasterise_tile",
    "reference_source",
]
