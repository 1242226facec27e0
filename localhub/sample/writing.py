"""The sample's files: GeoTIFFs in the layout of cloud-optimised ones, STAC items, the reference, a README."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.warp import transform_geom
from shapely import Polygon
from shapely.geometry import mapping

from localhub.archive import DATA_MASK
from localhub.sample.acquisitions import Acquisition, Orbit
from localhub.sample.landscape import EPSG, Extent, Landscape
from localhub.sample.render import COARSE_BANDS
from localhub.sample.spectra import BANDS, COVER_NAMES, COVERS, LULC_NAMES

REFERENCE_EPSG = 3794
"""Slovenia's national grid: not the tiles' CRS, as in real life."""

COLLECTIONS: Mapping[str, tuple[str, ...]] = {
    "sentinel-2-l1c": (*BANDS, "CLP", "CLM", DATA_MASK),
    "sentinel-2-l2a": (*(band for band in BANDS if band != "B10"), "CLP", "CLM", "SCL", DATA_MASK),
}
"""The bands of each collection."""

NOTICE = "Synthetic: computed by localhub.sample. No satellite measured it and no such place exists."

README = f"""SYNTHETIC DATA

{NOTICE}

scenes/         one folder an acquisition: a GeoTIFF a band, and two STAC items
reference.gpkg  the land cover that the scenes were drawn from, EPSG:{REFERENCE_EPSG};
                columns LULC_ID, LULC_NAME, COVER, SOURCE

The items of sentinel-2-l1c and sentinel-2-l2a share their band files: there is no difference of processing
level between them. Only sentinel-2-l1c has B10, and only sentinel-2-l2a has SCL. Bands are reflectance times
10000. B02, B03, B04, B08, B11, B12 and the masks have pixels of 20 m, the other bands 60 m. CLP (0 to 255) and
CLM (0, 1) come in blocks of 160 m, as s2cloudless makes them. Two relative orbits overlap in the middle;
dataMask is 0 outside the swath.
"""


def write_band(path: Path, values: NDArray[np.generic], extent: Extent) -> None:
    """Write one band over the extent; reflectance (uint16) has 0 as its nodata value."""
    resolution = extent.size_m // len(values)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=len(values),
        width=len(values),
        count=1,
        dtype=values.dtype,
        crs=f"EPSG:{EPSG}",
        transform=extent.transform(resolution),
        nodata=0 if values.dtype == np.uint16 else None,
        tiled=True,
        blockxsize=128,
        blockysize=128,
        compress="ZSTD",  # a third of DEFLATE's time to write and half of it to read, for files that are 13 % larger
        zstd_level=1,
    ) as dataset:
        dataset.write(values, 1)
        dataset.update_tags(SYNTHETIC=NOTICE)


def write_items(folder: Path, acquisition: Acquisition, extent: Extent, cloud_cover: float) -> None:
    """Write the acquisition's STAC items, one a collection, beside its bands."""
    for collection in COLLECTIONS:
        item = _item(acquisition, collection, extent, cloud_cover)
        (folder / f"{collection}.json").write_text(json.dumps(item, indent=1))


def write_reference(path: Path, landscape: Landscape) -> None:
    """Write every polygon with its class."""
    covers = [COVER_NAMES[index] for index in landscape.cover]
    ids = [COVERS[name].lulc_id for name in covers]
    frame = gpd.GeoDataFrame(
        {"LULC_ID": ids, "LULC_NAME": [LULC_NAMES[i] for i in ids], "COVER": covers, "SOURCE": "synthetic"},
        geometry=list(landscape.polygons),
        crs=EPSG,
    )
    frame = frame.to_crs(REFERENCE_EPSG)
    pinched = ~frame.is_valid  # where the outline nearly touches itself, another CRS can make it cross
    frame.loc[pinched, "geometry"] = frame[pinched].buffer(0)
    frame.to_file(path, layer="reference", driver="GPKG", engine="pyogrio")


@cache
def _footprint(orbit: Orbit, extent: Extent) -> Polygon:
    """What the orbit sees, in longitude and latitude; edges are densified so that they stay where they are."""
    swath = shapely.segmentize(orbit.swath(extent), 2000)
    return Polygon(transform_geom(EPSG, 4326, mapping(swath), precision=7)["coordinates"][0])


def _item(acquisition: Acquisition, collection: str, extent: Extent, cloud_cover: float) -> dict[str, Any]:
    footprint = _footprint(acquisition.orbit, extent)
    level = collection.rpartition("-")[2].upper()
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
            "https://stac-extensions.github.io/view/v1.0.0/schema.json",
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
        ],
        "id": f"SYNTHETIC_MSI{level}_{acquisition.name}",
        "collection": collection,
        "geometry": mapping(footprint),
        "bbox": list(footprint.bounds),
        "properties": _properties(acquisition, cloud_cover),
        "links": [],
        "assets": {band: _asset(band, extent) for band in COLLECTIONS[collection]},
    }


def _properties(acquisition: Acquisition, cloud_cover: float) -> dict[str, Any]:
    azimuth, elevation = acquisition.sun
    return {
        "datetime": f"{acquisition.time:%Y-%m-%dT%H:%M:%SZ}",
        "description": NOTICE,
        "synthetic": True,
        "platform": acquisition.platform.replace("S2", "sentinel-2").lower(),
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "eo:cloud_cover": cloud_cover,
        "sat:relative_orbit": acquisition.orbit.relative_orbit,
        "sat:orbit_state": "descending",
        "view:sun_azimuth": round(azimuth, 2),
        "view:sun_elevation": round(elevation, 2),
        "proj:epsg": EPSG,
    }


def _asset(band: str, extent: Extent) -> dict[str, Any]:
    resolution = 60 if band in COARSE_BANDS else 20
    return {
        "href": f"./{band}.tif",
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "proj:shape": [extent.pixels(resolution)] * 2,
        "proj:transform": list(extent.transform(resolution))[:6],
    }
