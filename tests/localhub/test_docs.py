"""localhub's own API description: valid, complete, and readable without a network."""

import re

import pytest
import requests
from openapi_spec_validator import validate

from localhub.api.app import create_app
from localhub.api.docs import described
from localhub.server import LocalHub
from localhub.settings import Settings


def test_the_document_is_valid_openapi(web: requests.Session, hub: LocalHub) -> None:
    validate(web.get(f"{hub.base_url}/openapi.json", timeout=10).json())


def test_every_operation_has_a_summary_and_stands_in_it_once(hub_settings: Settings) -> None:
    document = described(create_app(hub_settings))
    operations = [(path, method, one) for path, methods in document["paths"].items() for method, one in methods.items()]
    summaries = [one["summary"] for _, _, one in operations]
    assert len(operations) == 29
    assert len(set(summaries)) == len(summaries)
    assert all("_" not in summary for summary in summaries)


def test_bodies_are_described_down_to_their_fields(hub_settings: Settings) -> None:
    document = described(create_app(hub_settings))
    body = document["paths"]["/api/v2/batch/process"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert {"processRequest", "input", "output"} <= set(schema["properties"])


def test_the_page_shows_every_operation_and_loads_nothing_from_elsewhere(hub: LocalHub) -> None:
    client = (hub.settings.client_id, hub.settings.client_secret.get_secret_value())
    answer = requests.get(f"{hub.base_url}/docs", auth=client, timeout=10)
    document = requests.get(f"{hub.base_url}/openapi.json", auth=client, timeout=10).json()
    assert all(path in answer.text for path in document["paths"])
    assert not re.findall(r"(?:src|href)=[\"\']https?:", answer.text)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_it_wants_credentials(hub: LocalHub, path: str) -> None:
    assert requests.get(hub.base_url + path, timeout=10).status_code == 401
