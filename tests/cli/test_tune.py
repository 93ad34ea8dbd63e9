"""`topfive tune`: the rig, the other process, and the command, with engines that hang, die and refuse."""

import json
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from models.artifact.artifact import Artifact, load
from models.artifact.tuning import TuningRecord
from service.cli.main import main
from service.common.errors import BadImage
from service.common.sample_photo import made_photo
from service.common.types import Precision, Runtime
from service.engines.base import EngineUnavailableError
from service.offline.tuning.candidates import Candidate, Setup, allowed
from service.offline.tuning.rig import Figures, Load, measure
from service.offline.tuning.run import Measuring
from service.offline.tuning.search import CandidateFailedError, CandidateHangsError
from service.offline.tuning.worker import Open, Worker
from tests.fakes import FakeEngine
from tests.tuning_engines import open_dying, open_fake, open_hanging, open_refusing

ROOT = Path(__file__).resolve().parents[2]
ONE, TWO = Setup(Runtime.OPENVINO, Precision.F32, 1, 1), Setup(Runtime.OPENVINO, Precision.F32, 2, 1)


@pytest.fixture
def tiny(artifacts: Path) -> Artifact:
    """The artifact of `tiny`."""
    return load(artifacts, "tiny")


@pytest.fixture
def work(tiny: Artifact) -> Load:
    """The load of a server with one decoding thread and four callers."""
    return Load(made_photo(), tiny.manifest.input, decoders=1, callers=4)


def test_rig_counts_what_the_engine_ran(work: Load) -> None:
    """Batches stay within their bound, every figure is positive, and all images went through the recipe."""
    engine = FakeEngine(slots=2)

    figures = measure(engine, work, max_batch=3, seconds=0.2)

    assert len(engine.batches) >= 2
    assert max(engine.batches) <= 3
    assert figures.images_per_s > 0
    assert figures.run_ms > 0
    assert figures.cpu_ms > 0


def test_rig_has_no_more_in_the_house_than_callers(work: Load) -> None:
    """An engine that takes all that waits never gets more images than there are callers."""
    engine = FakeEngine()

    measure(engine, replace(work, decoders=4, callers=2), max_batch=64, seconds=0.2)

    assert max(engine.batches) <= 2


def test_rig_raises_what_the_engine_raises(work: Load) -> None:
    """An engine that fails ends the measurement at once, with its own error and no thread left waiting."""
    engine = FakeEngine(slots=2)
    engine.script = [MemoryError("no room")]

    with pytest.raises(MemoryError, match="no room"):
        measure(engine, work, max_batch=1, seconds=30)


def test_rig_raises_what_decoding_raises(work: Load) -> None:
    """A photo that is none is the error of the decoder."""
    with pytest.raises(BadImage):
        measure(FakeEngine(), replace(work, photo=b"no photo"), max_batch=1, seconds=30)


@pytest.fixture
def worker(tiny: Artifact, work: Load, request: pytest.FixtureRequest) -> Iterator[Worker]:
    """The other process with the engines that the test names; nothing of it is left at the end."""
    with Worker(tiny, work, open_engine=request.param, hang_s=2.0) as started:
        yield started
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("worker", [open_hanging], indirect=True)
def test_hanging_engine_is_noticed_and_the_next_one_runs(worker: Worker) -> None:
    """What does not return is ended with its process, and a new process measures what comes after it."""
    assert worker(Candidate(ONE, 1), 0.1)[1].images_per_s > 0

    with pytest.raises(CandidateHangsError, match=r"it has not returned for 2\.1 s"):
        worker(Candidate(TWO, 2), 0.1)

    assert worker(Candidate(ONE, 2), 0.1)[0] == "1"


@pytest.mark.parametrize("worker", [open_dying], indirect=True)
def test_dying_engine_is_noticed_and_the_next_one_runs(worker: Worker) -> None:
    """An engine that ends its process fails with the status, and a new process goes on."""
    with pytest.raises(CandidateFailedError, match=r"its process died \(exit status 11\)"):
        worker(Candidate(TWO, 1), 0.1)

    assert worker(Candidate(ONE, 1), 0.1)[1].images_per_s > 0


