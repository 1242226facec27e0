"""Marked secrets are planted in blocks and environment; then everything that runs leave behind is searched for them."""

import base64
import os
import sqlite3
import subprocess
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
import s3fs
import yaml
from pydantic import SecretStr

from flows.parameters import LandCover
from localhub.sample import SampleInfo
from localhub.seaweed import SeaweedFS
from localhub.server import LocalHub
from localhub.settings import Settings
from tests.localhub.watching import faults

PROGRAM = Path(sysconfig.get_path("scripts")) / "eopatch-flow"
ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 240
CLIENT_ID = "marked-client"
CLIENT_SECRET = "MARK-client+secret/9fK="
S3_SECRET = "MARK-s3+secret/Zq7="
S3_KEY = "MARKS3KEY0001"
SECRETS = {"client secret": CLIENT_SECRET, "S3 secret": S3_SECRET}

BLOCKS = """
import sys
from tasks.service import SentinelHubCredentials
from tasks.storage import S3Credentials
client_id, client_secret, access_key, secret_key = sys.stdin.read().split()
SentinelHubCredentials(client_id=client_id, client_secret=client_secret).save("marked-hub")
S3Credentials(access_key=access_key, secret_key=secret_key).save("marked-s3")
"""
"""Saves the blocks; the secrets come by standard input."""


@pytest.fixture(scope="module")
def marked_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """An S3 server whose keys are marked."""
    with SeaweedFS(tmp_path_factory.mktemp("marked-s3"), S3_KEY, S3_SECRET) as server:
        yield server


