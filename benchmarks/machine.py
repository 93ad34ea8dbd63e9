"""On what and with what was measured: the machine, the versions, the moment and the command."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from benchmarks.servers import ROOT, Peer
from service.common.cpus import cpu_model, host
from service.common.packages import package_version

_PACKAGES = ("topfive", "openvino", "onnxruntime", "numpy", "pillow", "fastapi", "uvicorn", "uvloop", "grpcio")


def describe() -> list[tuple[str, str]]:
    """Names and values for the top of the report."""
    here = host()
    amx = "" if "AMX bf16" in here.instruction_sets else "; no AMX bf16, which 3 times the best peer needs"
    return [
        ("command", shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])),
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("processor", f"{cpu_model()}, {here.cpus} of {here.all_cpus} CPUs"),
        ("instruction sets", ", ".join(here.instruction_sets) + amx),
        ("memory", f"{(here.memory_bytes or 0) / (1 << 30):.0f} GiB"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("load average before", " ".join(f"{one:.2f}" for one in os.getloadavg())),
        ("versions", ", ".join(installed_versions(_PACKAGES))),
        ("commit", _commit()),
    ]


def installed_versions(packages: Iterable[str]) -> list[str]:
    """Name and version of each of the packages that is installed."""
    return [f"{name} {found}" for name in packages if (found := package_version(name)) is not None]


def pinned_versions(peer: Peer) -> str:
    """The packages that a peer is pinned to."""
    return ", ".join(line.replace("==", " ") for line in peer.requirements.read_text(encoding="utf-8").split())


def _commit() -> str:
    """The commit of this checkout, and whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no git checkout"