@pytest.mark.parametrize("worker", [open_refusing], indirect=True)
def test_engine_that_refuses_says_why(worker: Worker) -> None:
    """The reason crosses from the other process."""
    with pytest.raises(CandidateFailedError, match="this CPU lacks something"):
        worker(Candidate(ONE, 1), 0.1)


def tuned(artifacts: Path, *arguments: str, open_engine: Open = open_fake, name: str = "tiny") -> Result:
    """What the command prints, with fake engines."""
    folders = ("--artifacts", str(artifacts), "--cache", str(artifacts.parent / "cache"))
    measuring = partial(Worker, open_engine=open_engine, hang_s=2.0)
    return CliRunner().invoke(
        main, ["tune", name, *folders, "--cpus", "1", "--seconds", "2", *arguments], obj=measuring
    )


def test_command_keeps_a_record(artifacts: Path) -> None:
    """The JSON has the record that was written beside the manifest, for the CPUs that were asked for."""
    result = tuned(artifacts, "--json", "--precision", "f32", "--runtime", "openvino")

    assert result.exit_code == 0, result.output
    [reply] = json.loads(result.stdout)
    path = Path(reply["record"])
    assert path.parent == artifacts / "tiny" / "1" / "tuned"
    record = TuningRecord.model_validate_json(path.read_bytes())
    assert record.conditions.cpus == 1
    assert {(one.runtime, one.precision) for one in record.trials} == {("openvino", "f32")}
    assert record.trials[0].images_per_s > 0
    assert f"{record.trials[0].images_per_s:.0f} images/s" in reply["why"]


def test_command_prints_what_it_chose_and_why(artifacts: Path) -> None:
    """The table has the best row marked, and below it the reason, where the record lies and for what it counts."""
    result = tuned(artifacts, "--precision", "f32", "--runtime", "openvino")

    assert result.exit_code == 0, result.output
    assert result.stdout.count(" best") == 1
    assert "chose openvino f32, 1 x 1, batches up to" in result.stdout
    words = " ".join(result.stdout.split())
    assert "with batches under 100 ms" in words
    assert "`topfive serve --runtime openvino --precision f32` uses it" in words


class LargeFigures(Worker):
    """Measures nothing, and gives figures of many digits."""

    def __call__(self, candidate: Candidate, seconds: float) -> tuple[str, Figures]:
        """As many as there is room for."""
        threading.Event().wait(seconds)  # a search goes on until its time is over
        return "1.0", Figures(12345.6, 1234.5, 1234.5)


def tuned_by(measuring: Measuring, artifacts: Path, cache: Path, columns: int = 80) -> Result:
    """What the command prints on a terminal of so many columns."""
    folders = ("--artifacts", str(artifacts), "--cache", str(cache))
    return CliRunner().invoke(
        main, ["tune", "tiny", *folders, "--seconds", "1"], obj=measuring, env={"COLUMNS": str(columns)}
    )


def test_table_fits_a_terminal_of_80_columns(artifacts: Path, tmp_path: Path) -> None:
    """Large figures and the mark behind them are not cut."""
    result = tuned_by(LargeFigures, artifacts, tmp_path)

    assert result.exit_code == 0, result.output
    assert result.stdout.count(" best") == 1
    assert "…" not in result.stdout


def test_what_cannot_be_kept_is_shown(artifacts: Path, tmp_path: Path) -> None:
    """Where no folder can be written the table is printed all the same, with what to do; the status is 1."""
    (artifacts / "tiny" / "1" / "tuned").write_text("not a folder")
    (tmp_path / "cache").write_text("not a folder")

    result = tuned_by(LargeFigures, artifacts, tmp_path / "cache", columns=200)

    assert result.exit_code == 1
    assert result.stdout.count(" best") == 1
    assert "tiny: not kept: " in result.stderr
    assert "name a folder that can be written with --cache" in result.stderr


