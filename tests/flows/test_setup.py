"""``eopatch-flow setup``: credentials are tried on a real service and store, saved as blocks, and never shown."""

import json
import os
import pty
import select
import socket
import subprocess
import sysconfig
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from flows.parameters import LandCover
from flows.setup import BLOCK, set_up
from localhub.seaweed import SeaweedFS
from tasks.errors import AccessDenied, EopatchFlowError, InvalidInput, Unavailable
from tasks.service import LOCALHUB_CLIENT, SentinelHubCredentials
from tasks.storage import S3Credentials

pytestmark = pytest.mark.usefixtures("prefect_server")

PROGRAM = Path(sysconfig.get_path("scripts")) / "eopatch-flow"
PATIENCE_SECONDS = 60
READER = "reader-key", "reader-secret"
WRONG = "wrong-secret/+"


class WithReader(SeaweedFS):
    """A store with a second identity, which may only read."""

    def _write_identities(self) -> Path:
        path = super()._write_identities()
        content = json.loads(path.read_text())
        keys = [{"accessKey": READER[0], "secretKey": READER[1]}]
        content["identities"].append({"name": "reader", "credentials": keys, "actions": ["Read", "List"]})
        path.write_text(json.dumps(content))
        return path


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    with WithReader(tmp_path_factory.mktemp("shared"), "owner-key", "owner-secret") as store:
        files = s3fs.S3FileSystem(
            key="owner-key", secret="owner-secret", client_kwargs={"endpoint_url": store.endpoint_url}
        )
        files.mkdir("shared")
        yield store


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch, keys: None) -> None:  # noqa: ARG001 - those of S3
    monkeypatch.setenv("SH_CLIENT_ID", LOCALHUB_CLIENT[0])
    monkeypatch.setenv("SH_CLIENT_SECRET", LOCALHUB_CLIENT[1])


def test_what_was_tried_is_saved_under_the_names_of_the_configuration_and_a_run_can_use_it(
    parameters: LandCover, s3: SeaweedFS, s3_files: s3fs.S3FileSystem, bucket: str, tmp_path: Path
) -> None:
    named = with_storage(parameters, destination=f"s3://{bucket}/eopatches", credentials_block="bucket-of-setup")
    environment = {"SH_CLIENT_ID": LOCALHUB_CLIENT[0], "SH_CLIENT_SECRET": LOCALHUB_CLIENT[1]}
    told = call(named, tmp_path, **environment)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["Sentinel", "Storage", "Storage", "Block", "Block"]
    assert f"s3://{bucket}/eopatches was written, read and cleared" in told.stdout
    assert f"'{BLOCK}' of type 'Sentinel Hub Credentials (eopatch-flow)' is saved" in told.stdout
    saved = SentinelHubCredentials.load(BLOCK)
    assert (saved.client_id, saved.client_secret.get_secret_value()) == LOCALHUB_CLIENT  # type: ignore[union-attr]
    of_s3 = S3Credentials.load("bucket-of-setup")
    assert (of_s3.access_key, of_s3.secret_key.get_secret_value()) == (s3.access_key, s3.secret_key)  # type: ignore[union-attr]
    with get_client(sync_client=True) as client:
        assert client.read_block_type_by_slug("eopatch-flow-postgis-credentials").name.startswith("PostGIS")
    assert s3_files.find(bucket) == []
    assert s3.secret_key not in told.stdout + told.stderr


def test_a_person_on_a_terminal_is_asked_for_what_the_environment_lacks_and_the_secret_is_not_shown(
    parameters: LandCover, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "SH_CLIENT_ID": LOCALHUB_CLIENT[0]}
    command = [PROGRAM, "setup", str(written(parameters, tmp_path))]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        try:
            shown = read_until(ours, "SH_CLIENT_SECRET (not shown)")
            until_hidden(ours)
            os.write(ours, b"typed-secret\n")
            shown += read_until(ours, "Check client id and secret.")
            assert process.wait(PATIENCE_SECONDS) == 1
        finally:
            process.kill()
    os.close(ours)
    assert "Sentinel Hub refused the OAuth client" in shown, "the secret was typed, and tried"
    assert "typed-secret" not in shown


