"""TensorRT's engine over scripted stand-ins: right answers at each size, each failure open, nothing left behind."""

import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.artifact.engine_plan import Flavour
from service.engines.base import CardLostError, EngineUnavailableError, NoRoomError
from service.engines.tensorrt.cuda import CudaError
from service.engines.tensorrt.plan import TensorRtError
from service.engines.tensorrt.slot import Launch, buckets
from tests.fake_cuda import Error, Fault, Script
from tests.fake_tensorrt import ACTIVATIONS_BYTES, BROKEN, OUT_OF_MEMORY, WEIGHTS_BYTES, network
from tests.scripted_card import CLASSES, SIZE, ScriptedCard, pixels

BOTH = pytest.mark.parametrize("flavour", list(Flavour))
MakeCard = Callable[..., ScriptedCard]
NAMED = (CudaError, MemoryError, TensorRtError, CardLostError)


@pytest.fixture
def scripted(tmp_path: Path) -> MakeCard:
    """Makes scripted cards in the test's own folder."""
    return lambda **values: ScriptedCard(tmp_path, **values)


@BOTH
@pytest.mark.parametrize("launch", list(Launch))
def test_every_size(scripted: MakeCard, flavour: Flavour, launch: Launch) -> None:
    """Each batch size gives the network's own answer, in one piece and row by row, with graphs and without."""
    here = scripted(flavour=flavour)
    engine = here.open(slots=2, max_batch=11, launch=launch)
    for count in [*range(1, 12), *range(11, 0, -1)]:
        images = pixels(count, seed=count)
        expected = network(images, CLASSES)
        np.testing.assert_array_equal(engine.run(images), expected)
        np.testing.assert_array_equal(engine.run(list(images)), expected)
    engine.close()
    here.trt.assert_clean()


def life(here: ScriptedCard) -> None:
    """Open, run, close, with one call that fails: it costs at most one batch, the others are right, nothing leaks."""
    lost, failed = False, 0
    try:
        engine = here.open(slots=2, max_batch=3)
    except (EngineUnavailableError, CardLostError) as error:
        lost = isinstance(error, CardLostError)
    else:
        for count in (1, 2, 3, 3, 2, 1):
            images = pixels(count, seed=count)
            try:
                answers = engine.run(images)
            except NAMED as error:
                lost = lost or isinstance(error, CardLostError)
                failed += 1
            else:
                np.testing.assert_array_equal(answers, network(images, CLASSES))
        assert failed <= 1 or lost
        if lost:
            with pytest.raises(CardLostError):
                engine.run(pixels(1))
        engine.close()
        engine.close()
    if lost or here.cudart.poison is not None:
        assert here.cudart.misused == []
    else:
        here.trt.assert_clean()


def positions(flavour: Flavour, folder: Path) -> int:
    """How many calls and steps a life without failures has."""
    here = ScriptedCard(folder, flavour)
    life(here)
    return len(here.script.calls)


@BOTH
@pytest.mark.parametrize(
    "fault",
    [Error.cudaErrorInvalidValue, Error.cudaErrorMemoryAllocation, Error.cudaErrorIllegalAddress, OUT_OF_MEMORY],
    ids=["invalid", "memory", "lost", "refused"],
)
def test_each_call_fails_in_turn(scripted: MakeCard, flavour: Flavour, fault: Fault, tmp_path: Path) -> None:
    """Whichever call fails, at whichever place: a named error or an open step down, and all is freed exactly once."""
    total = positions(flavour, tmp_path)
    assert total > 100
    for place in range(1, total + 1):
        life(scripted(flavour=flavour, script=Script(at={place: fault})))


def test_each_failure_is_seen(scripted: MakeCard) -> None:
    """A call whose status nobody read would let a life go on unchanged: none of a batch's calls can fail unnoticed."""
    for name in ("cudaSetDevice", "cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"):
        here = scripted()
        engine = here.open(max_batch=2)
        here.script.fail(name, Error.cudaErrorInvalidValue)
        with pytest.raises(CudaError, match=f"{name} on GPU 0: cudaErrorInvalidValue"):
            engine.run(pixels(2))
        assert engine.run(pixels(2)).shape == (2, CLASSES)
    for name in ("cudaMemcpyAsync", "execute_async_v3"):
        here = scripted()
        engine = here.open(max_batch=2, launch=Launch.CALLS)
        here.script.fail(name, Error.cudaErrorInvalidValue)
        with pytest.raises((CudaError, TensorRtError), match=r"cudaErrorInvalidValue|cudaError 1:"):
            engine.run(pixels(2))


