"""Accounts: who sees what, what an account may still buy, and what of it survives a restart and an old database."""

import sqlite3
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
import s3fs
from pydantic import SecretStr, ValidationError
from sentinelhub import BatchProcessClient, SHConfig
from sentinelhub.exceptions import DownloadFailedException

from localhub.jobs import Job
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from localhub.store import Store
from tests.localhub.batch_requests import body, client_of

PROCESS = "/api/v2/batch/process"
FIRST = ("first", "planted-first-secret")
SECOND = ("second", "planted-second-secret")


@pytest.fixture(scope="module")
def two_clients(hub_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub with two clients, each an account with 1500 processing units."""
    settings = {
        "data_dir": tmp_path_factory.mktemp("two-clients"),
        "client_id": FIRST[0],
        "client_secret": SecretStr(FIRST[1]),
        "other_clients": {SECOND[0]: SecretStr(SECOND[1])},
        "account_pu": 1500.0,
        "workers": 1,
    }
    with LocalHub(hub_settings.model_copy(update=settings)) as running:
        yield running


def token_answer(hub: LocalHub, client: tuple[str, str]) -> requests.Response:
    """What the token endpoint says to a client."""
    form = {"grant_type": "client_credentials", "client_id": client[0], "client_secret": client[1]}
    return requests.post(hub.token_url, data=form, timeout=10)


def session(hub: LocalHub, client: tuple[str, str]) -> requests.Session:
    """A bare HTTP session of a client."""
    asking = requests.Session()
    asking.headers["Authorization"] = f"Bearer {token_answer(hub, client).json()['access_token']}"
    return asking


def set_balance(hub: LocalHub, client: tuple[str, str], balance_pu: float | None) -> dict[str, Any]:
    """Let a client's account have so many processing units."""
    url = f"{hub.base_url}/admin/accounts/{client[0]}"
    answer = requests.put(url, json={"balance_pu": balance_pu}, auth=client, timeout=10)
    assert answer.status_code == 200
    account: dict[str, Any] = answer.json()
    return account


def balances(hub: LocalHub) -> dict[str, float | None]:
    """Balance of each client."""
    accounts = requests.get(f"{hub.base_url}/admin/accounts", auth=FIRST, timeout=10).json()
    return {account["client_id"]: account["balance_pu"] for account in accounts}


def test_a_clients_secret_is_not_another_clients(two_clients: LocalHub) -> None:
    assert token_answer(two_clients, FIRST).status_code == 200
    assert token_answer(two_clients, SECOND).status_code == 200
    for wrong in ((FIRST[0], SECOND[1]), (SECOND[0], FIRST[1]), ("third", FIRST[1]), ("", "")):
        assert token_answer(two_clients, wrong).status_code == 401


def test_a_request_of_another_account_is_answered_with_403_an_unknown_one_with_404_and_lists_are_apart(
    two_clients: LocalHub, s3: SeaweedFS, bucket: str
) -> None:
    first, second = session(two_clients, FIRST), session(two_clients, SECOND)
    url = two_clients.base_url + PROCESS
    task = first.post(url, json=body(s3, bucket), timeout=10).json()

    def answers(job_id: str) -> list[tuple[int, str]]:
        job = f"{url}/{job_id}"
        asked = [second.get(job, timeout=10), second.put(job, json={"description": "mine"}, timeout=10)]
        asked += [second.post(f"{job}/{action}", timeout=10) for action in ("analyse", "start", "stop")]
        return [(answer.status_code, answer.json()["error"]["code"]) for answer in asked]

    assert answers(task["id"]) == [(403, "COMMON_INSUFFICIENT_PERMISSIONS")] * 5
    assert answers(str(uuid.uuid4())) == [(404, "COMMON_NOT_FOUND")] * 5
    assert second.get(url, timeout=10).json()["data"] == []
    shown = first.get(f"{url}/{task['id']}", timeout=10).json()
    assert (shown["status"], shown["request"]["description"]) == ("CREATED", "a test")


def test_the_vendors_client_is_told_that_its_account_cannot_afford_a_request(
    two_clients: LocalHub, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str
) -> None:
    set_balance(two_clients, SECOND, 999.5)
    client = BatchProcessClient(config_of(two_clients, SECOND))
    payload = body(s3, bucket)
    with pytest.raises(DownloadFailedException, match=r"at least 1000 processing units; this one has 999\.5 left"):
        client.create(payload["processRequest"], payload["input"], payload["output"])
    refused = session(two_clients, SECOND).post(two_clients.base_url + PROCESS, json=payload, timeout=10)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "COMMON_INSUFFICIENT_PERMISSIONS")
    assert s3_files.find(bucket) == []
    set_balance(two_clients, SECOND, 1000)
    assert client.create(payload["processRequest"], payload["input"], payload["output"]).status.value == "CREATED"


def config_of(hub: LocalHub, client: tuple[str, str]) -> SHConfig:
    """Configuration of the vendor's client for an OAuth client."""
    config = client_of(hub).config
    config.sh_client_id, config.sh_client_secret = client
    return config


