"""``eopatch-flow preview``: a picture of one small window, and what it and the whole area cost."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from shapely.geometry.base import BaseGeometry

from tasks.acquisitions import Acquisitions, find_acquisitions, samples_of, scenes_of, search_area
from tasks.batch import process_request
from tasks.errors import InvalidInput, NotYet, Unavailable
from tasks.evalscript import Collection, Imagery, Output, Script, load_script
from tasks.grid import Tile
from tasks.plan import (
    Area,
    Tiling,
    TimeRange,
    area_geometry,
    plan_tiles,
)
from tasks.preview import (
    MAX_PIXELS,
    Answer,
    Picture,
    chosen_output,
    fetch,
    number_text,
    picture_of,
    tile_at,
    window_of,
    window_request,
)
from tasks.pricing import (
    MIN_REQUEST_PU,
    Range,
    counted_samples,
    priced_bands,
    process_price,
    process_price_pu,
    request_price,
    tile_price,
    total,
)
from tasks.service import Service, connect_catalog, connect_process
from tasks.storage import check_parent, is_loopback

SAME_PRICE = 0.005
"""Relative difference below which two prices count as one: the service rounds what it says."""


def _numbers(names: str) -> BeforeValidator:
    """Read numbers with commas between them, one for each of the names."""

    def read(text: Any) -> Any:
        parts = text.split(",") if isinstance(text, str) else text
        try:
            return tuple(float(part) for _, part in zip(names.split(","), parts, strict=True))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{names} in degrees are needed, with commas and no spaces between them") from error

    return BeforeValidator(read)


def _box(bbox: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    area_geometry(Area(bbox=bbox))
    return bbox


def _days(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    start, slash, end = text.partition("/")
    if not slash:
        raise ValueError("first and last day are needed, such as 2019-06-01/2019-08-31")
    return {"start": start.strip(), "end": end.strip(), "step_days": 1}


class Wish(BaseModel):
    """What the command line asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    script: Path
    bbox: Annotated[tuple[float, float, float, float], _numbers("W,S,E,N"), AfterValidator(_box)]
    """Of the whole area: west, south, east, north, degrees."""
    period: Annotated[TimeRange, BeforeValidator(_days)]
    at: Annotated[tuple[float, float], _numbers("LON,LAT")] | None = None
    """Middle of the window, longitude and latitude; None for the middle of the area."""
    collection: Collection = "sentinel-2-l1c"
    grid: Literal[0, 1, 2] = 1
    resolution: float = Field(default=10.0, gt=0)
    """Pixel size of window and tiles, metres."""
    size: int = Field(default=512, ge=1, le=MAX_PIXELS)
    """Columns and rows of the window at most."""
    mosaicking_order: Literal["mostRecent", "leastRecent", "leastCC"] = "mostRecent"
    max_cloud_cover: int = Field(default=100, ge=0, le=100)
    output: str | None = None
    service: Service = Service()
    png: Path | None = None
    """File to write; None for one in the current folder, named after the script."""

    @model_validator(mode="after")
    def _the_point_lies_in_the_area(self) -> Self:
        west, south, east, north = self.bbox
        if self.at is not None and not (west <= self.at[0] <= east and south <= self.at[1] <= north):
            raise ValueError(
                f"--at: the point {self.at[0]:g}, {self.at[1]:g} lies outside of the bbox; give one within"
            )
        return self

    @property
    def file(self) -> Path:
        """Where the picture goes."""
        return self.png or Path(f"preview-{self.script.stem}.png")

    @property
    def middle(self) -> tuple[float, float]:
        """Where the window lies, longitude and latitude."""
        west, south, east, north = self.bbox
        return self.at or ((west + east) / 2, (south + north) / 2)


