"""The environments of the peers: one each, from its pinned requirements, made again only where these changed."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.subjects import Peer

_STAMP = ".requirements"
_TIMEOUT_S = 1800


def install(peers: Iterable[Peer], environments: Path, tell: Callable[[str], None]) -> dict[str, str]:
    """Why each that could not be installed was not, by the name of the peer; the others go on."""
    failed: dict[str, str] = {}
    for peer in peers:
        if is_installed(peer, environments):
            continue
        tell(f"installs {peer.name}")
        try:
            _install(peer, environments / peer.name)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            failed[peer.name] = " ".join(said.split())[-400:]
            tell(f"{peer.name} was not installed: {failed[peer.name]}")
    return failed


def is_installed(peer: Peer, environments: Path) -> bool:
    """Whether its environment was made of the requirements as they are now."""
    stamp = environments / peer.name / _STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _digest(peer)


def _digest(peer: Peer) -> str:
    return hashlib.sha256(peer.requirements.read_bytes() + peer.lock.read_bytes()).hexdigest()


def _install(peer: Peer, home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([peer.python, "-m", "venv", str(home)], [*pip, "-r", str(peer.requirements), "-c", str(peer.lock)]):
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    (home / _STAMP).write_text(_digest(peer), encoding="utf-8")
