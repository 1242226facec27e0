"""What a person sees of localhub: a page of the service and its jobs, and one of each job with the map of its tiles.

HTML that the server makes whole, so that it works without JavaScript; a small script fetches the page again and
exchanges the parts that have changed. Everything that a request, a tile or an error brings is escaped by the
templates, and the Content Security Policy admits no style and no script but theirs.
"""

import base64
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from localhub import jobs
from localhub.api import faultwords
from localhub.api.admin import equal_creates
from localhub.api.common import Operator, Served, Service
from localhub.api.tilemap import ENDED, FAILED, TileMap, TileState, state_of, tally, tile_map
from localhub.archive import ArchiveError, ArchiveSource
from localhub.faults import DatabaseFault
from localhub.featurefiles import execution_key
from localhub.incidents import Incidents
from localhub.jobs import Job, Status
from localhub.payload import parse_create_request, without_secrets
from localhub.pricing import request_cost
from localhub.providers import archive_source
from localhub.render import open_archive, reading_now
from localhub.server import TOKEN_PATH
from localhub.store import Feature, FeatureGroup

JOBS_SHOWN = 25
"""Jobs on one page of the list."""
FAILURES_SHOWN = 200
"""Failed tiles in a job's table."""
TILES_DRAWN = 20_000
"""Tiles on a map; of more, each so-manieth is drawn."""
ARCHIVE_SECONDS = 60
"""How long the count of the archive's scenes is kept before the folder is read again."""

_UNDELIVERED = "DONE, but its files are not in the bucket"
_ACTIVE = (Status.ANALYSING, Status.PROCESSING)
_TEMPLATES = Path(__file__).with_name("templates")
_STYLE = (_TEMPLATES / "page.css").read_text()
_SCRIPT = (_TEMPLATES / "page.js").read_text()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(_STYLE)}",
            f"script-src {_hash(_SCRIPT)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of every page (W3C, Content Security Policy Level 3): nothing is loaded from elsewhere, nothing inline but ours."""


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["utc"] = _utc
    environment.globals |= {"style": Markup(_STYLE), "script": Markup(_SCRIPT)}  # noqa: S704 (our own files)
    return environment


_ENVIRONMENT = _environment()


