"""Records of what `topfive tune` measured: written whole or not at all, and used only where they hold."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from models.artifact.artifact import Artifact, load, write_manifest
from models.artifact.tuning import Conditions, Trial, TuningRecord, read_tuning, tuning_file, write_tuning
from service.cli.main import main
from service.common.types import Layout, Precision, Runtime
from service.engines.selection import cpu_layout
from service.engines.selection.compatibility import NO_MACHINE
from service.engines.selection.cpu_layout import (
    Tuned,
    conditions_here,
    default_layout,
    installed_version,
    read_tuned,
)
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions

HERE = Conditions(cpu="Xeon", instruction_sets=("AVX2",), cpus=2)


def trial(runtime: str = "openvino", precision: str = "bf16", rate: float = 100.0, version: str = "1") -> Trial:
    """A trial of 2 slots with 1 thread each, in batches of up to 3."""
    return Trial(
        runtime=runtime,
        runtime_version=version,
        precision=precision,
        slots=2,
        threads=1,
        max_batch=3,
        images_per_s=rate,
        run_ms=10.0,
    )


def record(*trials: Trial, conditions: Conditions = HERE) -> TuningRecord:
    """A record of these trials, of one where none are given."""
    return TuningRecord(conditions=conditions, date="2026-11-22", trials=trials or (trial(),))


def installed_here(runtime: Runtime) -> str:
    """The version of a runtime that is installed."""
    version = installed_version(runtime)
    assert version is not None
    return version


def keep(artifact: Artifact, *trials: Trial) -> Path:
    """Write a record of these trials for the artifact, on two CPUs of this machine."""
    return write_tuning(artifact.folder, record(*trials, conditions=conditions_here(2)))


def test_record_is_read_as_written(tmp_path: Path) -> None:
    """It lies beside the manifest, readable by all, and nothing else does."""
    path = write_tuning(tmp_path, record())

    assert path == tmp_path / "tuned" / f"{HERE.key}.json"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
    assert read_tuning(tmp_path, HERE) == record()


def test_record_of_another_machine_is_not_used(tmp_path: Path) -> None:
    """Another processor, another quota, other instructions: each has its own record. A renamed file counts nothing."""
    path = write_tuning(tmp_path, record())

    for change in ({"cpu": "EPYC"}, {"cpus": 4}, {"instruction_sets": ()}):
        other = HERE.model_copy(update=change)
        assert read_tuning(tmp_path, other) is None
        tuning_file(tmp_path, other).write_bytes(path.read_bytes())
        assert read_tuning(tmp_path, other) is None
        write_tuning(tmp_path, record(conditions=other))
    assert len(list((tmp_path / "tuned").iterdir())) == 4
    assert read_tuning(tmp_path, HERE) == record()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"trials": []}', '{"conditions": 3}'])
def test_damaged_record_is_said(tmp_path: Path, content: str) -> None:
    """What cannot be read is named with the command that makes a new one."""
    path = write_tuning(tmp_path, record())
    path.write_text(content)

    with pytest.raises(ValueError, match=r"json cannot be read \(not a record that this version reads\); run topfive"):
        read_tuning(tmp_path, HERE)


@pytest.mark.parametrize(
    "impossible", [{"slots": 0}, {"threads": 0}, {"max_batch": 1_000_000}, {"images_per_s": "NaN"}]
)
def test_impossible_layout_is_no_record(impossible: dict[str, object]) -> None:
    """Without a slot or a thread, or with batches that no memory holds: none comes from a file."""
    fields = json.loads(record().model_dump_json())
    fields["trials"][0].update(impossible)

    with pytest.raises(ValidationError):
        TuningRecord.model_validate(fields)


BF16, F32, ORT = trial(), trial(precision="f32", rate=90.0), trial("onnxruntime", "f32", 80.0)
LAYOUT = Layout(2, 1, 3, "tuned on 2026-11-22")


@pytest.mark.parametrize(
    ("trials", "runtime", "asked", "allowed", "expected"),
    [
        ((BF16, F32, ORT), Runtime.OPENVINO, Precision.AUTO, Precision.BF16, (Precision.BF16, LAYOUT)),
        ((BF16, F32, ORT), Runtime.OPENVINO, Precision.AUTO, Precision.F32, (Precision.F32, LAYOUT)),
        ((BF16, F32, ORT), Runtime.OPENVINO, Precision.F32, Precision.F32, (Precision.F32, LAYOUT)),
        ((BF16, F32, ORT), Runtime.ONNXRUNTIME, Precision.AUTO, Precision.F32, (Precision.F32, LAYOUT)),
        ((F32, BF16), Runtime.OPENVINO, Precision.AUTO, Precision.BF16, (Precision.F32, LAYOUT)),  # f32 was faster
        ((BF16,), Runtime.ONNXRUNTIME, Precision.AUTO, Precision.F32, (Precision.F32, None)),
        ((BF16,), Runtime.OPENVINO, Precision.F32, Precision.F32, (Precision.F32, None)),
        ((), Runtime.OPENVINO, Precision.AUTO, Precision.BF16, (Precision.BF16, None)),
    ],
)
def test_what_is_asked_for_and_allowed_wins(
    trials: tuple[Trial, ...],
    runtime: Runtime,
    asked: Precision,
    allowed: Precision,
    expected: tuple[Precision, Layout | None],
) -> None:
    """The best trial of what may run is taken: never bf16 where parity does not allow it or f32 was asked for.

    A runtime or a precision without a trial is laid out as where nothing was tuned.
    """
    assert Tuned(record(*trials) if trials else None).choose(runtime, asked, allowed) == expected


def test_faster_runtime_comes_first() -> None:
    """`auto` tries the runtime that was measured to be the faster one first; those of cards keep their places."""
    among = (Runtime.TENSORRT, Runtime.ONNXRUNTIME_CUDA, Runtime.OPENVINO, Runtime.ONNXRUNTIME)
    swapped = (*among[:2], Runtime.ONNXRUNTIME, Runtime.OPENVINO)

    assert Tuned(record(ORT, BF16)).order(among, Precision.AUTO) == swapped
    assert Tuned(record(ORT, BF16)).order(among, Precision.BF16) == among
    assert Tuned(record(BF16, ORT)).order(among, Precision.AUTO) == among
    assert Tuned().order(among, Precision.AUTO) == among


@pytest.fixture
def tiny(artifacts: Path) -> Artifact:
    """The artifact of `tiny`, in a folder that may be written."""
    return load(artifacts, "tiny")


def test_trials_of_another_version_do_not_count(tiny: Artifact) -> None:
    """Trials of a runtime that was replaced since, or is unknown, are left out and named; the others go on to count.

    Without any that counts the model starts by defaults.
    """
    fresh = trial("onnxruntime", "f32", version=installed_here(Runtime.ONNXRUNTIME))
    for stale, others in ((trial(version="2020.1"), (fresh,)), (trial("later"), ())):
        keep(tiny, stale, *others)

        tuned = read_tuned(tiny, 2)

        assert (tuned.record and tuned.record.trials) == (others or None)
        what = f"{stale.runtime} {stale.runtime_version}"
        assert tuned.notes == (f"tiny was tuned with {what}, not installed here; run: topfive tune tiny",)
    assert read_tuned(tiny, 3) == cpu_layout.NOT_TUNED


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [(1, Layout(1, 1, 4)), (2, Layout(2, 1, 4)), (4, Layout(4, 1, 4)), (8, Layout(4, 2, 8)), (13, Layout(4, 3, 8))],
)
def test_defaults(cpus: int, expected: Layout) -> None:
    """Slots of one thread take small batches; where a slot has several, larger batches share them."""
    assert default_layout(cpus) == expected


def test_engine_is_laid_out_as_tuned(tiny: Artifact, tmp_path: Path) -> None:
    """What opens has the layout of the record, and the choice says so; what the user asked for wins over it.

    So does the largest batch of the graph. PyTorch has one slot.
    """
    best = trial(precision="f32", version=installed_here(Runtime.OPENVINO))
    keep(tiny, best.model_copy(update={"slots": 1, "threads": 2}))
    options = EngineOptions(cpus=2, cache=tmp_path)

    def opened(options: EngineOptions, artifact: Artifact = tiny) -> tuple[str, int, int, Layout | None]:
        done = open_engine(artifact, options, look=lambda: NO_MACHINE)
        done.engine.close()
        return done.engine.describe().runtime, done.engine.slots, done.engine.max_batch, done.choice.layout

    assert opened(options) == ("openvino", 1, 3, Layout(1, 2, 3, "tuned on 2026-11-22"))
    assert opened(replace(options, max_batch=5)) == ("openvino", 1, 5, Layout(1, 2, 5, "tuned on 2026-11-22"))
    assert opened(replace(options, runtime=Runtime.ONNXRUNTIME)) == ("onnxruntime", 2, 4, Layout(2, 1, 4))
    assert opened(replace(options, layout=Layout(2, 1, 1))) == ("openvino", 2, 1, Layout(2, 1, 1))
    assert opened(replace(options, cpus=1)) == ("openvino", 1, 4, Layout(1, 1, 4))
    assert opened(replace(options, runtime=Runtime.TORCH)) == ("torch", 1, 8, Layout(1, 2, 8))
    single = replace(tiny, manifest=tiny.manifest.model_copy(update={"max_batch": 1}))
    assert opened(options, single) == ("openvino", 1, 1, Layout(1, 2, 1, "tuned on 2026-11-22"))
    assert opened(replace(options, cpus=1), single) == ("openvino", 1, 1, Layout(1, 1, 1))


def test_faster_runtime_serves(tiny: Artifact, tmp_path: Path) -> None:
    """`auto` opens the runtime that was measured to be the faster one."""
    keep(tiny, trial("onnxruntime", "f32", version=installed_here(Runtime.ONNXRUNTIME)))

    done = open_engine(tiny, EngineOptions(cpus=2, cache=tmp_path), look=lambda: NO_MACHINE)
    done.engine.close()

    assert done.engine.describe().runtime == "onnxruntime"
    assert done.choice.layout == Layout(2, 1, 3, "tuned on 2026-11-22")


def test_show_says_how_it_would_be_laid_out(tiny: Artifact) -> None:
    """`topfive show` names defaults within the graph's own limit, then what was tuned, and a record it cannot read."""
    folders = ("--artifacts", str(tiny.folder.parent.parent))

    def shown() -> str:
        result = CliRunner().invoke(main, ["show", "tiny", *folders, "--cpus", "2"], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    assert "defaults: slots 2, threads 1, max_batch 4" in shown()
    write_manifest(tiny.folder, tiny.manifest.model_copy(update={"max_batch": 1}))
    assert "defaults: slots 2, threads 1, max_batch 1" in shown()
    write_manifest(tiny.folder, tiny.manifest)
    path = keep(tiny, trial(precision="f32", version=installed_here(Runtime.OPENVINO)))
    assert "tuned on 2026-11-22: slots 2, threads 1, max_batch 3" in shown()
    path.write_text("{")
    output = shown()
    assert "defaults: slots 2" in output
    assert f"{path} cannot be read" in output
