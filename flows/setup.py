"""Setting up: credentials from the environment or a person, tried out, and saved as blocks of Prefect.

Nothing is saved before everything has been tried; no secret is printed.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from prefect.settings import PREFECT_API_URL
from pydantic import SecretStr

from flows.parameters import LandCover
from flows.server import wake_prefect
from tasks.batch import check_access
from tasks.errors import InvalidInput
from tasks.reference.postgis import PostgisCredentials
from tasks.service import LOCALHUB_CLIENT, SentinelHubCredentials, Service
from tasks.storage import LOCALHUB_S3_KEYS, S3Credentials, Storage, check_writable, is_loopback

BLOCK = "eopatch-flow"
"""Name of the blocks where the configuration names none; deployments/prefect.yaml names it too."""
CLIENT_VARIABLES = ("SH_CLIENT_ID", "SH_CLIENT_SECRET")
KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
SESSION_VARIABLE = "AWS_SESSION_TOKEN"

Pair = tuple[str, str]
"""What names somebody, and the secret."""


def set_up(parameters: LandCover) -> Iterator[str]:
    """Try the credentials for a configuration's service and buckets, and save them; a line for each thing done.

    Args:
        parameters: whose ``service`` and ``storage`` are tried; the blocks get the names that they name.

    Raises:
        InvalidInput: there are no credentials, or they cannot write, read and delete in a bucket.
        AccessDenied: the service refuses the client.
        Unavailable: the service or Prefect's server does not answer.
    """
    wake_prefect()
    service, storage = parameters.service, parameters.storage
    client, keys = client_of(service), keys_of(storage)
    with in_environment(client, keys):
        check_access(service.model_copy(update={"credentials_block": None}))
        yield f"Sentinel Hub  {service.base_url} takes the client."
        for url, what in ((storage.tiles_url, "the tiles"), (storage.destination, "the destination")):
            check_writable(url, storage.model_copy(update={"credentials_block": None}), what)
            yield f"Storage       {url} was written, read and cleared."
    for kind, name in save(client, keys, service.credentials_block or BLOCK, storage.credentials_block or BLOCK):
        yield f"Block         '{name}' of type '{kind}' is saved at {PREFECT_API_URL.value() or 'this machine'}."


def client_of(service: Service) -> Pair:
    """Client id and secret: of the environment, the stand-in's on loopback, or as somebody types them."""
    return _given(CLIENT_VARIABLES, LOCALHUB_CLIENT if is_loopback(service.base_url) else None, service.base_url)


def keys_of(storage: Storage) -> Pair:
    """Access key and secret: of the environment, the stand-in's on loopback, or as somebody types them.

    Raises:
        InvalidInput: those of the environment are temporary, or there are none and nobody to ask.
    """
    if os.environ.get(SESSION_VARIABLE):
        raise InvalidInput(
            f"{SESSION_VARIABLE} is set: keys that expire are of no use to deployments; unset it and give lasting keys."
        )
    default = LOCALHUB_S3_KEYS if is_loopback(storage.endpoint_url) else None
    return _given(KEY_VARIABLES, default, f"S3 at {storage.endpoint_url or 'AWS'}")


def save(client: Pair, keys: Pair, client_block: str, keys_block: str) -> list[Pair]:
    """Register all block types and save these two; type and name of both. What has the name already is replaced."""
    blocks = (
        (SentinelHubCredentials(client_id=client[0], client_secret=SecretStr(client[1])), client_block),
        (S3Credentials(access_key=keys[0], secret_key=SecretStr(keys[1])), keys_block),
    )
    for kind in (*(type(block) for block, _ in blocks), PostgisCredentials):
        kind.register_type_and_schema()
    for block, name in blocks:
        block.save(name, overwrite=True)
    return [(str(type(block)._block_type_name), name) for block, name in blocks]  # noqa: SLF001 - as Prefect shows it


@contextmanager
def in_environment(client: Pair, keys: Pair) -> Iterator[None]:
    """Have these credentials in the environment, and no others, within the block."""
    names = (*CLIENT_VARIABLES, *KEY_VARIABLES, SESSION_VARIABLE)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(zip(names, (*client, *keys), strict=False))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _given(variables: Pair, default: Pair | None, whom: str) -> Pair:
    name, secret = (os.environ.get(variable, "") for variable in variables)
    if name and secret:
        return name, secret
    if default is not None and not (name or secret):
        return default
    if not sys.stdin.isatty():
        missing = " and ".join(variable for variable in variables if not os.environ.get(variable))
        raise InvalidInput(
            f"There are no credentials for {whom}: set {missing} in the environment, or run on a terminal."
        )
    name = name or typer.prompt(f"{variables[0]} for {whom}").strip()
    return name, secret or typer.prompt(f"{variables[1]} (not shown)", hide_input=True).strip()
