"""The Dockerfile and the compose file agree with the project; `make test-compose` runs them."""

import re
import tomllib
from pathlib import Path

import pytest

from export.command import export_command
from export.engines import read_request
from models.catalog import CATALOG
from service.common.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")


def test_flavours_are_extras() -> None:
    """Every flavour installs extras of the project, and the one that serves on the CPU none that brings torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    flavours = dict(re.findall(r"^ +(\w+)\) extras=(\S+) ;;", DOCKERFILE, re.MULTILINE))
    engines = re.findall(r"^ARG ENGINES=(\S+)", DOCKERFILE, re.MULTILINE) + re.findall(r'ENGINES: "(\S+)"', COMPOSE)

    assert set(flavours) == {"cpu", "gpu", "export"}
    assert engines == ["tensorrt-rtx", "tensorrt,tensorrt-rtx"]
    named = {extra for extras in [*flavours.values(), *engines] for extra in extras.split(",")} - {"${ENGINES}"}
    assert named <= set(project["optional-dependencies"])
    assert set(engines[-1].split(",")) <= set(flavours["gpu"].split(",")), "built by what does not serve"
    assert flavours["cpu"] == "cpu,simd,import"
    assert all(f"FROM {stage} AS {flavour}" in DOCKERFILE for stage, flavour in (("cpu", "gpu"), ("gpu", "export")))


def test_images_hold_every_package() -> None:
    """The build context has every package that is installed, and the files that the installation needs."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    taken = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}

    assert {"service", "models", "proto", "export"} <= packages
    assert packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == taken


def test_variables_are_settings() -> None:
    """Every variable that a container gets is one of a setting or of the export, so that none is set in vain.

    Those of a setting that compose passes on have its default.
    """
    lines = re.findall(r"^ +TOPFIVE_(\w+): ", COMPOSE, re.MULTILINE)
    lines += re.findall(r"^ +TOPFIVE_(\w+)=", DOCKERFILE, re.MULTILINE)

    assert {"MODELS", "DRAIN_S", "CACHE", "HOST"} <= set(lines)
    passed = dict(re.findall(r"^  TOPFIVE_(\w+): \$\{TOPFIVE_\w+:-(.+)\}$", COMPOSE, re.MULTILINE))
    assert {"DECODE", "SLO_MS"} <= set(passed)
    assert passed.pop("MODELS") == "googlenet,squeezenet1_1", "the first may be untrained, the second is not"
    assert Settings.model_validate({name.lower(): value for name, value in passed.items()}) == Settings()
    of_export = {str(option.envvar).removeprefix("TOPFIVE_") for option in export_command.params}
    assert "ENGINE" in of_export
    assert set(lines) <= {name.upper() for name in Settings.model_fields} | of_export


def test_room_for_graphs() -> None:
    """An export has room in its temporary folder for three copies of the largest network of the catalog in float32."""
    (room_gib,) = map(int, re.findall(r"tmpfs: .*size=(\d+)g", COMPOSE.partition("x-export:")[2].partition("\n\n")[0]))
    largest = max(network.parameters for network in CATALOG)

    assert 3 * 4 * largest <= room_gib << 30


def test_engines_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TOPFIVE_ENGINE empty, the job of the profile gpu exports without an engine, and is no usage error."""
    job = COMPOSE.partition("\n  export:")[2].partition("\n\n")[0]
    for name, value in re.findall(r"^ +(TOPFIVE_\w+): (\S+)", job, re.MULTILINE):
        default = re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)  # what an empty variable gives
        monkeypatch.setenv(name, re.sub(r"\$\{\w+-.*\}", "", default))
    values = export_command.make_context("export", ["tiny", "--missing"]).params

    assert "TOPFIVE_ENGINE" in job
    assert read_request(values) is None


def test_time_to_stop() -> None:
    """A container is given longer to stop than its server takes at most for what it has accepted."""
    (grace_s,) = map(float, re.findall(r"stop_grace_period: (\d+)s", COMPOSE))
    pre_stops_s, drains_s = (
        list(map(float, re.findall(rf'TOPFIVE_{name}_S: "(\d+)"', COMPOSE))) for name in ("PRE_STOP", "DRAIN")
    )

    assert len(pre_stops_s) == len(drains_s) == 1  # those of x-any-server
    assert max(pre_stops_s) + max(drains_s) + 5 <= grace_s


def test_time_to_get_ready() -> None:
    """A gateway, which starts with the export, is not called unhealthy before the servers had their time to load."""
    engine, gateway = re.findall(r"^ +start_period: (\d+)([smh])", COMPOSE, re.MULTILINE)
    seconds = {"s": 1, "m": 60, "h": 3600}

    assert int(engine[0]) * seconds[engine[1]] >= 600
    assert int(gateway[0]) * seconds[gateway[1]] >= 3600 + int(engine[0]) * seconds[engine[1]]


def test_memory_of_a_gateway() -> None:
    """The images that a gateway takes at once, four times each, and its 100 MiB leave a quarter of its memory free."""
    gateway = COMPOSE.partition("\n  gateway:")[2].partition("\n\n")[0]
    (upload_bytes,) = map(int, re.findall(r'TOPFIVE_MAX_UPLOAD_BYTES: "(\d+)"', gateway))
    (limit_gib,) = map(int, re.findall(r"mem_limit: (\d+)g", gateway))

    assert 4 * upload_bytes + (100 << 20) <= 0.75 * (limit_gib << 30)


def test_nothing_is_open_by_default() -> None:
    """Every published port is bound to this machine unless a variable says otherwise."""
    published = re.findall(r'"([^"]*:\d{4})"', COMPOSE)
    ports = [port for port in published if not port.startswith(("grpc:", "http:"))]

    assert len(ports) == 6
    assert all(port.startswith(("${TOPFIVE_BIND:-127.0.0.1}:", "${TOPFIVE_EDGE_BIND:-127.0.0.1}:")) for port in ports)
