"""Tiling grids of the Batch Processing API v2: the list and each grid."""

from typing import Any

from fastapi import APIRouter, Request

from localhub.api.common import page, page_asked
from localhub.errors import bad_payload
from tasks.grid import GRIDS, TilingGrid, known_grids


def router() -> APIRouter:
    """Return the routes, below the API's prefix."""
    routes = APIRouter()
    for path in ("/tilinggrids", "/tilinggrids/"):
        routes.add_api_route(path, _list_grids, methods=["GET"])
    routes.add_api_route("/tilinggrids/{grid_id}", _get_grid, methods=["GET"])
    return routes


def _list_grids(request: Request) -> dict[str, Any]:
    count, offset = page_asked(request)
    grids = [_grid_view(grid) for _, grid in sorted(GRIDS.items())]
    return page(request, grids[offset : offset + count + 1], count, offset)


def _get_grid(grid_id: str) -> dict[str, Any]:
    grid = next((grid for grid in GRIDS.values() if str(grid.id) == grid_id), None)
    if grid is None:
        raise bad_payload(f"Tiling grid {grid_id} is not known; choose one of {known_grids()}.")
    return _grid_view(grid)


def _grid_view(grid: TilingGrid) -> dict[str, Any]:
    return {
        "id": grid.id,
        "name": grid.name,
        "properties": {
            "tileWidth": grid.tile_size,
            "tileHeight": grid.tile_size,
            "chunkWidth": grid.chunk_width,
            "chunkHeight": grid.chunk_height,
            "resolutions": list(grid.resolutions),
            "singleCrs": grid.single_crs,
            "unit": grid.unit,
        },
    }
