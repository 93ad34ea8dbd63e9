"""The builder against a scripted TensorRT: what it sets, whose words its errors have, and how it ends early."""

import os
import signal
import threading
from pathlib import Path
from threading import Event

import pytest

from export.tensorrt.builder import BuildError, BuildJob, build_plan
from models.artifact.engine_plan import BatchProfile, ComputeCapability, Flavour
from tests.scripted_builder import NO_CARD, BuilderFlag, MemoryPoolType, Script, fake

JOB = BuildJob(
    flavour=Flavour.TENSORRT,
    graph=Path("model.onnx"),
    size=224,
    profile=BatchProfile(smallest=1, best=8, largest=32),
    targets=(ComputeCapability(8, 9),),
    timings=b"known",
)


def ignore(phase: str, done: int, total: int) -> None:
    """Progress that is not shown."""


def build(script: Script, job: BuildJob = JOB) -> bytes:
    """The plan that `script` gives."""
    return build_plan(fake(script), job, ignore).content


@pytest.mark.parametrize("version", ["11.4.0.106", "10.16.0.72"])
def test_what_is_set(version: str) -> None:
    """Both versions get the same: strong types, TF32 off, one stream, a limit of workspace, and the batch profile."""
    script = Script(version=version)

    assert build(script) == b"a plan"
    assert script.of("create_network") == [(1 << 1,)]
    assert script.of("parse_from_file") == [("model.onnx",)]
    assert script.of("clear_flag") == [(BuilderFlag.TF32,)]
    assert script.of("max_aux_streams") == [(0,)]
    assert script.of("builder_optimization_level") == [(3,)]
    assert script.of("set_memory_pool_limit") == [(MemoryPoolType.WORKSPACE, 8 << 30)]
    shapes = [(batch, 224, 224, 3) for batch in (1, 8, 32)]
    assert script.of("add_optimization_profile") == [(("image", *shapes),)]


def test_progress_is_told_step_by_step() -> None:
    """The phase's name comes with the steps done and those in all, from the thread that builds."""
    seen: list[tuple[str, int, int]] = []
    build_plan(fake(Script()), JOB, lambda *told: seen.append(told))

    assert seen == [("Building engine", 0, 2), ("Building engine", 1, 2), ("Building engine", 2, 2)]


def test_parser_errors_name_the_node() -> None:
    """Every error of the parser is there with node, operator and description; nothing is built."""
    script = Script(parser_errors=[("node_7", "GridSample", "no mode cubic"), ("", "", "unsupported opset")])

    with pytest.raises(
        BuildError, match=r"cannot read the graph: node_7 GridSample: no mode cubic; : unsupported opset"
    ):
        build(script)
    assert script.steps == 0


def test_no_plan_gives_the_builders_words() -> None:
    """Where the builder gives None, the error has the targets and the last lines of its log."""
    script = Script(plan=None, errors=["Error Code 10: could not find any implementation for node conv1"])

    with pytest.raises(BuildError, match=r"sm89: Error Code 10: .* node conv1$"):
        build(script)


def test_a_card_that_is_too_old_is_told_of_the_version_before() -> None:
    """TensorRT 11 does not know the card: the message names 10.16."""
    with pytest.raises(BuildError, match=r"SM 61 is not supported .*tensorrt~=10\.16"):
        build(Script(plan=None, errors=[NO_CARD]))


def test_too_large_a_batch_is_told() -> None:
    """Where the maps of the largest batch do not fit, the message says what to make smaller."""
    with pytest.raises(BuildError, match=r"OutOfMemory .*; use --batch with a smaller largest size$"):
        build(Script(plan=None, errors=["Error Code 2: OutOfMemory (Requested size was 2185972024 bytes.)"]))


def test_no_driver() -> None:
    """A builder that cannot be made is an error with TensorRT's words, not a TypeError."""
    with pytest.raises(BuildError, match="no builder here: CUDA initialization failure"):
        build(Script(driver=False))


@pytest.mark.parametrize(
    "script", [Script(profile=-1, errors=[]), Script(shape_error="Shape dims mismatch")], ids=["refused", "raised"]
)
def test_refused_profile(script: Script) -> None:
    """A batch profile that TensorRT refuses, by -1 or by an exception, ends the build with the sizes."""
    with pytest.raises(BuildError, match="refuses batches of 1 to 32"):
        build(script)
    assert script.steps == 0


def test_warnings_are_kept_once() -> None:
    """What the builder warns of is in what was written, each line once and in order."""
    script = Script(warnings=["weights are subnormal", "slow format", "weights are subnormal"])

    assert build_plan(fake(script), JOB, ignore).warnings == ("weights are subnormal", "slow format")


def test_timing_cache_is_given_and_taken_back() -> None:
    """TensorRT gets the bytes that are known, must not ignore a mismatch, and what it knows after comes back."""
    script = Script()
    written = build_plan(fake(script), JOB, ignore)

    assert script.of("create_timing_cache") == [(b"known",)]
    assert script.of("set_timing_cache") == [(b"known", False)]
    assert written.timings == b"measured"


@pytest.mark.parametrize("script", [Script(readable=False), Script(accepts=False)], ids=["unreadable", "mismatch"])
def test_timing_cache_that_is_refused_is_replaced(script: Script) -> None:
    """One that TensorRT cannot read, or that is another card's, gives way to an empty one, and the record says so."""
    written = build_plan(fake(script), JOB, ignore)

    assert script.of("set_timing_cache")[-1] == (b"", False)
    assert written.content == b"a plan"
    assert written.timings == b"measured"
    assert "timing cache was not taken" in written.warnings[0]


@pytest.mark.usefixtures("plain_signal_stack")
def test_interruption_stops_the_builder() -> None:
    """Ctrl-C while it builds is raised here once the builder has stopped, at its next step, of two."""
    building, seen = Event(), Event()

    def during() -> None:
        building.set()
        assert seen.wait(10)

    def interrupt() -> None:
        building.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        seen.set()

    script = Script(during=during)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            build(script)
    finally:
        signal.signal(signal.SIGINT, before)
    assert script.steps <= 2
    assert not [one for one in threading.enumerate() if one.name.startswith("builder")]


def test_progress_that_fails_ends_the_build() -> None:
    """An exception of the progress callback stops the builder and is raised; it does not pass through the builder."""

    def closed(phase: str, done: int, total: int) -> None:
        raise BrokenPipeError("the reader is gone")

    script = Script()
    with pytest.raises(BrokenPipeError):
        build_plan(fake(script), JOB, closed)
    assert script.steps == 1