@pytest.fixture(scope="module")
def marked_hub(
    marked_s3: SeaweedFS, small_sample: SampleInfo, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalHub]:
    """A localhub whose client's secret is marked; it has the store's keys from requests alone."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("marked-hub"),
        archive=small_sample.folder,
        port=0,
        s3_endpoint_url=marked_s3.endpoint_url,
        upload_seconds=0.1,
        client_id=CLIENT_ID,
        client_secret=SecretStr(CLIENT_SECRET),
    )
    with LocalHub(settings) as hub:
        yield hub


@pytest.fixture
def marked(
    marked_s3: SeaweedFS, marked_hub: LocalHub, small_sample: SampleInfo, four_tiles: Path
) -> Iterator[tuple[LandCover, s3fs.S3FileSystem]]:
    """Parameters that name the blocks, results in a bucket; and the store as its owner sees it."""
    files = s3fs.S3FileSystem(
        key=S3_KEY, secret=S3_SECRET, client_kwargs={"endpoint_url": marked_s3.endpoint_url}, use_listings_cache=False
    )
    files.mkdir("marked")
    yield (
        LandCover.model_validate(
            {
                "area": {"name": "Small"},
                "period": {"start": "2019-01-01", "end": "2019-03-10", "step_days": 15},
                "tiling": {"geopackage": str(four_tiles)},
                "service": {"base_url": marked_hub.base_url, "credentials_block": "marked-hub"},
                "storage": {
                    "tiles_url": "s3://marked/tiles",
                    "destination": "s3://marked/eopatches",
                    "endpoint_url": marked_s3.endpoint_url,
                    "credentials_block": "marked-s3",
                },
                "reference": {"file": str(small_sample.reference)},
                "run": {"quicklooks": 1, "patience_minutes": 0.1, "poll_seconds": 1},
            }
        ),
        files,
    )
    files.rm("marked", recursive=True)


def test_no_secret_is_left_in_anything_that_runs_leave_behind(
    marked: tuple[LandCover, s3fs.S3FileSystem], marked_hub: LocalHub, prefect_home: Path, tmp_path: Path
) -> None:
    parameters, files = marked
    home, places = prefect_home, dict[str, bytes]()
    work = tmp_path / "work"
    work.mkdir()
    save = execute([sys.executable, "-c", BLOCKS], home, work, f"{CLIENT_ID} {CLIENT_SECRET} {S3_KEY} {S3_SECRET}")
    assert save.returncode == 0, save.stdout[-2000:]
    bad_tile = [{"kind": "truncated", "tile": "t1", "output": "B08"}]
    with faults(marked_hub, tiles=bad_tile, api=[{"operation": "get", "status": 500}]):
        places["words of a plan"] = command("plan", parameters, home, work).stdout
        failed = command("run", parameters, home, work, PREFECT_LOGGING_LEVEL="DEBUG")
    places["words of a run that fails"] = failed.stdout
    assert failed.returncode != 0
    with faults(marked_hub, api=[{"operation": "list", "status": 400, "times": None}]):
        refused = command("run", parameters, home, work)
    places["words of a run that is refused"] = refused.stdout
    assert refused.returncode == 1
    healthy = command("run", parameters, home, work)
    places["words of a run that succeeds"] = healthy.stdout
    assert b"EOPatches are ready" in failed.stdout + healthy.stdout, healthy.stdout[-2000:]
    places |= contents(home, work, marked_hub.settings.data_dir)
    places |= {f"s3://{path}": files.cat_file(path) for path in files.find("marked")}
    places |= {f"row of {home.name}: {row}": text for row, text in rows(home / "prefect.db")}
    assert any("prefect.db" in place for place in places), list(places)[:50]
    assert any(place.endswith("ledger.gpkg") for place in places)
    found = {
        f"{name} in {place}" for place, content in places.items() for name in SECRETS if has(content, SECRETS[name])
    }
    assert found == set()


def test_the_search_finds_a_secret_in_each_of_its_forms(tmp_path: Path) -> None:
    forms = [CLIENT_SECRET, quote(CLIENT_SECRET, safe=""), base64.b64encode(f"id:{CLIENT_SECRET}".encode()).decode()]
    for text in forms:
        assert has(f"before {text} after".encode(), CLIENT_SECRET)
        assert has(b"x" + zlib.compress(text.encode()), CLIENT_SECRET)
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("CREATE TABLE t (a TEXT, b BLOB)")
        database.execute("INSERT INTO t VALUES (?, ?)", (forms[0], forms[1].encode()))
        database.commit()
    assert has(b"".join(text for _, text in rows(tmp_path / "a.db")), CLIENT_SECRET)
    assert not has(b"nothing", CLIENT_SECRET)


def command(
    verb: str, parameters: LandCover, home: Path, work: Path, **more: str
) -> subprocess.CompletedProcess[bytes]:
    """The command line with the Prefect of `home`, its log at full length on standard error."""
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump(parameters.model_dump(mode="json")))
    shown = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG"}
    return execute([str(PROGRAM), verb, str(config)], home, work, **shown, **more)


def execute(
    arguments: list[str], home: Path, work: Path, text: str = "", **more: str
) -> subprocess.CompletedProcess[bytes]:
    unwanted = ("PREFECT_", "AWS_", "SH_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        arguments,
        input=text.encode(),
        env=clean | settings | more,
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LONGEST_SECONDS,
        check=False,
    )


def contents(*folders: Path) -> dict[str, bytes]:
    """All files below the folders, but those in which localhub is documented to keep a request's keys."""
    found = {path: path.stat() for folder in folders for path in folder.rglob("*") if path.is_file()}
    private = {path for path in found if path.parent.name == "credentials"}
    assert all(found[path].st_mode & 0o077 == 0 for path in private)
    return {str(path): path.read_bytes() for path in found.keys() - private}


def rows(database: Path) -> Iterator[tuple[str, bytes]]:
    """Every row of every table, with its table's name: values that a page of the file may break in two are whole."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - the database's own names
                yield table, b"\0".join(value if isinstance(value, bytes) else str(value).encode() for value in row)


def has(content: bytes, secret: str) -> bool:
    """Whether a secret stands in a content: plain, URL-encoded, in JSON, in base64, or deflated."""
    return any(form in one for one in (content, *inflated(content)) for form in forms_of(secret))


def forms_of(secret: str) -> set[bytes]:
    raw = secret.encode()
    encoded = {quote(secret, safe="").encode(), quote(secret).encode(), secret.replace("/", "\\/").encode()}
    return {raw, *encoded, *(base64_core(raw, shift) for shift in range(3))}


def base64_core(raw: bytes, shift: int) -> bytes:
    """What is always the same in base64 of a text in which `raw` begins at a place with this rest modulo 3."""
    text = base64.b64encode(b"\0" * shift + raw)
    begin = (0, 2, 3)[shift]
    return text[begin : (shift + len(raw)) // 3 * 4]


def inflated(content: bytes) -> Iterator[bytes]:
    """What a file or a value holds that is gzipped or deflated from its beginning on, or after one byte."""
    for start in (0, 1):
        try:
            yield zlib.decompressobj(wbits=47).decompress(content[start:])
        except zlib.error:
            continue
