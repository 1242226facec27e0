"""The admin routes: who may ask, and what they show and change."""

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from sentinelhub.exceptions import DownloadFailedException

from localhub.api.admin import equal_creates
from localhub.faults import ApiFault, DatabaseFault, Faults, TileFault
from localhub.seaweed import SeaweedFS
from localhub.server import STOP_SECONDS, LocalHub
from localhub.settings import Settings
from localhub.store import Create
from tests.localhub.batch_requests import body, client_of, session_of

PROCESS = "/api/v2/batch/process"
OWN_FAULTS = Faults(api=(ApiFault(operation="grids", status=500, times=None),), hidden_from_get_seconds=0.25)
CLIENT = ("localhub", "localhub")


@pytest.fixture(scope="module")
def own(hub_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A localhub of these tests' own, which makes faults from the start."""
    settings = {"data_dir": tmp_path_factory.mktemp("admin"), "faults": OWN_FAULTS, "workers": 1}
    with LocalHub(hub_settings.model_copy(update=settings)) as running:
        yield running


def ask(
    hub: LocalHub, method: str, path: str, *, auth: tuple[str, str] | None = CLIENT, **options: Any
) -> requests.Response:
    """Ask an admin route by HTTP Basic."""
    return requests.request(method, f"{hub.base_url}/admin{path}", auth=auth, timeout=10, **options)


ROUTES = [
    ("GET", "/faults"),
    ("PUT", "/faults"),
    ("DELETE", "/faults"),
    ("POST", "/tokens/expire"),
    ("GET", "/creates"),
    ("GET", "/accounts"),
    ("PUT", "/accounts/localhub"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer x.y.z",
        "Basic " + base64.b64encode(b"localhub:wrong").decode(),
        "Basic " + base64.b64encode(b"another:localhub").decode(),
        "Basic !",
    ],
)
def test_every_admin_route_wants_a_client_and_says_how(
    own: LocalHub, method: str, path: str, authorization: str | None
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    answer = ask(own, method, path, auth=None, headers=headers, json={"balance_pu": 1} if method == "PUT" else None)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "COMMON_UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"].startswith('Basic realm="localhub"')


def test_a_bearer_token_is_as_good_as_client_and_secret(own: LocalHub) -> None:
    assert (
        session_of(own).get(f"{own.base_url}/admin/accounts", timeout=10).json() == ask(own, "GET", "/accounts").json()
    )


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_a_page_of_another_site_changes_nothing_with_a_browsers_credentials(
    own: LocalHub, site: str, status: int
) -> None:
    headers = {"Sec-Fetch-Site": site}
    assert ask(own, "PUT", "/accounts/localhub", headers=headers, json={"balance_pu": None}).status_code == status
    assert ask(own, "GET", "/accounts", headers=headers).status_code == 200


# ---- faults ----


def test_faults_are_shown_as_they_are_set_and_last_until_the_restart_which_a_hanging_request_does_not_hold_up(
    own: LocalHub,
) -> None:
    assert Faults.model_validate(ask(own, "GET", "/faults").json()) == OWN_FAULTS
    others = Faults(
        api=(ApiFault(operation="create", status=503, retry_after_ms=5, skip=2, times=None),),
        tiles=(TileFault(kind="truncated", tile="33T*"),),
        database=DatabaseFault(torn_uploads=2),
        out_of_pu_after_tiles=3,
    )
    assert ask(own, "PUT", "/faults", json=others.model_dump(mode="json")).status_code == 200
    assert Faults.model_validate(ask(own, "GET", "/faults").json()) == others
    assert ask(own, "DELETE", "/faults").status_code == 204
    assert Faults.model_validate(ask(own, "GET", "/faults").json()) == Faults()
    with hanging(own):
        began = time.monotonic()
        own.stop()
        assert time.monotonic() - began < STOP_SECONDS
    own.start()
    assert Faults.model_validate(ask(own, "GET", "/faults").json()) == OWN_FAULTS


@contextmanager
def hanging(hub: LocalHub) -> Iterator[None]:
    """A request that waits for an answer for an hour, until the server breaks it off."""
    slow = Faults(api=(ApiFault(operation="list", seconds=3600, executed=True),))
    ask(hub, "PUT", "/faults", json=slow.model_dump(mode="json"))
    web, url = session_of(hub), hub.base_url + PROCESS

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(web.get, url, timeout=60)
        while "Fault of a request to list" not in hub.log_path.read_text():
            time.sleep(0.02)
        yield
        assert waiting.result(timeout=10).status_code == 500


def test_setting_faults_counts_from_the_beginning(own: LocalHub) -> None:
    web = session_of(own)
    once = Faults(api=(ApiFault(operation="list", status=500),)).model_dump(mode="json")
    for _ in range(2):
        ask(own, "PUT", "/faults", json=once)
        assert [web.get(own.base_url + PROCESS, timeout=10).status_code for _ in range(2)] == [500, 200]


@pytest.mark.parametrize(
    ("faults", "field", "note"),
    [
        ({"api": [{"status": 499}]}, "body.api.0.status", "499 is not a valid HTTPStatus"),
        ({"api": [{"status": 200}]}, "body.api.0.status", "greater than or equal to 400"),
        ({"api": [{"operation": "delete"}]}, "body.api.0.operation", "'create'"),
        ({"api": [{"times": 0}]}, "body.api.0.times", "greater than or equal to 1"),
        ({"tile": []}, "body.tile", "Extra inputs"),
    ],
)
def test_faults_that_make_no_sense_are_refused_and_change_nothing(
    own: LocalHub, faults: dict[str, Any], field: str, note: str
) -> None:
    before = ask(own, "GET", "/faults").json()
    answer = ask(own, "PUT", "/faults", json=faults)
    assert answer.status_code == 400
    assert note in answer.json()["error"]["errors"][field]
    assert ask(own, "GET", "/faults").json() == before


# ---- tokens ----


def test_every_token_so_far_can_be_made_invalid_and_new_ones_are_valid_at_once(own: LocalHub) -> None:
    ask(own, "DELETE", "/faults")
    old, client = session_of(own), client_of(own)
    assert client.get_tiling_grid(1)["id"] == 1
    for _ in range(3):  # within one second, too
        assert ask(own, "POST", "/tokens/expire").status_code == 204
        assert old.get(own.base_url + PROCESS, timeout=10).status_code == 401
        old = session_of(own)
        assert old.get(own.base_url + PROCESS, timeout=10).status_code == 200
    with pytest.raises(DownloadFailedException, match="made invalid; ask the token endpoint for a new one"):
        client.get_tiling_grid(1)


# ---- what was bought ----


def test_creates_are_equal_by_account_and_body() -> None:
    creates = [Create(*values) for values in ("1aX", "2bX", "3aX", "4aY", "5bX", "6aX", "7cZ")]
    groups = [[create.job_id for create in group] for group in equal_creates(creates)]
    assert groups == [["1", "3", "6"], ["2", "5"]]


def test_a_create_counts_as_equal_whatever_its_keys_and_whatever_is_described_later(
    own: LocalHub, s3: SeaweedFS, bucket: str
) -> None:
    ask(own, "DELETE", "/faults")
    web = session_of(own)

    def create(**changes: Any) -> str:
        answer = web.post(own.base_url + PROCESS, json=body(s3, bucket) | changes, timeout=10)
        assert answer.status_code == 201
        return str(answer.json()["id"])

    before = ask(own, "GET", "/creates").json()
    first = create()
    create(description="another")
    assert web.put(f"{own.base_url}{PROCESS}/{first}", json={"description": "changed"}, timeout=10).status_code == 200
    with_role = body(s3, bucket)["output"]
    with_role["delivery"]["s3"] = {"url": f"s3://{bucket}/out", "iamRoleARN": "arn:aws:iam::1:role/a"}
    create(output=with_role)
    assert web.post(own.base_url + PROCESS, json={}, timeout=10).status_code == 400  # which is no create
    second = create()
    after = ask(own, "GET", "/creates").json()
    assert after["executed"] - before["executed"] == 4
    assert after["repeated"] - before["repeated"] == 1
    account_id = ask(own, "GET", "/accounts").json()[0]["account_id"]
    assert after["equal"][-1] == {"account_id": account_id, "ids": [first, second]}
    assert s3.secret_key not in str(after)


# ---- accounts ----


def test_a_balance_is_set_and_shown(own: LocalHub) -> None:
    assert ask(own, "PUT", "/accounts/localhub", json={"balance_pu": 2500.5}).json()["balance_pu"] == 2500.5
    assert [account["balance_pu"] for account in ask(own, "GET", "/accounts").json()] == [2500.5]
    assert ask(own, "PUT", "/accounts/localhub", json={"balance_pu": None}).json()["balance_pu"] is None


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("/accounts/nobody", b'{"balance_pu": 1}', 404),
        ("/accounts/localhub", b"{}", 400),
        ("/accounts/localhub", b'{"balance_pu": "many"}', 400),
        ("/accounts/localhub", b'{"balance_pu": NaN}', 400),
        ("/accounts/localhub", b'{"balance_pu": 1, "client_secret": "x"}', 400),
    ],
)
def test_a_balance_that_makes_no_sense_is_refused(own: LocalHub, path: str, data: bytes, status: int) -> None:
    before = ask(own, "GET", "/accounts").json()
    answer = ask(own, "PUT", path, data=data, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert ask(own, "GET", "/accounts").json() == before
