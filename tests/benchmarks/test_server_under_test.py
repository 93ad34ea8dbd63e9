"""A server under test: it starts, is found ready, its processes are measured, and none of them is left."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.server_under_test import ServerError, ServerUnderTest
from benchmarks.servers import ENVIRONMENTS, PEERS
from tests.scripted_server import PHOTO, scripted


def started(folder: Path, script: str = "good", *, copies: int = 1) -> ServerUnderTest:
    """A scripted server, which is killed soon after SIGTERM."""
    spec = replace(scripted(script, script), copies=copies)
    return ServerUnderTest(spec, folder, PHOTO, start_timeout_s=20.0, stop_timeout_s=0.2)


def test_no_process_survives(tmp_path: Path) -> None:
    """What ignores SIGTERM is killed, and with it its child in another session."""
    with started(tmp_path, "stubborn") as server:
        processes = server.processes()
        assert len(processes) == 2
        assert server.memory_bytes() > 1 << 20
    _, left = psutil.wait_procs(processes, 5)
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []  # init has yet to read its status


def test_cpu_time(tmp_path: Path) -> None:
    """The CPU time of a server is what its processes have spent, with all their threads."""
    with started(tmp_path, "busy") as server:
        assert 0.28 <= server.cpu_s() <= 1.5


def test_copies(tmp_path: Path) -> None:
    """A server of two copies runs twice, on two ports, and is ready when both answer."""
    with started(tmp_path, copies=2) as server:
        assert len(set(server.addresses)) == 2
        assert len(server.processes()) == 2


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("broken", "ended with status 1 before it was ready; its log ends with: no model here"),
        ("unready", r"was not ready in time \(status 400: "),
        ("absent", "/no/such/program cannot be run"),
    ],
)
def test_server_that_does_not_start(tmp_path: Path, script: str, reason: str) -> None:
    """A server that ends, never answers well, or is not there is given up with the reason, and stopped."""
    spec = scripted(script, script)
    if script == "absent":
        spec = replace(spec, program=("/no/such/program",))
    server = ServerUnderTest(spec, tmp_path, PHOTO, start_timeout_s=2.0, stop_timeout_s=0.2)
    with pytest.raises(ServerError, match=reason), server:
        pass
    assert server.processes() == []


def test_peers(tmp_path: Path) -> None:
    """A peer runs by a program of its own environment, with the model; its packages have exact versions."""
    specs = [peer.installed(tmp_path / "model.onnx") for peer in PEERS]
    for peer, spec in zip(PEERS, specs, strict=True):
        assert Path(spec.program[0]).is_relative_to(ENVIRONMENTS / peer.name)
        assert spec.environ["BENCH_MODEL"] == str(tmp_path / "model.onnx")
        for file in (peer.requirements, peer.requirements.with_suffix(".lock")):
            assert all("==" in line for line in file.read_text().split()), file
    assert len({peer.name for peer in PEERS}) == len({one.name for one in specs}) == len(PEERS)
