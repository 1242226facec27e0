"""An S3 server and localhub over the sample archive, on this machine.

The only place that starts servers. What they keep lies in one folder, so that a second run finds what the first left.
Nothing of the flow is imported here: who starts servers need not wait for it.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import s3fs
import yaml
from pydantic import ValidationError

from flows.progress import tell
from localhub.sample import build_sample
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tasks.errors import InvalidInput
from tasks.service import LOCALHUB_CLIENT
from tasks.storage import LOCALHUB_POLYGONS, LOCALHUB_S3_KEYS, Storage, s3_keys

BUCKET = "eopatch-flow"
"""The bucket of the default parameters."""
SAMPLE = "sample"
NOTHING: Mapping[str, Any] = MappingProxyType({})
PREPARATION = "Sample scenes"
SERVERS = "Servers"


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers answer.

    Attributes:
        base_url: of localhub.
        endpoint_url: of S3.
        alive: whether both still run.
    """

    base_url: str
    endpoint_url: str
    alive: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class RunningStore:
    """An S3 server that somebody else starts and stops.

    Attributes:
        endpoint_url: where it answers.
        access_key: of an identity that may make a bucket.
        secret_key: that goes with it.
        alive: its end is not our business.
    """

    endpoint_url: str
    access_key: str
    secret_key: str
    alive: bool = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@contextmanager
def servers(
    folder: Path,
    archive: Path | None = None,
    *,
    port: int = 0,
    s3_port: int = 0,
    s3_endpoint: str | None = None,
    chosen: Mapping[str, Any] = NOTHING,
) -> Iterator[Servers]:
    """Run an S3 server and localhub for as long as the context lasts.

    Args:
        folder: keeps the buckets, localhub's jobs and the sample archive.
        archive: folder with STAC items and rasters; None makes the synthetic sample and uploads its polygons.
        port: of localhub; 0 takes a free one.
        s3_port: of the S3 server; 0 takes a free one.
        s3_endpoint: an S3 server that runs already, instead of one of our own; its keys are those of the environment,
            or the stand-in's.
        chosen: other settings of localhub, as `read_settings` gives them.

    Raises:
        InvalidInput: a setting cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = _running(s3_endpoint) if s3_endpoint else SeaweedFS(folder / "s3", *LOCALHUB_S3_KEYS, port=s3_port)
    hub = LocalHub(_settings(folder, _archive(folder, archive), store, port, chosen))
    with ExitStack() as running:
        with ThreadPoolExecutor(1) as meanwhile:
            started = meanwhile.submit(running.enter_context, store)
            polygons = None if archive else _sample(folder)
            started.result()
        _fill_bucket(store, polygons)
        running.enter_context(hub)  # last: where it answers, scenes, bucket and polygons are there
        tell(SERVERS, 1, 1, f"localhub {hub.base_url}, S3 {store.endpoint_url}")
        yield Servers(hub.base_url, store.endpoint_url, lambda: hub.alive and store.alive)


def _running(s3_endpoint: str) -> RunningStore:
    keys = s3_keys(Storage(endpoint_url=s3_endpoint))
    if keys is None:
        raise InvalidInput(
            f"There are no keys for S3 at {s3_endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
            "environment."
        )
    return RunningStore(s3_endpoint, *keys)


def _archive(folder: Path, archive: Path | None) -> Path:
    if archive is not None and not archive.is_dir():
        raise InvalidInput(f"The archive {archive} is not a folder; give one with STAC items, or none for the sample.")
    return archive or folder / SAMPLE


def _sample(folder: Path) -> Path:
    """Make the sample, or find it; its land-cover polygons."""
    info = build_sample(folder / SAMPLE, progress=lambda share: tell(PREPARATION, round(share * 100), 100))
    note = "kept from an earlier run" if info.reused else f"{info.size_bytes / 1e6:,.0f} MB, synthetic"
    tell(PREPARATION, 100, 100, f"{info.acquisitions} acquisitions, {note}")
    return info.reference


def read_settings(settings: Path | None, faults: Path | None, **given: object) -> dict[str, Any]:
    """Return the settings of localhub that files and options choose; an option that is None chooses nothing.

    Raises:
        InvalidInput: a file cannot be read, or holds no mapping.
    """
    chosen = _mapping(settings) if settings else {}
    if faults:
        chosen["faults"] = _mapping(faults)
    return chosen | {name: value for name, value in given.items() if value is not None}


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidInput(f"{path} cannot be read as YAML or JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds a {type(content).__name__}; give names and values of settings.")
    return content


def _settings(
    folder: Path, archive: Path, store: SeaweedFS | RunningStore, port: int, chosen: Mapping[str, Any]
) -> Settings:
    client_id, client_secret = LOCALHUB_CLIENT
    ours = {
        "data_dir": folder / "localhub",
        "archive": archive,
        "port": port,
        "s3_endpoint_url": store.endpoint_url,
        "s3_access_key": store.access_key,
        "s3_secret_key": store.secret_key,
        "client_id": client_id,
        "client_secret": client_secret,
    }
    if taken := sorted(ours.keys() & chosen.keys()):
        raise InvalidInput(f"The settings {', '.join(taken)} belong to the servers that start here; leave them out.")
    try:
        return Settings.model_validate(ours | dict(chosen))
    except ValidationError as error:
        notes = (
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False, include_url=False)
        )
        raise InvalidInput("A setting of localhub cannot be used. " + "; ".join(notes)) from error


def _fill_bucket(store: SeaweedFS | RunningStore, polygons: Path | None) -> None:
    files = s3fs.S3FileSystem(
        key=store.access_key,
        secret=store.secret_key,
        client_kwargs={"endpoint_url": store.endpoint_url},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    if not files.exists(BUCKET):
        files.mkdir(BUCKET)
    target = LOCALHUB_POLYGONS.removeprefix("s3://")
    if polygons is not None and not (files.exists(target) and files.size(target) == polygons.stat().st_size):
        files.put_file(str(polygons), target)