def test_graphs(scripted: MakeCard) -> None:
    """Each bucket of each slot is captured once when the engine opens; from then on one launch runs a batch."""
    here = scripted()
    engine = here.open(slots=2, max_batch=8)
    assert engine.captured == (1, 2, 4, 8)
    assert here.cudart.made["launchable"] == 8
    here.script.calls.clear()
    engine.run(pixels(3))
    assert here.script.calls == ["cudaSetDevice", "cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"]


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_without_a_graph(scripted: MakeCard, call: str, caplog: pytest.LogCaptureFixture) -> None:
    """A size that cannot be captured runs call by call, says so once, and gives the same answers."""
    here = scripted()
    here.script.fail(call, Error.cudaErrorMemoryAllocation, after=1)
    with caplog.at_level(logging.WARNING):
        engine = here.open(max_batch=8)
    assert [record.getMessage() for record in caplog.records] == [
        f"batches of 4 run without a CUDA graph: {call} on GPU 0: cudaErrorMemoryAllocation (memoryallocation)"
    ]
    assert engine.captured == (1, 2, 8)
    for count in range(1, 9):
        images = pixels(count)
        np.testing.assert_array_equal(engine.run(images), network(images, CLASSES))
    engine.close()
    here.trt.assert_clean()


@pytest.mark.parametrize(
    ("smallest", "max_batch", "expected"),
    [
        (1, 1, (1,)),
        (1, 8, (1, 2, 4, 8)),
        (1, 11, (1, 2, 4, 8, 11)),
        (4, 32, (4, 8, 16, 32)),
        (3, 8, (4, 8)),
        (8, 2, (8,)),
    ],
)
def test_buckets(smallest: int, max_batch: int, expected: tuple[int, ...]) -> None:
    """Powers of two within the profile, and the largest batch itself."""
    assert buckets(smallest, max_batch) == expected


def test_smallest_bucket(scripted: MakeCard) -> None:
    """A batch is padded no further than to the next bucket."""
    here = scripted()
    engine = here.open(max_batch=11, launch=Launch.CALLS)
    here.trt.ran.clear()
    for count in range(1, 12):
        engine.run(pixels(count))
    assert here.trt.ran == [1, 2, 4, 4, 8, 8, 8, 8, 11, 11, 11]


@pytest.mark.parametrize(("profile", "asked", "most"), [((1, 8, 32), 64, 32), ((1, 8, 32), 5, 5), ((8, 8, 16), 2, 2)])
def test_profile(scripted: MakeCard, profile: tuple[int, int, int], asked: int, most: int) -> None:
    """No more rows than asked for or than the plan takes; batches below its smallest are padded up to it."""
    here = scripted(profile=profile)
    engine = here.open(max_batch=asked)
    assert engine.max_batch == most
    for count in (1, most):
        np.testing.assert_array_equal(engine.run(pixels(count)), network(pixels(count), CLASSES))
    with pytest.raises(ValueError, match=f"1 to {most} rows"):
        engine.run(pixels(most + 1))


def test_buffers_are_shared_by_nothing(scripted: MakeCard) -> None:
    """What an earlier batch left in the buffer changes no answer of a smaller one, nor a later batch an earlier one."""
    engine = scripted().open(max_batch=8)
    engine.run(np.full((8, SIZE, SIZE, 3), 255, dtype=np.uint8))
    answers = engine.run(pixels(5))
    engine.run(pixels(8, seed=2))
    np.testing.assert_array_equal(answers, network(pixels(5), CLASSES))


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((0, SIZE, SIZE, 3), dtype=np.uint8),
        np.zeros((1, SIZE, SIZE + 1, 3), dtype=np.uint8),
        np.zeros((1, 1, 1, 3), dtype=np.uint8),
        np.zeros((2, SIZE, SIZE, 3), dtype=np.float32),
        [np.zeros((SIZE, SIZE, 3), dtype=np.uint8), np.zeros((SIZE, SIZE, 1), dtype=np.uint8)],
    ],
    ids=["none", "other size", "broadcast", "floats", "mixed"],
)
def test_wrong_rows(scripted: MakeCard, rows: Any) -> None:
    """Rows of another shape or type are refused, neither broadcast nor converted, and the next batch is right."""
    engine = scripted().open()
    with pytest.raises(ValueError, match="rows"):
        engine.run(rows)
    np.testing.assert_array_equal(engine.run(pixels(2)), network(pixels(2), CLASSES))


@BOTH
def test_threads(scripted: MakeCard, flavour: Flavour) -> None:
    """Batches of several threads, more than there are slots, get their own answers."""
    here = scripted(flavour=flavour)
    engine = here.open(slots=2)
    batches = [pixels(1 + seed % 8, seed) for seed in range(100)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(engine.run, batches))
    for images, given in zip(batches, answers, strict=True):
        np.testing.assert_array_equal(given, network(images, CLASSES))
    engine.close()
    here.trt.assert_clean()