@pytest.mark.usefixtures("credentials")
def test_a_wrong_client_secret_is_told_and_nothing_is_saved(
    parameters: LandCover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SH_CLIENT_SECRET", WRONG)
    own = parameters.model_copy(
        update={"service": parameters.service.model_copy(update={"credentials_block": "never-saved"})}
    )
    assert told_by(own, AccessDenied).startswith("Sentinel Hub refused the OAuth client")
    with pytest.raises(ValueError, match="Unable to find block"):
        SentinelHubCredentials.load("never-saved")


@pytest.mark.usefixtures("credentials")
def test_a_wrong_s3_secret_is_told(parameters: LandCover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG)
    told = told_by(parameters, InvalidInput)
    assert told.startswith("The credentials for the tiles s3://bucket-")
    assert told.endswith("Check endpoint, access key and rights.")


@pytest.mark.usefixtures("credentials")
def test_a_missing_bucket_is_named(parameters: LandCover) -> None:
    told = told_by(with_storage(parameters, tiles_url="s3://no-such-bucket/tiles"), InvalidInput)
    bucket = f"s3://no-such-bucket/tiles does not exist at {parameters.storage.endpoint_url}"
    assert told == f"The bucket of the tiles {bucket}; create it, or name another."


@pytest.mark.usefixtures("credentials")
def test_keys_that_may_only_read_are_told(
    parameters: LandCover, shared_store: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER[1])
    own = with_storage(parameters, tiles_url="s3://shared/tiles", endpoint_url=shared_store.endpoint_url)
    told = told_by(own, InvalidInput)
    place = f"s3://shared/tiles at {shared_store.endpoint_url}"
    assert told.startswith(f"The credentials for the tiles {place} are wrong or do not allow to write there")
    assert READER[1] not in told


@pytest.mark.usefixtures("credentials")
def test_hosts_that_do_not_answer_are_named(parameters: LandCover) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        lost = parameters.model_copy(update={"service": parameters.service.model_copy(update={"base_url": nowhere})})
        service = told_by(lost, Unavailable)
        store = told_by(with_storage(parameters, endpoint_url=nowhere), InvalidInput)
    assert service.startswith("Sentinel Hub did not answer")
    assert service.endswith("Check service.base_url and the network.")
    assert f"at {nowhere} cannot be written" in store


@pytest.mark.usefixtures("credentials")
def test_keys_that_expire_are_refused(parameters: LandCover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    assert told_by(parameters, InvalidInput).startswith("AWS_SESSION_TOKEN is set: keys that expire")
    assert os.environ["AWS_SESSION_TOKEN"] == "a-token"


def test_without_a_terminal_missing_credentials_are_named(tmp_path: Path) -> None:
    real = LandCover.model_validate({"service": {"base_url": "https://sh.dataspace.copernicus.eu"}})
    told = call(real, tmp_path, SH_CLIENT_ID="me")
    assert told.returncode == 1
    assert told.stderr.strip() == (
        "eopatch-flow: There are no credentials for https://sh.dataspace.copernicus.eu: set SH_CLIENT_SECRET in the "
        "environment, or run on a terminal."
    )


def told_by(parameters: LandCover, error: type[EopatchFlowError]) -> str:
    """The sentence that setting up ends with; it is one, and holds no secret."""
    with pytest.raises(error) as caught:
        list(set_up(parameters))
    told = str(caught.value)
    assert "\n" not in told
    assert WRONG not in told
    return told


def with_storage(parameters: LandCover, **changes: str) -> LandCover:
    return LandCover.model_validate(parameters.model_dump() | {"storage": parameters.storage.model_dump() | changes})


def written(parameters: LandCover, folder: Path) -> Path:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    return config


def call(parameters: LandCover, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    whole = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())} | environment
    command = [PROGRAM, "setup", str(written(parameters, folder))]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=whole, timeout=120, check=False
    )


def read_until(terminal: int, text: str) -> str:
    """What a terminal shows, up to a text that must come."""
    shown = ""
    while text not in " ".join(shown.split()):
        assert select.select([terminal], [], [], PATIENCE_SECONDS)[0], f"no {text!r} in {shown!r}"
        shown += os.read(terminal, 4096).decode()
    return " ".join(shown.split())


def until_hidden(terminal: int) -> None:
    """Wait until what is typed is not shown: `getpass` drops what was typed before, and `click` prompts earlier."""
    end = time.monotonic() + PATIENCE_SECONDS
    while termios.tcgetattr(terminal)[3] & termios.ECHO:
        assert time.monotonic() < end
        time.sleep(0.01)
