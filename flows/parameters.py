"""The parameters of the flow: the form that a person fills in, the command line's YAML, the arguments in Python."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.batch import Limits
from tasks.conversion import FeatureMapping, PatchOptions
from tasks.errors import InvalidInput
from tasks.evalscript import Imagery
from tasks.form import FormModel
from tasks.plan import Area, Period, Tiling
from tasks.reference import Reference
from tasks.service import Service
from tasks.storage import LOCALHUB_POLYGONS, Storage, is_loopback

SAMPLE_AREA = Area(name="Sample", bbox=(15.795, 46.335, 16.02, 46.475))
"""Lies in four tiles of localhub's sample archive."""
SAMPLE_REFERENCE = Reference(file=LOCALHUB_POLYGONS)
"""The sample archive's land-cover polygons, where ``eopatch-flow localhub`` puts them."""


MAX_THREADS = 64
"""Threads of the flow's task runner; how many work on tiles is ``run.tiles_at_once``."""
SAMPLE_PERIOD = Period(start=date(2019, 1, 1), end=date(2019, 12, 31))
"""The year of the sample archive."""


def today() -> date:
    """The day (UTC) for which the run is scheduled, however late or often it is started; outside of a run, today."""
    scheduled: datetime | None = flow_run.scheduled_start_time
    return (scheduled or datetime.now(UTC)).astimezone(UTC).date()


class Run(FormModel):
    """How the run behaves."""

    model_config = ConfigDict(title="Run")

    tiles_at_once: int = Field(
        default=2,
        title="Tiles at once",
        description="Tiles that are converted at the same time; each needs memory for one decoded tile. On a cluster: "
        "as many as its workers have threads, and a few more.",
        examples=[4],
        ge=1,
        le=1000,
    )
    tiles_on: Literal["threads", "processes", "dask"] = Field(
        default="threads",
        title="Work on tiles in",
        description="threads or processes of this machine, or on a Dask cluster that runs already.",
        examples=["threads"],
    )
    dask_address: str | None = Field(
        default=None,
        title="Dask scheduler",
        description="Address of the cluster's scheduler. Its workers need this project, Prefect's server and the "
        "storage.",
        examples=["tcp://10.0.0.5:8786"],
        pattern=r"^((tcp|tls|ws|wss)://)?[^/@\s]+:\d+$",
    )
    poll_seconds: float = Field(
        default=60.0,
        title="Poll at least every",
        description="Longest pause between two looks at the job, seconds; a young job is looked at more often.",
        examples=[60],
        ge=1,
        le=3600,
    )
    patience_minutes: float = Field(
        default=30.0,
        title="Patience",
        description="Minutes without an answer from the service, or without a file that should be there, before the "
        "run gives up. The job goes on, and the next run takes it up again.",
        examples=[30],
        gt=0,
    )
    wait_minutes: float = Field(
        default=2.5,
        title="Wait for another run",
        description="Minutes to wait while another run does the same work, before this one ends and says which. A run "
        "that was killed on another machine is known to be dead after two minutes.",
        examples=[2.5],
        ge=0,
        le=1440,
    )
    timeout_hours: float | None = Field(
        default=None,
        title="Timeout",
        description="Hours after which the run ends by itself; empty for no limit. What becomes of the job then is the "
        "next choice.",
        examples=[12],
        gt=0,
    )
    on_abort: Literal["stop", "leave"] = Field(
        default="stop",
        title="When cancelled or timed out",
        description="Stop the job, which can be started again 30 minutes later, or leave it: it goes on and costs. The "
        "next run takes it up either way.",
        examples=["stop"],
    )
    quicklooks: int = Field(
        default=4, title="Quick-looks", description="Number of tiles that get a picture.", examples=[4], ge=0, le=1000
    )

    @model_validator(mode="after")
    def _fits_where_tiles_are_worked_on(self) -> Self:
        if (self.tiles_on == "dask") != (self.dask_address is not None):
            raise ValueError(
                f"tiles_on is {self.tiles_on} and dask_address is {self.dask_address or 'empty'}; give the scheduler's "
                "address with tiles_on dask, and with nothing else"
            )
        if self.tiles_on == "threads" and self.tiles_at_once > MAX_THREADS:
            raise ValueError(
                f"tiles_at_once is {self.tiles_at_once}, but threads are at most {MAX_THREADS}; ask for fewer, or "
                "choose tiles_on processes or dask"
            )
        return self