@pytest.mark.parametrize(
    ("launch", "step", "fault", "kind", "said"),
    [
        (Launch.GRAPH, "cudaGraphLaunch", Error.cudaErrorMemoryAllocation, MemoryError, "cudaGraphLaunch"),
        (Launch.CALLS, "execute_async_v3", OUT_OF_MEMORY, MemoryError, "OutOfMemory"),
        (Launch.CALLS, "execute_async_v3", BROKEN, TensorRtError, "the script says so"),
    ],
)
def test_batch_that_fails(
    scripted: MakeCard, launch: Launch, step: str, fault: Fault, kind: type[Exception], said: str
) -> None:
    """A lack of memory, CUDA's or TensorRT's own, is a MemoryError, another refusal has its words; the next runs."""
    here = scripted()
    engine = here.open(launch=launch)
    here.script.fail(step, fault)
    with pytest.raises(kind, match=said):
        engine.run(pixels(8))
    np.testing.assert_array_equal(engine.run(pixels(8)), network(pixels(8), CLASSES))
    engine.close()
    here.trt.assert_clean()


def test_shape_that_is_refused(scripted: MakeCard) -> None:
    """After a shape that TensorRT refused none is taken for granted: the batch size before it is set anew."""
    engine = (here := scripted()).open(launch=Launch.CALLS)
    engine.run(pixels(2))
    here.script.fail("set_input_shape", BROKEN)
    with pytest.raises(TensorRtError, match="no batch of 4"):
        engine.run(pixels(4))
    np.testing.assert_array_equal(engine.run(pixels(2, seed=1)), network(pixels(2, seed=1), CLASSES))


def slot_bytes(max_batch: int) -> int:
    """What one slot takes on the card."""
    return ACTIVATIONS_BYTES + max_batch * (SIZE * SIZE * 3 + 4 * CLASSES)


@pytest.mark.parametrize(("room", "slots"), [(None, 4), (2, 2)])
def test_memory(scripted: MakeCard, caplog: pytest.LogCaptureFixture, room: int | None, slots: int) -> None:
    """As many slots as fit, with a word where some do not. `memory_bytes` is what is taken, and all comes back."""
    here = scripted(**({} if room is None else {"capacity": WEIGHTS_BYTES + room * slot_bytes(8) + 100}))
    with caplog.at_level(logging.WARNING):
        engine = here.open(slots=4, max_batch=8)
    assert engine.slots == slots
    assert engine.memory_bytes == here.cudart.used == WEIGHTS_BYTES + slots * slot_bytes(8)
    assert engine.device == "cuda:0"
    assert ("memory for 2 of 4 slots" in caplog.text) is (slots == 2)
    engine.close()
    here.trt.assert_clean()


@pytest.mark.parametrize("capacity", [WEIGHTS_BYTES - 1, WEIGHTS_BYTES + slot_bytes(8) - 1])
def test_no_room(scripted: MakeCard, capacity: int) -> None:
    """Where not even one slot fits the engine is refused, as one for which room can be made."""
    here = scripted(capacity=capacity)
    with pytest.raises(NoRoomError, match=r"does not fit on cuda:0 \(NVIDIA GeForce RTX 2080 Ti\)") as caught:
        here.open(slots=2)
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, EngineUnavailableError)
    here.trt.assert_clean()


def test_lost_card(scripted: MakeCard) -> None:
    """After an illegal address every batch says that the card is lost; closing asks nothing of it and drops nothing."""
    here = scripted()
    engine = here.open(slots=2)
    here.script.fail("cudaEventSynchronize", Error.cudaErrorIllegalAddress)
    with pytest.raises(CardLostError, match=r"cudaEventSynchronize on GPU 0: cudaErrorIllegalAddress "):
        engine.run(pixels(1))
    with pytest.raises(CardLostError):
        engine.run(pixels(1))
    live = dict(here.cudart.live)
    engine.close()
    assert here.cudart.live == live
    del engine
    gc.collect()
    assert here.trt.alive.count("context") == 2


@pytest.mark.parametrize("step", ["deserialize_cuda_engine", "create_execution_context", "execute_async_v3"])
def test_lost_by_tensorrts_word(scripted: MakeCard, step: str) -> None:
    """A loss that TensorRT tells of while the engine opens is one, and what was made so far is never let go."""
    here = scripted()
    here.script.fail(step, Error.cudaErrorIllegalAddress)
    with pytest.raises(CardLostError, match="cudaError 700: cudaErrorIllegalAddress"):
        here.open()
    gc.collect()
    assert "runtime" in here.trt.alive
    assert here.cudart.freed == {}


