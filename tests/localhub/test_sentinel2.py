"""What a Sentinel-2 file adds to its reflectance is read from the items of the catalogues that people copy."""

from typing import Any

import pytest

from localhub.sentinel2 import OPTICAL_BANDS, added_dn

L2A = "sentinel-2-l2a"
RASTER_1 = {"raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}]}
RASTER_2 = {"data_type": "uint16", "nodata": 0, "raster:scale": 0.0001, "raster:offset": -0.1}
STAC_1_1 = {"bands": [{"name": "B04", "raster:scale": 0.0001, "raster:offset": -0.1}]}


@pytest.mark.parametrize(
    ("properties", "asset", "expected"),
    [
        ({}, {}, 0),
        ({"s2:processing_baseline": "02.14"}, {}, 0),
        ({"s2:processing_baseline": "03.01"}, {}, 0),
        ({"s2:processing_baseline": "04.00"}, {}, 1000),
        ({"s2:processing_baseline": "05.11"}, {}, 1000),
        ({"s2:processing_baseline": "10.00"}, {}, 1000),
        ({"sentinel:processing_baseline": "04.00"}, {}, 1000),
        ({"processing:version": "05.11"}, {}, 1000),
        ({"processing:version": "05.11"}, RASTER_2, 1000),
        ({"processing:version": "05.11"}, STAC_1_1, 1000),
        ({}, RASTER_1, 1000),
        ({}, {"raster:bands": [{"offset": -0.1}]}, 1000),
        ({}, {"raster:bands": [{"offset": -0.2, "scale": 0.0001}]}, 2000),
        ({}, {"raster:bands": [{"offset": -0.05, "scale": 0.00005}]}, 1000),
        ({"s2:processing_baseline": "05.11"}, {"raster:bands": [{"scale": 0.0001, "offset": 0}]}, 0),
        ({"s2:processing_baseline": "05.11"}, {"raster:bands": [{"nodata": 0}]}, 1000),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, RASTER_1, 0),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": False}, RASTER_1, 1000),
        ({"sentinel:processing_baseline": "04.00", "sentinel:boa_offset_applied": True}, {}, 0),
        ({"s2:processing_baseline": "02.14"}, RASTER_1, 0),
        ({"s2:processing_baseline": "unknown"}, {}, 0),
        ({"s2:processing_baseline": None}, {"raster:bands": None, "bands": ["B04"], "raster:offset": True}, 0),
    ],
)
def test_the_addition_is_what_the_item_says(properties: dict[str, Any], asset: dict[str, Any], expected: int) -> None:
    assert added_dn(L2A, "B04", properties, asset) == expected


@pytest.mark.parametrize(
    ("collection", "band"),
    [(L2A, "SCL"), (L2A, "AOT"), (L2A, "CLP"), (L2A, "dataMask"), (L2A, "sunZenithAngles"), ("byoc-own", "B04")],
)
def test_only_optical_bands_of_sentinel_2_have_one(collection: str, band: str) -> None:
    assert added_dn(collection, band, {"s2:processing_baseline": "05.11"}, RASTER_1) == 0


@pytest.mark.parametrize("collection", ["sentinel-2-l1c", L2A, "sentinel-2-c1-l2a"])
def test_all_thirteen_optical_bands_have_one(collection: str) -> None:
    assert len(OPTICAL_BANDS) == 13
    assert {added_dn(collection, band, {"s2:processing_baseline": "04.00"}, {}) for band in OPTICAL_BANDS} == {1000}
