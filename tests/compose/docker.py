"""Commands of Docker with a limit on their time, and the compose file under a project of its own."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "topfive-test"


class Missing(Exception):
    """Docker is not there; the message says what is missing and what to do."""


def run(*command: str, limit_s: float = 120.0, env: dict[str, str] | None = None) -> str:
    """The output of a command. Raises AssertionError with all its output where it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=limit_s,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def succeeds(*command: str) -> bool:
    """Whether the command ends with 0."""
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def compose_command() -> list[str]:
    """`docker compose` or `docker-compose`. Raises Missing."""
    if shutil.which("docker") is None:
        raise Missing("docker is not installed; install Docker Engine and its compose plugin, and run this again")
    if not succeeds("docker", "info"):
        raise Missing("no Docker Engine answers (docker info fails); start it, or join the group docker")
    if succeeds("docker", "compose", "version"):
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise Missing("neither `docker compose` nor docker-compose is installed; install the compose plugin")


def free_port() -> int:
    """A port that is free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def inspect(name: str) -> dict[str, Any]:
    """What Docker knows of a container or an image."""
    found: dict[str, Any] = json.loads(run("docker", "inspect", name))[0]
    return found


def waited(what: str, condition: Callable[[], bool], limit_s: float = 90.0) -> float:
    """Seconds until `condition` held. Raises AssertionError after the limit."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, f"{what}: not within {limit_s:g} s"
        time.sleep(0.1)
    return time.monotonic() - began


@dataclass(frozen=True, slots=True)
class Compose:
    """The project of the test: its files, its profiles, its variables."""

    command: Sequence[str]
    files: Sequence[str]
    profiles: Sequence[str]
    env: dict[str, str]

    def __call__(self, *arguments: str, limit_s: float = 120.0) -> str:
        """One compose command."""
        files = [part for file in self.files for part in ("-f", file)]
        profiles = [part for profile in self.profiles for part in ("--profile", profile)]
        head = [*self.command, "-p", PROJECT, "--project-directory", str(ROOT), *files, *profiles]
        return run(*head, *arguments, limit_s=limit_s, env=self.env)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, stopped ones as well."""
        label = "label=com.docker.compose"
        filters = ["--filter", f"{label}.project={PROJECT}", "--filter", f"{label}.service={service}"]
        return run("docker", "ps", "-aq", *filters).split()

    def healthy(self, service: str, count: int = 1) -> bool:
        """Whether so many of its containers run and say that they are healthy."""
        states = [inspect(one)["State"] for one in self.containers(service)]
        return len([one for one in states if one["Running"] and one["Health"]["Status"] == "healthy"]) == count

    def down(self) -> None:
        """Remove containers, networks and volumes."""
        self("down", "-v", "--remove-orphans", "-t", "5")
