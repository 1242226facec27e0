"""Reference polygons become LULC masks: read and checked once, reprojected once per CRS, rasterised tile by tile.

A pixel belongs to a polygon if its centre lies inside (GDAL's default rule); where polygons overlap, the later row of
the file wins. LULC is 0 outside all polygons. eo-learn's own task turns classes that are text into zeros in silence;
here everything that is not a class of 0 to 255 is refused with the file, the column and the values.
"""

from tasks.reference.burning import Burned, burn
from tasks.reference.parameters import Reference, ReferenceClass, ReferenceFile
from tasks.reference.preparation import (
    Findings,
    PreparedReference,
    ReferenceSource,
    check_reference,
    check_units,
    prepare_reference,
    reference_source,
)
from tasks.reference.rasterise import (
    MARKER,
    LabelRecord,
    is_labelled,
    label_quality,
    rasterise_chunk,
    rasterise_reference,
    rasterise_tile,
)
from tasks.reference.remote import staged

__all__ = [
    "MARKER",
    "Burned",
    "Findings",
    "LabelRecord",
    "PreparedReference",
    "Reference",
    "ReferenceClass",
    "ReferenceFile",
    "ReferenceSource",
    "burn",
    "check_reference",
    "check_units",
    "is_labelled",
    "label_quality",
    "prepare_reference",
    "rasterise_chunk",
    "rasterise_reference",
    "rasterise_tile",
    "reference_source",
    "staged",
]
