"""On what and with what was measured: the machine, the versions, the moment and the command."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.subjects import ROOT, Peer
from service.common.cpus import cpu_model, host
from service.common.packages import package_version

_PACKAGES = ("topfive", "openvino", "onnxruntime", "numpy", "pillow", "fastapi", "uvicorn", "uvloop", "grpcio")


def describe() -> list[tuple[str, str]]:
    """Names and values for the top of the report."""
    here, memory = host(), 0.0
    if here.memory_bytes:
        memory = here.memory_bytes / (1 << 30)
    amx = "" if "AMX bf16" in here.instruction_sets else "; no AMX bf16, which 3 times the best peer needs"
    return [
        ("command", shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])),
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("processor", f"{cpu_model()}, {here.cpus} of {here.all_cpus} CPUs"),
        ("instruction sets", ", ".join(here.instruction_sets) + amx),
        ("memory", f"{memory:.0f} GiB"),
        ("system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("load average before", " ".join(f"{one:.2f}" for one in os.getloadavg())),
        ("versions", ", ".join(_versions())),
        ("commit", _commit()),
    ]


def pinned(peer: Peer, environments: Path) -> str:
    """The packages that a peer is pinned to, and the Python that it runs on."""
    lines = peer.requirements.read_text(encoding="utf-8").split()
    config = environments / peer.name / "pyvenv.cfg"
    said = config.read_text(encoding="utf-8").splitlines() if config.is_file() else []
    python = [f"Python {line.split()[-1]}" for line in said if line.startswith("version")]
    return ", ".join([*(line.replace("==", " ") for line in lines), *python])


def _versions() -> Sequence[str]:
    return [f"{name} {found}" for name in _PACKAGES if (found := package_version(name)) is not None]


def _commit() -> str:
    """Of this checkout, and whether files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
    except (OSError, subprocess.CalledProcessError):
        return "no git checkout"
    return done.stdout.strip()