def html(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page made of a template, with the headers that confine it."""
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(values), status, HEADERS)


def router() -> APIRouter:
    """Return the routes; they want an operator's credentials."""
    routes = APIRouter(include_in_schema=False)
    routes.add_api_route("/", _home)
    routes.add_api_route("/jobs/{job_id}", _job)
    return routes


# ---- the service and its jobs ----


@dataclass(frozen=True, slots=True)
class Line:
    """A job as the list shows it."""

    job: Job
    client_id: str
    counts: Counter[TileState]
    cost_pu: float | None
    """None as long as nothing is processed."""

    @property
    def description(self) -> str:
        """The request's own description, empty without one."""
        return str(self.job.request.get("description") or "")

    @property
    def tiles(self) -> int:
        """Number of its tiles."""
        return self.counts.total()

    @property
    def ended(self) -> int:
        """Number of its tiles that have come to an end, good or bad."""
        return sum(count for state, count in self.counts.items() if state in ENDED)

    @property
    def failed(self) -> int:
        """Number of its tiles that failed."""
        return sum(self.counts[state] for state in FAILED)

    @property
    def states(self) -> list[tuple[TileState, int]]:
        """The states that its tiles have, with their number; what has ended comes first."""
        return [(state, self.counts[state]) for state in reversed(TileState) if self.counts[state]]

    @property
    def bar(self) -> Iterator[tuple[TileState, float, float]]:
        """State, begin and length of each stretch of its bar, in percent."""
        begin = 0.0
        for state, count in self.states:
            length = 100 * count / self.tiles
            yield state, round(begin, 3), round(length, 3)
            begin += length


def _home(request: Request, _operator: Operator, service: Served, search: str = "", page: int = 1) -> HTMLResponse:
    store = service.store
    first = (max(1, min(page, 10**6)) - 1) * JOBS_SHOWN
    found = store.newest_jobs(search=search, count=JOBS_SHOWN + 1, offset=first)
    counts = store.job_counts()
    return html(
        "home.html",
        facts=_facts(request, service),
        faults=faultwords.told(service.faults.current),
        lines=_lines(found[:JOBS_SHOWN], service),
        counts={status: counts[status] for status in Status if status in counts},
        active=any(status in counts for status in _ACTIVE),
        accounts=len(store.accounts()),
        search=search,
        page=first // JOBS_SHOWN + 1,
        has_older=len(found) > JOBS_SHOWN,
        incidents=_incidents(request).newest(),
        now=datetime.now(UTC),
    )


def _incidents(request: Request) -> Incidents:
    incidents: Incidents = request.app.state.incidents
    return incidents


def _lines(found: Sequence[Job], service: Service) -> list[Line]:
    groups = service.store.feature_groups([job.id for job in found])
    clients = {account.account_id: account.client_id for account in service.store.accounts()}
    return [_line(job, clients, [group for group in groups if group.job_id == job.id]) for job in found]


def _line(job: Job, clients: Mapping[str, str], groups: Sequence[FeatureGroup]) -> Line:
    counts = tally(groups, processing=job.status is Status.PROCESSING)
    spent = request_cost(sum(group.cost_pu for group in groups))
    line = Line(job, clients.get(job.account_id, job.account_id), counts, spent)
    return line if line.ended else Line(job, line.client_id, counts, None)


def _facts(request: Request, service: Service) -> list[tuple[str, str]]:
    """Return what a client has to know of the service, as names and values."""
    settings = service.settings
    base_url = str(request.base_url).rstrip("/")
    balances = (
        f"{account.client_id} ({'unlimited' if balance is None else f'{balance:,.1f} PU left'})"
        for account, balance in service.store.accounts().items()
    )
    return [
        ("Address", base_url),
        ("Token URL", base_url + TOKEN_PATH),
        ("Provider", settings.provider),
        ("S3 endpoint", settings.s3_endpoint_url or "AWS"),
        ("Archive", _archive_words(archive_source(settings))),
        ("Workers", str(settings.workers)),
        ("Accounts", ", ".join(balances)),
        ("Requests created", _creates_words(service)),
    ]


def _creates_words(service: Service) -> str:
    """Return how many creates were executed, and how many of them asked for the same again."""
    creates = service.store.creates()
    repeated = sum(len(group) - 1 for group in equal_creates(creates))
    if len(creates) < 2:
        return str(len(creates))
    return f"{len(creates):,}, {repeated:,} of them a second time" if repeated else f"{len(creates):,}, no two equal"


def _archive_words(source: ArchiveSource) -> str:
    """Return the scenes of an archive by collection, with their period, or why it cannot be read."""
    try:
        archive = open_archive(source, reading_now(ARCHIVE_SECONDS))
    except ArchiveError as error:
        return str(error)
    parts = []
    for collection in sorted(archive.collections):
        times = [scene.datetime for scene in archive.scenes if scene.collection == collection]
        scenes = f"{len(times):,} scene{'s' if len(times) > 1 else ''}"
        parts.append(f"{collection}: {scenes}, {min(times):%Y-%m-%d} to {max(times):%Y-%m-%d}")
    return f"{source.place}; {'; '.join(parts)}"


# ---- one job ----


def _job(request: Request, job_id: str, _operator: Operator, service: Served) -> HTMLResponse:
    job = service.store.job(job_id)
    if job is None:
        return html("missing.html", 404, job_id=job_id)
    line = _lines([job], service)[0]
    incidents = [incident for incident in _incidents(request).newest() if incident.job_id == job_id]
    return html(
        "job.html",
        line=line,
        job=job,
        active=jobs.is_active(job),
        faults=faultwords.told(service.faults.current),
        map=_map(line, service),
        step=_step(line.tiles),
        failures=_failures(line, service),
        equal=_equal(job_id, service),
        places=_places(job, service.faults.current.database),
        s3_endpoint_url=service.settings.s3_endpoint_url,
        request_json=_request_json(job),
        evalscript=job.request["processRequest"]["evalscript"],
        incidents=incidents,
        now=datetime.now(UTC),
    )


def _step(tiles: int) -> int:
    return max(1, ceil(tiles / TILES_DRAWN))


def _map(line: Line, service: Service) -> TileMap | None:
    features = service.store.features(line.job.id, every=_step(line.tiles))
    return tile_map(features, processing=line.job.status is Status.PROCESSING) if features else None


@dataclass(frozen=True, slots=True)
class Failure:
    """The tiles that failed in the same way."""

    state: TileState
    error: str
    tries: int
    """Most failed tries that one of them had."""
    tiles: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of the tiles."""
        return len(self.tiles)


def _failures(line: Line, service: Service) -> list[Failure]:
    """Return the failed tiles by error: a script that fails fails everywhere, and is read once."""
    grouped: defaultdict[tuple[TileState, str], list[Feature]] = defaultdict(list)
    for feature in service.store.failed_features(line.job.id, FAILURES_SHOWN) if line.failed else []:
        grouped[state_of(feature, processing=False), feature.error or _UNDELIVERED].append(feature)
    return [
        Failure(state, error, max(f.tries for f in features), tuple(f.tile.name for f in features))
        for (state, error), features in grouped.items()
    ]


def _equal(job_id: str, service: Service) -> list[str]:
    """Return the ids of the account's other jobs that were created with an equal body."""
    groups = ([create.job_id for create in group] for group in equal_creates(service.store.creates()))
    return [other for group in groups if job_id in group for other in group if other != job_id]


def _places(job: Job, fault: DatabaseFault) -> list[tuple[str, str]]:
    """Return where the job's files are, as names and s3:// addresses."""
    template = parse_create_request(job.request).template
    bucket = f"s3://{template.bucket}/"
    root = bucket + template.root
    return [
        ("Results", bucket + template.key.replace("<requestId>", job.id)),
        ("Feature manifest", f"{root}featureManifest-{job.id}.gpkg"),
        ("Execution database", bucket + execution_key(template.root, job.id, fault.place)),
        ("Request", f"{root}request-{job.id}.json"),
    ]


def _request_json(job: Job) -> str:
    """Return the request without its secrets, and without the script, which is shown as it stands."""
    shown = without_secrets(job.request)
    shown["processRequest"] = {**shown["processRequest"], "evalscript": "(below)"}
    return json.dumps(shown, indent=2, ensure_ascii=False)
