"""A synthetic archive around the corner of four tiles of grid 1, which two orbits and an odd scene see in part."""

import json
from pathlib import Path

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.warp import transform_geom
from shapely.geometry import mapping

EPSG, CORNER = 32633, (570_000, 5_140_000)
"""Where the tiles 33TWM_6_5, 33TWM_6_6, 33TWM_7_5 and 33TWM_7_6 meet, metres."""
WEST, NORTH, PIXELS, RESOLUTION_M = 555_000, 5_155_000, 1500, 20
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""All of them one file."""

WESTERN = shapely.box(555_000, 5_125_000, 565_000, 5_155_000)
"""Meets the two western tiles only."""
EASTERN = shapely.box(568_000, 5_125_000, 585_000, 5_155_000)
"""Meets all four."""
ISLANDS = shapely.MultiPolygon(
    [shapely.box(561_000, 5_131_000, 562_000, 5_132_000), shapely.box(578_000, 5_148_000, 579_000, 5_149_000)]
)
"""Meets the south-western and the north-eastern tile; its bounding box meets all."""

SCENES = (
    *((f"w{day}", f"2019-06-{day:02d}T10:00:31Z", WESTERN, 10.0) for day in range(1, 9)),
    *((f"e{day}", f"2019-06-{day:02d}T09:50:31Z", EASTERN, 20.0) for day in range(7, 16)),
    ("islands", "2019-06-20T10:00:00Z", ISLANDS, 50.0),
    ("last", "2019-06-30T23:59:59Z", EASTERN, 80.0),
    ("later", "2019-07-01T00:00:00Z", EASTERN, 0.0),
    ("earlier", "2019-05-31T23:59:59Z", EASTERN, 0.0),
)
"""Id, time, footprint in EPSG, cloud cover. Both orbits pass on 7 and 8 June."""

JUNE = {"from": "2019-06-01T00:00:00Z", "to": "2019-06-30T23:59:59Z"}


def pixels() -> NDArray[np.uint16]:
    """The values of every band of every scene: each differs from its neighbours; none is 0, which is no data."""
    rows, columns = np.indices((PIXELS, PIXELS))
    return (1 + (7 * rows + 13 * columns) % 5000).astype(np.uint16)


def write_archive(folder: Path) -> Path:
    """Write the raster, a mask without any cloud, and an item a scene."""
    folder.mkdir()
    profile = {"driver": "GTiff", "width": PIXELS, "height": PIXELS, "count": 1, "dtype": "uint16", "nodata": 0}
    place = {"crs": f"EPSG:{EPSG}", "transform": from_origin(WEST, NORTH, RESOLUTION_M, RESOLUTION_M)}
    with rasterio.open(folder / "band.tif", "w", **profile, **place, tiled=True) as dataset:
        dataset.write(pixels(), 1)
    with rasterio.open(folder / "clear.tif", "w", **profile | {"dtype": "uint8", "nodata": None}, **place) as dataset:
        dataset.write(np.zeros((PIXELS, PIXELS), np.uint8), 1)
    for name, time, footprint, cloud_cover in SCENES:
        item = {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": name,
            "collection": "sentinel-2-l1c",
            "geometry": transform_geom(f"EPSG:{EPSG}", "EPSG:4326", mapping(footprint.segmentize(1000))),
            "properties": {"datetime": time, "eo:cloud_cover": cloud_cover},
            "assets": {band: {"href": "./band.tif"} for band in BANDS} | {"CLM": {"href": "./clear.tif"}},
            "links": [],
        }
        (folder / f"{name}.json").write_text(json.dumps(item))
    return folder