@dataclass(frozen=True, slots=True)
class Preview:
    """The window that was bought, and what the whole area would cost.

    Attributes:
        wish: as given.
        script: as it was sent.
        output: that is shown.
        tile: whose pixels the window has.
        window: the raster.
        picture: of it.
        spent_pu: what the service says that the window cost, processing units; None when it does not say.
        window_samples: that the Catalog lets expect in the window.
        tiles: of the whole area.
        acquisitions: scenes that meet any of the tiles.
        samples: that the Catalog lets expect on each tile, shape (tiles,).
    """

    wish: Wish
    script: Script
    output: Output
    tile: Tile
    window: Tile
    picture: Picture
    spent_pu: float | None
    window_samples: int
    tiles: tuple[Tile, ...]
    acquisitions: int
    samples: NDArray[np.int64]

    @property
    def window_pu(self) -> float:
        """Price of the window by the published rule."""
        _, _, sample_type = self.output
        floats = sample_type == "FLOAT32"
        return _process_pu(self.script, self.window, self.window_samples, float_output=floats)

    @property
    def kept(self) -> float:
        """Share of the samples that the script kept in the window, as the price tells."""
        return 1.0 if self.spent_pu is None else min(1.0, self.spent_pu / self.window_pu)

    @property
    def expected(self) -> list[Range]:
        """Samples of each tile, when as much is kept everywhere as in the window."""
        return counted_samples(self.samples, self.script, kept=self.kept)

    @property
    def batch_price(self) -> Range:
        """Price of the whole area by the Batch API, PU."""
        pairs = zip(self.tiles, self.expected, strict=True)
        return request_price([tile_price(tile, samples, self.script) for tile, samples in pairs])

    @property
    def process_pu(self) -> float:
        """Price of the same tiles by the Process API, one request each."""
        pairs = zip(self.tiles, self.expected, strict=True)
        return total([process_price(tile, samples, self.script) for tile, samples in pairs]).likely


def read_wish(options: Mapping[str, Any]) -> Wish:
    """Check the command's options; one that is None counts as not given.

    Raises:
        InvalidInput: every problem, with its option.
    """
    try:
        return Wish.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise InvalidInput("\n".join(_problem(one) for one in error.errors())) from error


def preview(wish: Wish) -> Preview:
    """Buy the window, draw it, and count what the whole area would cost.

    Everything that costs nothing comes first: what is wrong is told before anything is bought.

    Raises:
        InvalidInput: the script, an option, or what the service says of them.
        AccessDenied: the credentials.
        Unavailable: the service does not answer.
    """
    check_parent(wish.file, "--png")
    period = wish.period
    imagery = Imagery(collection=wish.collection, evalscript=str(wish.script))
    script = load_script(imagery, period.start, period.end, period.step_days)
    output = chosen_output(script, wish.output)
    area = _area(wish)
    tiles = plan_tiles(Tiling(grid=wish.grid, resolution_m=wish.resolution), area)
    tile = tile_at(tiles, wish.middle)
    window = window_of(tile, area, wish.middle, wish.size)
    with _told_how_to_start(wish.service):
        found = _acquisitions(wish, [*tiles, window])
        samples = samples_of([*tiles, window], found, script.mosaicking)
        scenes = scenes_of(tiles, found)
        _check_not_empty(wish, int(samples[-1]), scenes)
        answer = _bought(wish, script, output, window)
    picture = picture_of(answer.content, output)
    wish.file.write_bytes(picture.png)
    return Preview(
        wish=wish,
        script=script,
        output=output,
        tile=tile,
        window=window,
        picture=picture,
        spent_pu=answer.spent_pu,
        window_samples=int(samples[-1]),
        tiles=tuple(tiles),
        acquisitions=scenes,
        samples=samples[:-1],
    )


def preview_text(found: Preview) -> str:
    """Say what was bought, how the picture was made, and what the area costs: one fact a line."""
    wish, window = found.wish, found.window
    lon, lat = wish.middle
    identifier, bands, sample_type = found.output
    likely = f", {_share_text(found)}" if found.script.drops_scenes else ""
    lines = {
        "Picture": f"{wish.file}",
        "Window": f"{window.width} x {window.height} pixels of {wish.resolution:g} m near {lon:.4f}, {lat:.4f} "
        f"(EPSG:{window.epsg}, tile {found.tile.name})",
        "Output": f"'{identifier}', {_plural(bands, 'band')} of {sample_type}, {found.picture.how}",
        "Values": _values_text(found.picture),
        "Samples": f"{found.window_samples} by the Catalog (mosaicking {found.script.mosaicking})",
        "Price": _window_price_text(found),
        "Whole area": f"{_plural(len(found.tiles), 'tile')} of grid {wish.grid}, "
        f"{_plural(found.acquisitions, 'acquisition')}, {_samples_text(found.samples)} a tile",
        "  by Batch": _batch_price_text(found),
        "  by Process": f"{found.process_pu:,.2f} PU for the same tiles{likely}",
    }
    return "\n".join(f"{name:<13} {text}" for name, text in lines.items())


