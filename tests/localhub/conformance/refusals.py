"""Bare requests for the answers that the vendor's client never gets: each refusal of each operation."""

from collections.abc import Iterator
from typing import Any

import requests

from tests.localhub.batch_requests import SLOW, wait_for
from tests.localhub.conformance.calls import Caller

PREFIXES = ("/api/v2/batch", "/batch/v2")
"""Both have the same operations."""
UNKNOWN = "7c3f5b80-52c3-4a5b-9d10-1a2b3c4d5e6f"


def operations(url: str, task_id: str) -> Iterator[tuple[str, str, Any]]:
    """Yield method, URL and body of a request to each operation below a prefix's URL."""
    yield "POST", f"{url}/process", {}
    yield "GET", f"{url}/process", None
    yield from on_task(url, task_id)
    yield "GET", f"{url}/tilinggrids", None
    yield "GET", f"{url}/tilinggrids/1", None


def on_task(url: str, task_id: str) -> Iterator[tuple[str, str, Any]]:
    """Yield those operations that are about one task."""
    task = f"{url}/process/{task_id}"
    yield "GET", task, None
    yield "PUT", task, {}
    yield from (("POST", f"{task}/{action}", None) for action in ("analyse", "start", "stop"))


def refuse_everything(base_url: str, own: requests.Session, stranger: requests.Session, caller: Caller) -> None:
    """Make each operation answer with each refusal that it has."""
    task_id = caller.created().request_id
    for url in (base_url + prefix for prefix in PREFIXES):
        _refuse_strangers(url, task_id, stranger)
        _refuse_bodies(url, task_id, own)
    _refuse_actions(base_url + PREFIXES[0], own, caller)


def _refuse_strangers(url: str, task_id: str, stranger: requests.Session) -> None:
    """Ask without a token (401), for another account's task (403), and for one that nobody has (404)."""
    for method, address, body in operations(url, task_id):
        requests.request(method, address, json=body, timeout=10)
    for owner in (task_id, UNKNOWN):
        for method, address, body in on_task(url, owner):
            stranger.request(method, address, json=body, timeout=10)


def _refuse_bodies(url: str, task_id: str, own: requests.Session) -> None:
    """Send bodies that break a rule (400) or are no JSON (400, 415), and ask for a grid that is not there (400)."""
    bodies = (("POST", f"{url}/process"), ("PUT", f"{url}/process/{task_id}"))
    for method, address in bodies:
        own.request(method, address, json={"description": 1}, timeout=10)
        own.request(method, address, data="{", headers={"Content-Type": "application/json"}, timeout=10)
        own.request(method, address, data="<a/>", headers={"Content-Type": "application/xml"}, timeout=10)
    own.get(f"{url}/tilinggrids/99", timeout=10)


def _refuse_actions(url: str, own: requests.Session, caller: Caller) -> None:
    """Ask for actions that a task's status does not accept (400), and change one that is being processed (409)."""
    created, begun = caller.created(), caller.created(SLOW)
    own.post(f"{url}/process/{created.request_id}/stop", timeout=10)
    task = f"{url}/process/{begun.request_id}"
    own.post(f"{task}/start", timeout=10)
    own.put(task, json={"description": "too late"}, timeout=10)
    own.post(f"{task}/stop", timeout=10)
    own.post(f"{task}/start", timeout=10)
    wait_for(caller.client, begun)
    own.post(f"{task}/analyse", timeout=10)