@pytest.mark.parametrize("option", ["--seconds", "--max-latency-ms"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_time_that_does_not_end_is_refused(artifacts: Path, option: str, value: str) -> None:
    """Infinite seconds would never end, and what is not a number makes a record that nobody can read."""
    result = tuned(artifacts, option, value)

    assert result.exit_code == 2
    assert option in result.stderr
    assert f"{value} is not a finite number" in result.stderr


def test_command_where_nothing_runs_stores_nothing(artifacts: Path) -> None:
    """Its reason is printed, the status is 1, and there is no record."""
    result = tuned(artifacts, open_engine=open_refusing)

    assert result.exit_code == 1
    assert "this CPU lacks something" in result.stderr
    assert not (artifacts / "tiny" / "1" / "tuned").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "tensorrt"], "tensorrt has nothing to tune; use --runtime openvino or onnxruntime"),
        (["--precision", "int8"], "no runtime that computes in int8 is installed"),
    ],
)
def test_what_cannot_be_tuned_is_refused(artifacts: Path, arguments: list[str], message: str) -> None:
    """What is asked for and cannot be measured on the CPU is an error, not something else measured."""
    result = tuned(artifacts, *arguments)

    assert result.exit_code == 1
    assert message in result.stderr


def test_unknown_model_is_an_error_and_the_others_go_on(artifacts: Path) -> None:
    """A name that is not exported is said; the models after it are tuned all the same."""
    result = tuned(artifacts, "tiny", "--json", name="alexnet")

    assert result.exit_code == 1
    assert "alexnet is not exported yet" in result.stderr
    assert [one["model"] for one in json.loads(result.stdout)] == ["tiny"]


def test_interruption_stores_nothing(artifacts: Path) -> None:
    """Ctrl-C in the middle ends the command with 130 and a line, and there is no record."""

    class Interrupted(Worker):
        def __call__(self, candidate: Candidate, seconds: float) -> tuple[str, object]:  # type: ignore[override]
            raise KeyboardInterrupt

    result = CliRunner().invoke(
        main, ["tune", "tiny", "--artifacts", str(artifacts), "--cache", str(artifacts.parent)], obj=Interrupted
    )

    assert result.exit_code == 130
    assert "stopped; nothing was stored of tiny" in result.stderr
    assert not (artifacts / "tiny" / "1" / "tuned").exists()


def test_interruption_loses_no_model_before_it(artifacts: Path, tmp_path: Path) -> None:
    """What was stored before Ctrl-C is in the JSON."""

    class Second(LargeFigures):
        opened = 0

        def __enter__(self) -> Worker:
            Second.opened += 1
            if Second.opened > 1:
                raise KeyboardInterrupt
            return super().__enter__()

    shutil.copytree(artifacts / "tiny", artifacts / "lenet5")
    manifest = artifacts / "lenet5" / "1" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_bytes()), "name": "lenet5"}))
    folders = ("--artifacts", str(artifacts), "--cache", str(tmp_path))
    result = CliRunner().invoke(main, ["tune", "tiny", "lenet5", *folders, "--seconds", "1", "--json"], obj=Second)

    assert result.exit_code == 130
    assert "stopped; nothing was stored of lenet5" in result.stderr
    assert [Path(one["record"]).is_file() for one in json.loads(result.stdout)] == [True]


def test_only_what_parity_allows_is_tried(tiny: Artifact) -> None:
    """Without a report of bf16 only f32 is tried; asking for bf16 is then an error that names the command."""
    artifact = replace(tiny, manifest=tiny.manifest.model_copy(update={"parity": ()}))

    assert allowed(artifact, Runtime.OPENVINO, Precision.AUTO) == [(Runtime.OPENVINO, Precision.F32)]
    with pytest.raises(EngineUnavailableError, match="may not run in bf16 on openvino"):
        allowed(artifact, Runtime.OPENVINO, Precision.BF16)


def hanging_command(artifacts: Path) -> "subprocess.Popen[str]":
    """The command over an engine that hangs; its first line is the number of the other process."""
    folders = ("--artifacts", str(artifacts), "--cache", str(artifacts.parent))
    command = [sys.executable, "-m", "tests.tune_process", "tune", "tiny", *folders, "--cpus", "1", "--seconds", "600"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_hanging_engine_ends_with_the_command(artifacts: Path, number: signal.Signals) -> None:
    """Whatever ends the command, and though its engine never returns, the other process does not outlive it."""
    process = hanging_command(artifacts)
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
    """Sent to the whole group while an engine is measured, it ends the command and its process without a traceback."""
    process = hanging_command(artifacts)
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
