"""Run compose.yaml without a Docker engine: each service's command, environment and health check in its own image.

    docker/build.sh && python docker/try.py        # as root, from the repository's root, with PostgreSQL installed

What differs from Docker: all containers share this machine's network, so that the names `server` and `postgres` become
127.0.0.1; PostgreSQL is this machine's, not the official image; volumes, published ports and restarts are not tried.
A run of the deployment `localhub` is the proof.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.postgres import PASSWORD, USER, Postgres  # noqa: E402 - the tests are no package that is installed

BUILDAH = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
ORDER = ("server", "seaweedfs", "localhub", "worker", "deploy")
PORTS = (4200, 8080, 8333, 8484)
HEALTH_SECONDS = 300.0
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]


def main() -> None:
    """Start what compose starts, in its order, run the flow once, and stop everything."""
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise SystemExit(f"Port {port} is taken; stop what listens there, which would answer instead.")
    with ExitStack() as running:
        postgres = running.enter_context(Postgres(Path(tempfile.mkdtemp()) / "cluster"))
        postgres.create("prefect")
        values = {"POSTGRES_PASSWORD": PASSWORD}
        for name in ORDER:
            running.enter_context(service(name, environment_of(name, values, postgres)))
        page = urllib.request.urlopen("http://127.0.0.1:4200/", timeout=30).read().decode()
        print(f"the UI answers with {len(page)} characters, title {re.findall('<title>(.*?)</title>', page)}")
        began = time.monotonic()
        run = ["prefect", "deployment", "run", "land-cover/localhub", "--watch"]
        with container("eopatch-flow-worker") as inside:
            environment = {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}
            subprocess.run(in_container(inside, run, environment), env=os.environ | BUILDAH, check=True)
        print(f"the run took {time.monotonic() - began:.0f} s")
        print(
            "in PostgreSQL:",
            postgres.query("SELECT name, state_type FROM flow_run WHERE state_type != 'SCHEDULED'", "prefect"),
        )


@contextmanager
def service(name: str, environment: dict[str, str]) -> Iterator[None]:
    """A service, from its health on; one that ends by itself has to end well."""
    what = SERVICES[name]
    began = time.monotonic()
    with container(what["image"]) as inside:
        command = [*what.get("entrypoint", entrypoint(what["image"])), *what["command"]]
        command = [word.replace("$$", "$") for word in command]
        mounts = [volume for volume in what.get("volumes", []) if volume.startswith(".")]
        process = subprocess.Popen(
            in_container(inside, command, environment, mounts), env=os.environ | BUILDAH, start_new_session=True
        )
        try:
            check = health(what)
            if check:
                wait_until_healthy(name, in_container(inside, check, {}), process)
            elif process.wait() != 0:
                raise SystemExit(f"{name} ended with {process.returncode}")
            print(f"{name} is {'healthy' if check else 'done'} after {time.monotonic() - began:.0f} s", flush=True)
            yield
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


@contextmanager
def container(image: str) -> Iterator[str]:
    """A new container of an image; gone at the end."""
    name = buildah("from", f"localhost/{image}")
    try:
        yield name
    finally:
        buildah("rm", name)


def in_container(
    name: str, command: list[str], environment: dict[str, str], mounts: list[str] | None = None
) -> list[str]:
    """The command that runs another one in a container, as its image's user."""
    variables = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
    parts = [mount.partition(":") for mount in mounts or []]
    volumes = [f"--volume={(ROOT / 'docker' / outside).resolve()}:{inside}" for outside, _, inside in parts]
    return ["buildah", "run", *variables, *volumes, name, "--", *command]


def wait_until_healthy(name: str, check: list[str], process: subprocess.Popen[bytes]) -> None:
    """Ask as Docker would, while the service runs."""
    end = time.monotonic() + HEALTH_SECONDS
    while subprocess.run(check, env=os.environ | BUILDAH, capture_output=True, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{name} is not healthy")
        time.sleep(2)


def health(what: dict[str, Any]) -> list[str]:
    """The words of a service's health check: its own, or its image's."""
    own = what.get("healthcheck", {})
    if own.get("disable"):
        return []
    return list(own["test"][1:]) if "test" in own else list(config(what["image"])["Healthcheck"]["Test"][1:])


def entrypoint(image: str) -> list[str]:
    """What an image puts before a command."""
    return config(image).get("Entrypoint") or []


def config(image: str) -> dict[str, Any]:
    """What an image says of itself."""
    content: dict[str, Any] = yaml.safe_load(buildah("inspect", "--type", "image", f"localhost/{image}"))
    return dict(content["Docker"]["config"])


def environment_of(name: str, values: dict[str, str], postgres: Postgres) -> dict[str, str]:
    """A service's variables, with those of an .env file that is empty but for the password."""

    def fill(text: str) -> str:
        filled = re.sub(
            r"\$\{(\w+)(?::?([-?])([^}]*))?\}",
            lambda match: values.get(match[1], match[3] if match[2] == "-" else ""),
            text,
        )
        return filled.replace("//server:", "//127.0.0.1:")

    given = {key: fill(str(value)) for key, value in SERVICES[name].get("environment", {}).items()}
    if "PREFECT_SERVER_DATABASE_HOST" in given:
        where = {"HOST": "127.0.0.1", "PORT": str(postgres.port), "USER": USER}
        given |= {f"PREFECT_SERVER_DATABASE_{part}": value for part, value in where.items()}
    return given


def buildah(*arguments: str) -> str:
    """Call buildah; what it prints."""
    done = subprocess.run(["buildah", *arguments], env=os.environ | BUILDAH, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