def test_logger_outlives_all(scripted: MakeCard) -> None:
    """TensorRT may hold the logger of the first engine for later ones, so it stays when the engine has gone."""
    here = scripted()
    here.open().close()
    gc.collect()
    here.trt.assert_clean()
    (first,) = here.trt.loggers
    assert first() is not None


def test_card_that_cannot_be_used(scripted: MakeCard) -> None:
    """A card that is busy when it is first asked is no lost card: something else may serve."""
    here = scripted()
    here.script.fail("cudaSetDevice", Error.cudaErrorDevicesUnavailable)
    with pytest.raises(EngineUnavailableError, match=r"the GPU cannot be used: .*DevicesUnavailable"):
        here.open()
    here.trt.assert_clean()


def test_closed_while_it_runs(scripted: MakeCard) -> None:
    """Closing does not free what a running batch uses: its answer is right, and then all is given back."""
    here = scripted()
    engine = here.open()
    inside, leave = threading.Event(), threading.Event()
    synchronize = here.cudart.cudaEventSynchronize

    def wait(event: int) -> tuple[Error]:
        inside.set()
        assert leave.wait(30)
        return synchronize(event)

    here.cudart.cudaEventSynchronize = wait  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.run, pixels(3))
        assert inside.wait(30)
        engine.close()
        assert here.cudart.freed["device"] == 0
        with pytest.raises(RuntimeError, match="closed"):
            engine.run(pixels(1))
        leave.set()
        np.testing.assert_array_equal(running.result(), network(pixels(3), CLASSES))
    del running
    here.trt.assert_clean()


TENSORS = {"image": ["INPUT", "UINT8", [-1, SIZE, SIZE, 3]], "probabilities": ["OUTPUT", "FLOAT", [-1, CLASSES]]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensors": TENSORS | {"probabilities": ["OUTPUT", "HALF", [-1, CLASSES]]}}, "HALF"),
        ({"tensors": TENSORS | {"probabilities": ["OUTPUT", "FLOAT", [-1, 5]]}}, r"\[-1, 5\]"),
        ({"tensors": TENSORS | {"image": ["INPUT", "UINT8", [-1, 3, SIZE, SIZE]]}}, r"\[-1, 3, 4, 4\]"),
        ({"tensors": TENSORS | {"image": ["OUTPUT", "UINT8", [-1, SIZE, SIZE, 3]]}}, "tensors"),
        ({"tensors": TENSORS | {"more": ["OUTPUT", "FLOAT", [-1]]}}, "more"),
        ({"tensors": {}}, "its tensors are none"),
        ({"profiles": [[[1, SIZE, SIZE, 3]] * 3]}, "of its record"),
        ({"profiles": []}, "of its record"),
    ],
    ids=["type", "classes", "layout", "direction", "another output", "nothing", "profile", "no profile"],
)
def test_wrong_plan(scripted: MakeCard, changes: dict[str, Any], said: str) -> None:
    """A plan whose names, types, shapes or batch sizes are others than the contract's is refused with both."""
    here = scripted(changes=changes)
    with pytest.raises(EngineUnavailableError, match=said) as caught:
        here.open()
    assert "topfive export tiny --engine tensorrt" in str(caught.value)
    del caught
    here.trt.assert_clean()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("create_runtime_config", "no runtime configuration"),
        ("create_runtime_cache", "no runtime cache"),
        ("set_runtime_cache", "the runtime cache was not taken"),
        ("Runtime", "TensorRT does not start"),
        ("deserialize_cuda_engine", "engine.plan cannot be loaded"),
        ("create_execution_context", "no execution context"),
        ("set_tensor_address", "no address for image"),
        ("set_input_shape", "no batch of 8"),
        ("execute_async_v3", "a batch of 8 did not run"),
    ],
)
def test_steps_that_fail(scripted: MakeCard, step: str, said: str) -> None:
    """A step that TensorRT refuses when the engine opens is named, with its words."""
    here = scripted(flavour=Flavour.TENSORRT_RTX if "runtime_c" in step else Flavour.TENSORRT)
    here.script.fail(step, BROKEN)
    with pytest.raises(EngineUnavailableError, match=f"{said}: .*the script says so"):
        here.open()
    here.trt.assert_clean()


@BOTH
def test_describe(scripted: MakeCard, flavour: Flavour) -> None:
    """It says runtime, version, card and precision."""
    engine = scripted(flavour=flavour).open()
    info = engine.describe()
    assert (info.runtime, info.device) == (flavour.value, "cuda:0 NVIDIA GeForce RTX 2080 Ti")
    assert (info.version, info.precision) == ("11.4.0.106" if flavour is Flavour.TENSORRT else "1.7.1.116", "fp16")
