"""The process that measures engines: it reports engines that fail, and ends with the command."""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.artifact.artifact import load
from service.common.sample_photo import made_photo
from service.common.types import Precision, Runtime
from service.offline.tuning.candidates import TuneCandidate
from service.offline.tuning.engine_load import EngineLoad
from service.offline.tuning.search import CandidateFailed, CandidateStuck
from service.offline.tuning.worker import Worker
from tests.offline.tuning.tuning_engines import open_troubled

ROOT = Path(__file__).resolve().parents[3]
STUCK_TUNE = (
    "from functools import partial; from service.cli.main import main; "
    "from service.offline.tuning.worker import Worker; from tests.offline.tuning.tuning_engines import open_announced; "
    "main(obj=partial(Worker, open_engine=open_announced))"
)
"""`topfive tune` over an engine that never returns; it prints the number of the process that measures."""


@pytest.fixture
def worker(exported: Path) -> Iterator[Worker]:
    """A worker whose process must have ended when the test ends."""
    artifact = load(exported, "tiny")
    work = EngineLoad(made_photo(), artifact.manifest.input, decoding_threads=1, clients=4)
    with Worker(artifact, work, open_engine=open_troubled, stuck_s=1.0) as started:
        yield started
    assert multiprocessing.active_children() == []


def candidate(slots: int, max_batch: int = 1) -> TuneCandidate:
    """A candidate; `open_troubled` fails in another way for each number of slots above 1."""
    return TuneCandidate(Runtime.OPENVINO, Precision.F32, slots, 1, max_batch)


def test_trouble_is_noticed_and_the_next_engine_runs(worker: Worker) -> None:
    """The worker names the reason of an engine that is stuck, dies or cannot open, and measures the next engine."""
    assert worker(candidate(slots=1), 0.1)[1].images_per_s > 0
    with pytest.raises(CandidateFailed, match="this CPU lacks something"):
        worker(candidate(slots=4), 0.1)
    with pytest.raises(CandidateFailed, match=r"its process died \(exit status 11\)"):
        worker(candidate(slots=3), 0.1)
    with pytest.raises(CandidateStuck, match=r"it has not returned for 1\.1 s"):
        worker(candidate(slots=2, max_batch=2), 0.1)
    assert worker(candidate(slots=1, max_batch=2), 0.1)[0] == "1"


def stuck_command(artifacts: Path) -> "subprocess.Popen[str]":
    folders = ("--artifacts", str(artifacts), "--cache", str(artifacts.parent))
    command = [sys.executable, "-c", STUCK_TUNE, "tune", "tiny", *folders, "--cpus", "1", "--seconds", "600"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stuck_engine_ends_with_the_command(artifacts: Path, number: signal.Signals) -> None:
    """The measuring process ends when the command ends, even if its engine never returns."""
    process = stuck_command(artifacts)
    assert process.stdout is not None
    other = os.pidfd_open(int(process.stdout.readline()))
    try:
        process.send_signal(number)
        ended, _, _ = select.select([other], [], [], 30)
        if not ended:
            signal.pidfd_send_signal(other, signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        os.close(other)

    assert ended
    assert process.returncode == -number


def test_ctrl_c_ends_both_processes_in_silence(artifacts: Path) -> None:
    """Ctrl-C reaches both processes while an engine is measured; both end, and no traceback is printed."""
    process = stuck_command(artifacts)
    assert process.stdout is not None
    other = int(process.stdout.readline())  # it is measuring
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{other}/status").read_text().splitlines())
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert int(status["SigBlk"], 16) & 1 << signal.SIGINT - 1, "the other process would print where it was interrupted"
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped; nothing was stored of tiny"
    assert "Traceback" not in errors
    assert not Path(f"/proc/{other}").exists()
    assert not (artifacts / "tiny" / "1" / "tuned").exists()