def test_a_request_that_breaks_a_rule_is_told_so_first(two_clients: LocalHub, s3: SeaweedFS, bucket: str) -> None:
    set_balance(two_clients, SECOND, 0)
    asking = session(two_clients, SECOND)
    wrong = body(s3, bucket) | {"input": {"type": "tiling-grid", "id": 4, "resolution": 10}}
    assert asking.post(two_clients.base_url + PROCESS, json=wrong, timeout=10).status_code == 400
    assert asking.post(two_clients.base_url + PROCESS, json=body(s3, bucket), timeout=10).status_code == 403


def test_an_account_without_end_is_never_refused(two_clients: LocalHub, s3: SeaweedFS, bucket: str) -> None:
    assert set_balance(two_clients, SECOND, None)["balance_pu"] is None
    answer = session(two_clients, SECOND).post(two_clients.base_url + PROCESS, json=body(s3, bucket), timeout=10)
    assert answer.status_code == 201


# ---- what is kept ----


def test_an_account_is_opened_once_and_keeps_its_balance(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open_accounts(["a"], 2000)
    store.set_balance(account_id(store, "a"), 7)
    store.open_accounts(["a", "b"], 3000)
    store.close()
    store = Store(tmp_path)
    assert {account.client_id: left for account, left in store.accounts().items()} == {"a": 7, "b": 3000}
    assert store.account("c") is None


def test_what_is_charged_adds_up_and_an_account_without_end_stays_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open_accounts(["limited"], 100)
    store.open_accounts(["free"], None)
    assert [store.charge(account_id(store, "limited"), pu) for pu in (30.5, 60, 20)] == [69.5, 9.5, -10.5]
    assert store.balance(account_id(store, "limited")) == -10.5
    assert store.charge(account_id(store, "free"), 1e9) is None


def account_id(store: Store, client_id: str) -> str:
    """Id of a client's account."""
    account = store.account(client_id)
    assert account is not None
    return account.account_id


OLD_SCHEMA = """
CREATE TABLE keys (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE accounts (client_id TEXT PRIMARY KEY, account_id TEXT NOT NULL);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, account_id TEXT NOT NULL, request TEXT NOT NULL, created TEXT NOT NULL, updated TEXT NOT NULL,
    status TEXT NOT NULL, error TEXT, action TEXT NOT NULL, action_updated TEXT, stopped_reason TEXT
);
INSERT INTO accounts VALUES ('a', 'account of a');
INSERT INTO jobs VALUES (
    'old', 'account of a', '{}', '2026-01-01T00:00:00.000000+00:00', '2026-01-01T00:00:00.000000+00:00', 'CREATED',
    NULL, 'NONE', NULL, NULL
);
"""
"""A database as the first version left it."""


def test_a_database_of_the_first_version_opens_and_takes_new_jobs_and_balances(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "localhub.sqlite")
    database.executescript(OLD_SCHEMA)
    database.close()
    store = Store(tmp_path)
    store.open_accounts(["a"], 2000)
    assert (account_id(store, "a"), store.balance("account of a")) == ("account of a", None)
    store.set_balance("account of a", 50)
    store.add(Job("new", "account of a", {}, datetime.now(UTC), datetime.now(UTC)), {})
    store.close()
    store = Store(tmp_path)
    assert store.balance("account of a") == 50
    assert [job.id for job in store.all_jobs()] == [create.job_id for create in store.creates()] == ["old", "new"]


def test_a_client_cannot_have_two_secrets(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="'a' is client_id and one of other_clients; give it one secret"):
        Settings(data_dir=tmp_path, archive=tmp_path, client_id="a", other_clients={"a": SecretStr("b")})


def test_balances_and_the_end_of_tokens_outlast_a_restart_and_no_secret_is_shown(two_clients: LocalHub) -> None:
    set_balance(two_clients, FIRST, 1234.5)
    before = session(two_clients, FIRST)
    auth, admin = FIRST, two_clients.base_url + "/admin"
    assert requests.post(f"{admin}/tokens/expire", auth=auth, timeout=10).status_code == 204
    shown = [requests.get(f"{admin}/{path}", auth=auth, timeout=10).text for path in ("accounts", "creates", "faults")]
    answer = token_answer(two_clients, FIRST).json()
    assert answer["not-before-policy"] > 0
    between = session(two_clients, FIRST)

    two_clients.stop()
    two_clients.start()
    url = two_clients.base_url + PROCESS
    refused = before.get(url, timeout=10)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "COMMON_UNAUTHORIZED")
    assert "made invalid" in refused.json()["error"]["message"]
    assert between.get(url, timeout=10).status_code == 200
    assert session(two_clients, FIRST).get(url, timeout=10).status_code == 200
    assert balances(two_clients)[FIRST[0]] == 1234.5
    for text in [*shown, two_clients.log_path.read_text()]:
        assert FIRST[1] not in text
        assert SECOND[1] not in text
