"""Fixtures of the conformance tests: the description, a fault-free localhub, and everything said to it."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import requests
import s3fs
import shapely
import yaml
from pydantic import SecretStr
from sentinelhub import BatchProcessClient, SentinelHubSession

from localhub.faults import ApiFault, Faults
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.localhub.batch_requests import body, client_of
from tests.localhub.conformance.calls import CALLS, Caller
from tests.localhub.conformance.description import Description, Exchange, overlaid
from tests.localhub.conformance.recording import RecordingProxy
from tests.localhub.conformance.refusals import PREFIXES, UNKNOWN, operations, refuse_everything

OVERLAY = Path(__file__).with_name("overlay.yaml")
STRANGER = "stranger"
"""A second client of the localhub, with an account of its own."""
FUZZER = "fuzzer"
"""A third one, whose requests are nobody else's business."""


@pytest.fixture(scope="session")
def published(test_data: Path) -> dict[str, Any]:
    """The description as it was published; it is real data and not part of the project."""
    path = test_data / "openapi" / "batch-v2.yaml"
    if not path.exists():
        pytest.skip(f"the published description is not at {path}; set EOPATCH_FLOW_TEST_DATA to the folder above")
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


@pytest.fixture(scope="session")
def corrections() -> list[dict[str, Any]]:
    """The actions of the overlay."""
    actions: list[dict[str, Any]] = yaml.safe_load(OVERLAY.read_text())["actions"]
    return actions


@pytest.fixture(scope="session")
def description(published: dict[str, Any], corrections: list[dict[str, Any]]) -> Description:
    """The description with its corrections."""
    return Description(overlaid(published, corrections))


@pytest.fixture(scope="session")
def conforming_hub(hub_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub without faults, with several clients."""
    others = {STRANGER: SecretStr("a secret"), FUZZER: SecretStr("another secret")}
    folder = tmp_path_factory.mktemp("conforming")
    with LocalHub(hub_settings.model_copy(update={"data_dir": folder, "other_clients": others})) as running:
        yield running


@pytest.fixture(scope="session")
def session_bucket(s3: SeaweedFS) -> Iterator[str]:
    """The name of a bucket for all conformance tests."""
    files = s3fs.S3FileSystem(
        key=s3.access_key,
        secret=s3.secret_key,
        client_kwargs={"endpoint_url": s3.endpoint_url},
        use_listings_cache=False,
    )
    name = f"conformance-{uuid.uuid4().hex[:12]}"
    files.mkdir(name)
    yield name
    files.rm(name, recursive=True)


@pytest.fixture(scope="session")
def features_url(s3: SeaweedFS, session_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a GeoPackage with one small feature within the scenes."""
    path = tmp_path_factory.mktemp("features") / "features.gpkg"
    table = gpd.GeoDataFrame(
        {"id": [1], "identifier": ["square"], "resolution": [10.0]},
        geometry=[shapely.box(465300, 5079500, 465400, 5079600)],
        crs="EPSG:32633",
    )
    table.to_file(path, layer="Grid EPSG:32633", driver="GPKG", engine="pyogrio")
    files = s3fs.S3FileSystem(key=s3.access_key, secret=s3.secret_key, client_kwargs={"endpoint_url": s3.endpoint_url})
    files.put_file(str(path), f"{session_bucket}/features.gpkg")
    return f"s3://{session_bucket}/features.gpkg"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was said, token requests apart."""

    by_method: Mapping[str, Sequence[Exchange]]
    """By the method of the vendor's client that said it."""
    refusals: Sequence[Exchange]
    """What bare requests were refused for."""

    @property
    def from_client(self) -> list[Exchange]:
        """What the vendor's client said."""
        return [*chain(*self.by_method.values())]

    @property
    def all(self) -> list[Exchange]:
        """All of it."""
        return [*self.from_client, *self.refusals]


@pytest.fixture(scope="session")
def traffic(conforming_hub: LocalHub, s3: SeaweedFS, session_bucket: str, features_url: str) -> Traffic:
    """Everything that the vendor's client and bare requests say to a fault-free localhub, and its answers."""
    with RecordingProxy(conforming_hub.base_url) as proxy:
        caller = Caller(client_as(conforming_hub, proxy.base_url), s3, session_bucket, features_url)
        by_method = {method: _said(proxy, partial(call, caller)) for method, call in CALLS.items()}
        own, stranger = session_as(conforming_hub, "localhub"), session_as(conforming_hub, STRANGER)
        refusals = _said(proxy, partial(refuse_everything, proxy.base_url, own, stranger, caller))
    return Traffic(by_method, refusals)


def _said(proxy: RecordingProxy, call: Callable[[], None]) -> list[Exchange]:
    first = len(proxy.exchanges)
    call()
    return proxy.exchanges[first:]


def client_as(hub: LocalHub, base_url: str) -> BatchProcessClient:
    """Return the vendor's client, which reaches `hub` by another address."""
    config = client_of(hub).config
    config.sh_base_url = base_url
    return BatchProcessClient(config)


def session_as(hub: LocalHub, client_id: str) -> requests.Session:
    """Return a bare HTTP session with the token of one of the clients of `hub`."""
    config = client_of(hub).config
    config.sh_client_id, config.sh_client_secret = client_id, hub.settings.clients[client_id].get_secret_value()
    session = requests.Session()
    session.headers.update(SentinelHubSession(config).session_headers)
    return session


@pytest.fixture(scope="session")
def trouble(hub_settings: Settings, tmp_path_factory: pytest.TempPathFactory, s3: SeaweedFS) -> list[Exchange]:
    """What a localhub with a poor account and faults answers: 403 to a create, then 429 and 502 to each operation."""
    faults = Faults(
        api=(ApiFault(status=429, retry_after_ms=100, skip=1, times=9), ApiFault(status=502, skip=1, times=9))
    )
    folder = tmp_path_factory.mktemp("trouble")
    settings = hub_settings.model_copy(update={"data_dir": folder, "account_pu": 10.0, "faults": faults})
    with LocalHub(settings) as hub, RecordingProxy(hub.base_url) as proxy:
        own, url = session_as(hub, settings.client_id), proxy.base_url + PREFIXES[0]
        own.post(f"{url}/process", json=body(s3, "bucket"), timeout=10)
        for _ in range(2):
            for method, address, sent in operations(url, UNKNOWN):
                own.request(method, address, json=sent, timeout=10)
    return proxy.exchanges