class LandCover(FormModel):
    """All parameters of the flow; the defaults run on localhub."""

    model_config = ConfigDict(title="Land cover")

    area: Area = Field(default=SAMPLE_AREA, title="Area", description="Where.")
    period: Period = Field(
        default=SAMPLE_PERIOD, title="Period", description="When, and how far the output dates are apart."
    )
    imagery: Imagery = Field(
        default=Imagery(),
        title="Imagery",
        description="Collection, cloud mask, bands and indices, or an evalscript of your own.",
    )
    features: FeatureMapping | None = Field(
        default=None,
        title="Features",
        description="Which features are made of which outputs; empty for the usual ones.",
    )
    tiling: Tiling = Field(
        default=Tiling(),
        title="Tiling",
        description="Tiling grid and resolution, or a GeoPackage with tiles of your own.",
    )
    service: Service = Field(
        default=Service(), title="Sentinel Hub", description="Which Sentinel Hub does the work, and as whom."
    )
    storage: Storage = Field(
        default=Storage(), title="Storage", description="Where Batch delivers, and where the EOPatches go."
    )
    reference: Reference | None = Field(
        default=SAMPLE_REFERENCE, title="Reference polygons", description="Land-cover polygons; empty for none."
    )
    patches: PatchOptions = Field(default=PatchOptions(), title="EOPatches", description="How EOPatches are stored.")
    limits: Limits = Field(
        default=Limits(), title="Limits", description="What may be spent, and what counts as success."
    )
    run: Run = Field(default=Run(), title="Run", description="Pace, patience and pictures.")


def read_config(path: Path) -> LandCover:
    """Read parameters from a YAML or JSON file whose keys are the flow's parameters.

    Raises:
        InvalidInput: the file cannot be read, or does not fit; every problem is named with its place.
    """
    try:
        text = path.read_text(encoding="utf-8")
        is_json = path.suffix == ".json"
        content = json.loads(text, object_pairs_hook=_mapping) if is_json else yaml.load(text, _Loader)  # noqa: S506
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidInput(f"The configuration {path} cannot be read: {error}") from error
    return parse_config({} if content is None else content, str(path))


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: the first value would be lost in silence, a price cap perhaps."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See the base class."""
        lines: dict[object, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(
                    f"'{key.value}' stands in line {lines[key.value]} and again in line {line}; remove one"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, whose keys must differ."""
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"'{repeated[0]}' stands twice in one object; remove one")
    return dict(pairs)


def parse_config(content: Any, source: str) -> LandCover:
    """Turn a mapping into parameters; a ``$schema`` in it is for editors.

    Raises:
        InvalidInput: every problem is named with its place.
    """
    if not isinstance(content, dict):
        raise InvalidInput(f"The configuration {source} must be a mapping with keys such as 'area' and 'period'.")
    try:
        parameters = LandCover.model_validate({name: value for name, value in content.items() if name != "$schema"})
    except ValidationError as error:
        lines = [f"  {_problem(one)}" for one in _causes(error.errors())]
        raise InvalidInput("\n".join([f"The configuration {source} has {len(lines)} problem(s):", *lines])) from error
    missing = [name for name in ("area", "period") if name not in content]
    if missing and not is_loopback(parameters.service.base_url):
        raise InvalidInput(
            f"The configuration {source} does not say {' and '.join(missing)}, which localhub alone has by itself; "
            f"{parameters.service.base_url} would be paid for localhub's sample. Add what you want."
        )
    return parameters


def _causes(errors: Sequence[Any]) -> list[Any]:
    """Leave out that a list is too short where what is wrong with its members is told."""
    places = [one["loc"] for one in errors]

    def inside(place: tuple[int | str, ...]) -> bool:
        return any(len(other) > len(place) and other[: len(place)] == place for other in places)

    return [one for one in errors if one["type"] != "too_short" or not inside(one["loc"])]


def _problem(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    text = error["msg"].removeprefix("Value error, ")
    hidden = (
        error["type"] == "extra_forbidden"
        or error["loc"][-1] == "file"
        or isinstance(error["input"], dict)
        or re.search("@|password", str(error["input"]))
    )
    came = "" if hidden else f" (came: {error['input']!r})"  # a misplaced secret is not repeated
    if error["type"] == "extra_forbidden":
        return f"{place}: {_unknown(error['loc'])}"
    return f"{place}: {text}{came}"


def _unknown(place: Sequence[int | str]) -> str:
    """Say of a key that is no parameter which it may have been meant for."""
    model: type[BaseModel] = LandCover
    for part in (part for part in place[:-1] if isinstance(part, str)):
        kind = model.model_fields[part].annotation if part in model.model_fields else None
        kinds = [one for one in (kind, *get_args(kind)) if isinstance(one, type)]
        model = next((one for one in kinds if issubclass(one, BaseModel)), BaseModel)
    names = sorted(model.model_fields)
    near = get_close_matches(str(place[-1]), names, 1)
    meant = f"; did you mean '{near[0]}'?" if near else ""
    return f"there is no such parameter{meant or '.'}" + (f" There are: {', '.join(names)}" if names else "")
