"""The tables of bands, units and ranges of Sentinel-2 L1C and L2A, and collections with bands of their own."""

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localhub.engine import Evalscript, EvalscriptError
from localhub.engine.bands import unit_factor
from tests.localhub.engine.engine_runs import dataset

L1C, L2A = "sentinel-2-l1c", "sentinel-2-l2a"


@dataclass(frozen=True)
class Row:
    """What the documentation says of bands in one unit."""

    bands: str
    unit: str
    """The first of a band's rows has its default unit."""
    dtype: str
    """Of the file."""
    stored: tuple[float, float]
    """The ends of the typical range as the file has them."""
    seen: tuple[float, float]
    """The same as the script sees them."""
    collections: tuple[str, ...] = (L1C, L2A)


OPTICAL = "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12"
TABLE = [
    Row(OPTICAL, "REFLECTANCE", "uint16", (0, 4000), (0, 0.4)),
    Row(OPTICAL, "DN", "uint16", (0, 4000), (0, 4000)),
    Row("B10", "REFLECTANCE", "uint16", (0, 4000), (0, 0.4), (L1C,)),
    Row("B10", "DN", "uint16", (0, 4000), (0, 4000), (L1C,)),
    Row("AOT", "OPTICAL_DEPTH", "uint16", (0, 600), (0, 0.6), (L2A,)),
    Row("AOT", "DN", "uint16", (0, 600), (0, 600), (L2A,)),
    Row("SCL", "DN", "uint8", (0, 11), (0, 11), (L2A,)),
    Row("SNW CLD", "PERCENT", "uint8", (0, 100), (0, 100), (L2A,)),
    Row("CLP", "DN", "uint8", (0, 255), (0, 255)),
    Row("CLM", "DN", "uint8", (0, 255), (0, 255)),
    Row("sunAzimuthAngles", "DEGREES", "float32", (30, 200), (30, 200)),
    Row("sunZenithAngles", "DEGREES", "float32", (15, 80), (15, 80)),
    Row("viewAzimuthMean", "DEGREES", "float32", (90, 300), (90, 300)),
    Row("viewZenithMean", "DEGREES", "float32", (0, 12), (0, 12)),
    Row("dataMask", "DN", "uint8", (0, 1), (0, 1)),
]
"""Pages "Sentinel-2 L1C" and "Sentinel-2 L2A" of the documentation; CLP and CLM as the vendor's client has them."""
UNITS = {name: [row.unit for row in TABLE if name in row.bands.split()] for row in TABLE for name in row.bands.split()}


def seen_by_script(collection: str, rows: dict[str, Row], unit: str | None) -> NDArray[Any]:
    """What a script sees of the ends of each band's range, (band, end)."""
    source = f"""//VERSION=3
      const bands = {list(rows)};
      function setup() {{
        return {{
          input: [{{ bands, units: {json.dumps(unit) if unit else "undefined"} }}],
          output: {{ bands: bands.length, sampleType: "FLOAT32" }},
        }};
      }}
      function evaluatePixel(sample) {{ return bands.map((name) => sample[name]); }}"""
    with Evalscript(source) as script:
        script.prepare([dataset(collection=collection)])
        (seen,) = script.evaluate([{name: np.array([[row.stored]], row.dtype) for name, row in rows.items()}]).values()
    return seen[:, 0, :]


@pytest.mark.parametrize("collection", [L1C, L2A])
@pytest.mark.parametrize("unit", ["REFLECTANCE", "DN", "OPTICAL_DEPTH", "PERCENT", "DEGREES"])
def test_every_band_has_its_documented_range_in_every_unit(collection: str, unit: str) -> None:
    of_unit = [row for row in TABLE if row.unit == unit and collection in row.collections]
    rows = {name: row for row in of_unit for name in row.bands.split()}
    by_default = {name: row for name, row in rows.items() if UNITS[name][0] == unit}
    for asked, spelling in ((rows, unit), (rows, unit.lower()), (by_default, None)):
        if asked:
            expected = np.array([row.seen for row in asked.values()], "float32")
            np.testing.assert_array_equal(seen_by_script(collection, asked, spelling), expected)


@pytest.mark.parametrize("band", UNITS)
def test_a_unit_that_a_band_has_not_is_refused_with_those_that_it_has(band: str) -> None:
    collection, name = (L1C, "S2L1C") if band == "B10" else (L2A, "S2L2A")
    if band == "dataMask":  # scripts name one unit for all bands
        assert unit_factor(collection, band, "kelvin") == 1
        return
    text = (
        f"Invalid script! Band '{band}' of collection '{name}' requested in unsupported units 'kelvin'! "
        f"Supported units for this band: [{', '.join(UNITS[band])}]."
    )
    with pytest.raises(EvalscriptError, match=f"^{re.escape(text)}$"):
        unit_factor(collection, band, "kelvin")


@pytest.mark.parametrize(
    ("collection", "name", "bands"),
    [(L1C, "S2L1C", ("AOT", "SCL", "SNW", "CLD", "B13", "b04")), (L2A, "S2L2A", ("B10", "B13", "B8", "VV"))],
)
def test_a_band_that_a_collection_never_has_is_refused(collection: str, name: str, bands: tuple[str, ...]) -> None:
    for band in bands:
        text = f"Collection '{name}' has no band '{band}'."
        with pytest.raises(EvalscriptError, match=f"^{re.escape(text)}$"):
            unit_factor(collection, band, None)


@pytest.mark.parametrize("collection", ["byoc-0a1b", "batch-0a1b", "landsat-ot-l1"])
def test_other_collections_have_bands_of_any_name_in_dn_only(collection: str) -> None:
    assert [unit_factor(collection, band, unit) for band in ("B04", "AOT", "my band") for unit in (None, "dn")] == [
        1
    ] * 6
    with pytest.raises(EvalscriptError, match=r"Supported units for this band: \[DN\]\."):
        unit_factor(collection, "B04", "REFLECTANCE")