def _area(wish: Wish) -> BaseGeometry:
    area = area_geometry(Area(bbox=wish.bbox))
    assert area is not None  # noqa: S101 - it has a bbox
    return area


def _acquisitions(wish: Wish, tiles: list[Tile]) -> Acquisitions:
    return find_acquisitions(
        connect_catalog(wish.service),
        wish.collection,
        (wish.period.start, wish.period.end),
        search_area(tiles),
        max_cloud_coverage=wish.max_cloud_cover,
        patience_seconds=0,
    )


def _bought(wish: Wish, script: Script, output: Output, window: Tile) -> Answer:
    days = wish.period.start, wish.period.end
    request = process_request(None, wish.collection, *days, wish.max_cloud_cover, script)
    return fetch(connect_process(wish.service), window_request(request, window, output, wish.mosaicking_order))


@contextmanager
def _told_how_to_start(service: Service) -> Iterator[None]:
    """Where the stand-in does not answer, say how it is started."""
    try:
        yield
    except NotYet:
        raise
    except Unavailable as error:
        if not is_loopback(service.base_url):
            raise
        raise Unavailable(
            f"{error}\nIf localhub is not running at {service.base_url}, start it with 'eopatch-flow localhub'."
        ) from error


def _check_not_empty(wish: Wish, in_window: int, in_area: int) -> None:
    """Refuse to buy an empty picture."""
    if in_window == 0:
        clouds = "" if wish.max_cloud_cover == 100 else f" with at most {wish.max_cloud_cover} % of clouds"
        asked = f"{wish.collection} from {wish.period.start} to {wish.period.end}{clouds}"
        raise InvalidInput(
            f"The Catalog has no acquisition of {asked} in the window, and {in_area} in the area; nothing was bought. "
            "Choose another period, or by --at another place."
        )


def _process_pu(script: Script, tile: Tile, samples: float, *, float_output: bool) -> float:
    bands = priced_bands(script.input_bands)
    return process_price_pu(tile.width * tile.height, bands, samples, float_output=float_output)


def _values_text(picture: Picture) -> str:
    if picture.values is None:
        return "none is valid"
    least, most = map(number_text, picture.values)
    return f"{least} to {most}" + (f", in {picture.valid_share:.1%} of the pixels" if picture.valid_share < 1 else "")


def _window_price_text(found: Preview) -> str:
    rule = f"{found.window_pu:,.5g} PU by the published rule"
    if found.spent_pu is None:
        return f"not told by the service; {rule}"
    spent = f"{found.spent_pu:,.5g} PU spent on the window"
    if abs(found.spent_pu - found.window_pu) <= SAME_PRICE * found.window_pu:
        return f"{spent}, as the published rule says"
    if found.script.drops_scenes and found.kept < 1:
        kept = round(found.kept * found.window_samples)
        return f"{spent}: preProcessScenes kept {kept} of {found.window_samples} samples ({rule} for all)"
    return f"{spent}; {rule} for {found.window_samples} samples"


def _batch_price_text(found: Preview) -> str:
    price = found.batch_price
    if price.certain:
        least = " (the least that a request costs)" if price.high == MIN_REQUEST_PU else ""
        return f"{price.high:,.2f} PU{least}"
    return f"{price.likely:,.2f} PU {_share_text(found)}; from {price.low:,.2f} to {price.high:,.2f} PU"


def _share_text(found: Preview) -> str:
    return f"if preProcessScenes keeps {found.kept:.0%} everywhere"


def _samples_text(samples: NDArray[np.int64]) -> str:
    least, most = int(samples.min()), int(samples.max())
    return f"{_plural(most, 'sample')}" if least == most else f"{least} to {most} samples"


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _problem(error: Any) -> str:
    """One problem, named by the option that has it."""
    names = [str(part) for part in error["loc"] if isinstance(part, str) and part != "service"]
    option = f"--{names[0].replace('_', '-')}: " if names else ""
    text = error["msg"].removeprefix("Value error, ")
    came = f" (came: {error['input']!r})" if isinstance(error["input"], str | int | float | list) else ""
    return f"{option}{text}{came}"
