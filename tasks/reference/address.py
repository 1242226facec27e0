"""Where a reference lies: in a file, or in a database whose URL has no secrets, so that it may be shown and kept."""

import re
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
"""Settings of libpq that must stay secret (PostgreSQL documentation, "Parameter Key Words")."""
_KEPT = "the password by credentials_block or by PGPASSWORD in the environment"
_AS_URL = f"postgresql://user@host/database, and {_KEPT}"
_SECRET_SETTING = re.compile(
    r"(password|passwd|pwd|oauth_client_secret|scram_client_key|scram_server_key)\s*=", re.IGNORECASE
)
_SECRET_OF_USER = re.compile(
    r"([a-z][\w+.-]*://(?!arn:)[^/?#@:]*:"  # a bucket may be named by its ARN, and a key may have any sign
    r"|[^/?#@:]*:(?!//))[^@]*@",
    re.IGNORECASE,
)
_SECRET_OF_USER_IN_URL = re.compile(r"[^/]*://[^/?#@]*:[^/?#@]*@")
_OF_GDAL = re.compile(r"\s*/(/|\./)*vsi", re.IGNORECASE)
"""Paths of GDAL's virtual file systems, which may lead anywhere and hold any secret."""
_SCHEME = re.compile(r"([a-z][\w+.-]*)://", re.IGNORECASE)


def is_database(file: str) -> bool:
    """Whether a reference's file is the URL of a database."""
    return re.match(r"\s*postgres(ql)?:", file, re.IGNORECASE) is not None


def check_address(file: str) -> None:
    """Check that a reference's file is a path or a URL that can be read, without a secret.

    Raises:
        ValueError: it is not; the message does not repeat it, as it may hold a secret where it is least expected.
    """
    if is_database(file):
        _check_database(file)
    elif _SECRET_SETTING.search(file) or _SECRET_OF_USER.match(file):
        raise ValueError(f"there is a password in it; leave it out: a database is given as {_AS_URL}")
    elif file.lower().startswith("pg:"):
        raise ValueError(f"PG: is not read; give a database as {_AS_URL}")
    elif _OF_GDAL.match(file):
        raise ValueError(
            "GDAL's paths that begin with /vsi are not read; give a local path (of a zipped file just that), "
            f"s3://bucket/key, or a database as {_AS_URL}"
        )
    elif (scheme := _SCHEME.match(file)) and scheme[1] != "s3":
        raise ValueError(f"{scheme[1]}:// is not read; give a local path, s3://bucket/key, or a database as {_AS_URL}")


def shown(url: str) -> str:
    """URL of a database as messages have it: user, host, port and database."""
    given = _settings(url)
    user = f"{quote(given['user'])}@" if "user" in given else ""
    port = f":{given['port']}" if "port" in given else ""
    return f"postgresql://{user}{given.get('host', '')}{port}/{given.get('dbname', '')}"


def host_and_database(url: str) -> str:
    """Give the part of a database's URL that tells it from others."""
    given = _settings(url)
    return f"{given.get('host', '')}/{given.get('dbname', '')}"


def _check_database(url: str) -> None:
    """Ask libpq, which takes for a password what URLs in general do not, and the other way round."""
    try:
        given = _settings(url)
    except psycopg.ProgrammingError:
        given = {"port": "unknown"}  # its message repeats the URL
    if (
        SECRETS & given.keys()
        or _SECRET_SETTING.search(" ".join([url, *given.values()]))  # in it %3D stands for =
        or _SECRET_OF_USER_IN_URL.match(url)
        or "@" in given.get("host", "") + given.get("dbname", "")
    ):
        raise ValueError(f"there is a password in the database's URL; leave it out: {_AS_URL}")
    if not re.fullmatch(r"[\d,]*", given.get("port", "")):
        raise ValueError(f"the database's URL is not understood; give it as {_AS_URL}")


def _settings(url: str) -> dict[str, str]:
    return {name: str(value) for name, value in conninfo_to_dict(url).items()}
