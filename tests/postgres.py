"""A real PostgreSQL on loopback: Debian's programs over a cluster of its own, for as long as a context lasts."""

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.loopback import free_port

USER, PASSWORD = "owner", "test/pass+word"
NOT_ROOT = "nobody"
"""Whose processes they are when the tests run as root, whom PostgreSQL refuses."""
WAIT_SECONDS = 120


class Postgres:
    """One PostgreSQL server; a context manager that makes, starts and stops it.

    Args:
        folder: of the cluster; made, and given to the user who runs it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()

    def url(self, database: str = "postgres", scheme: str = "postgresql") -> str:
        """Address of a database, with user and password."""
        return f"{scheme}://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database; its address."""
        self.query(f"CREATE DATABASE {database}")
        return self.url(database)

    def for_prefect(self, database: str) -> dict[str, str]:
        """Make an empty database; Prefect's settings for it, as docker/compose.yaml has them."""
        self.create(database)
        return {
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(self.port),
            "PREFECT_SERVER_DATABASE_USER": USER,
            "PREFECT_SERVER_DATABASE_PASSWORD": PASSWORD,
            "PREFECT_SERVER_DATABASE_NAME": database,
        }

    def query(self, sql: str, database: str = "postgres") -> list[str]:
        """What a statement answers: a line a row, columns separated by ``|``."""
        ask = [_program("psql"), "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", sql]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            _open_way_to(self.folder)
            for path in (self.folder, password):
                shutil.chown(path, NOT_ROOT)
        self._run("initdb", "-D", "data", "-U", USER, "--auth=scram-sha-256", "--pwfile=password", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "start", "-D", "data", "-w", "-l", "log", "-t", str(WAIT_SECONDS), "-o", options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.geteuid() == 0:
            _open_way_to(self.folder)  # another session of pytest, when it starts, closes it
        self._run("pg_ctl", "stop", "-D", "data", "-w", "-m", "immediate")

    def _run(self, program: str, *arguments: str) -> None:
        as_whom = {"user": NOT_ROOT, "extra_groups": []} if os.geteuid() == 0 else {}
        with (self.folder / "output").open("a") as output:  # a pipe would stay open in the server
            command = [_program(program), *arguments]
            subprocess.run(command, check=True, cwd=self.folder, stdout=output, stderr=output, **as_whom)


def is_installed() -> bool:
    """Whether PostgreSQL's programs are here."""
    return bool(_found("initdb"))


def _program(name: str) -> str:
    found = _found(name)
    if found is None:
        raise FileNotFoundError(
            f"PostgreSQL's program '{name}' is missing; install it with: apt-get install postgresql"
        )
    return found


def _found(name: str) -> str | None:
    """On the path, or where Debian puts those of the newest version."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return shutil.which(name, path=os.pathsep.join([*map(str, reversed(versions)), os.environ.get("PATH", os.defpath)]))


def _open_way_to(folder: Path) -> None:
    """Let other users through pytest's temporary folders, whose content stays closed to them."""
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
