"""Engines on a real card: PyTorch's answers, whether with graphs or without, and the card's memory back at the end."""

import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from models.artifact.artifact import Artifact
from models.catalog import CATALOG
from service.common.gpus import driver_version
from service.common.types import Batch, Precision, Runtime
from service.engines.base import Engine, EngineUnavailableError
from service.engines.onnxruntime import OnnxRuntimeEngine
from service.engines.selection.parity import CheckedEngine, ParityCheck, compare, figures, reference_of
from service.engines.tensorrt.engine import TensorRtEngine
from service.engines.tensorrt.slot import Launch
from tests.gpu.conftest import KINDS, MAX_BATCH, MODELS, PLANS, TRAINED, Kind, Workshop

EVERY = pytest.mark.parametrize("kind", KINDS, ids=str)
EVERY_PLAN = pytest.mark.parametrize("kind", PLANS, ids=str)
SLACK_BYTES = 32 << 20  # what CUDA and the libraries keep for themselves once they were used

Open = Callable[..., Engine]


def pixels(artifact: Artifact, count: int, seed: int = 0) -> Batch:
    """Random images for that model."""
    size = artifact.manifest.input.crop
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def free_bytes() -> int:
    """Free memory of the current card."""
    from cuda.bindings import runtime as cudart

    gc.collect()
    error, free, _ = cudart.cudaMemGetInfo()
    assert error == cudart.cudaError_t.cudaSuccess
    return int(free)


@EVERY
@pytest.mark.parametrize("model", MODELS)
def test_pytorch(workshop: Workshop, opened: Open, model: str, kind: Kind) -> None:
    """Its answers are PyTorch's on the same card, as closely as its precision allows."""
    reference = workshop.torch(model)
    images = reference_of(workshop.artifact(model)).images
    expected = np.concatenate([reference.run(images[place : place + 8]) for place in range(0, len(images), 8)])
    reference.close()
    report = compare(opened(model, kind), kind.precision, images, expected)
    print(f"\n{model} on {report.device}: {figures(report)}")
    assert report.passed, figures(report)


@pytest.mark.parametrize("flavour", [Runtime.TENSORRT, Runtime.TENSORRT_RTX])
def test_int8(workshop: Workshop, opened: Open, flavour: Runtime) -> None:
    """A network of 8 bits gives the answers that its artifact keeps, as closely as int8 allows."""
    kind = Kind(flavour, Precision.INT8)
    reference = reference_of(workshop.artifact(TRAINED))
    report = compare(opened(TRAINED, kind), kind.precision, reference.images, reference.probabilities)
    print(f"\n{TRAINED} on {report.device}: {figures(report)}")
    assert report.passed, figures(report)


@EVERY_PLAN
def test_graph_equals_plain(workshop: Workshop, opened: Open, kind: Kind) -> None:
    """At every batch size, in any order, a CUDA graph gives the bytes of the plain calls."""
    graph = opened("squeezenet1_1", kind)
    plain = opened("squeezenet1_1", kind, launch=Launch.CALLS)
    assert isinstance(graph, TensorRtEngine)
    if kind.runtime is Runtime.TENSORRT:
        assert graph.captured == (1, 2, 4, 8, 16, 32)
    for count in [*range(1, MAX_BATCH + 1), *range(MAX_BATCH, 0, -5)]:
        images = pixels(workshop.artifact("squeezenet1_1"), count, seed=count)
        np.testing.assert_array_equal(graph.run(images), plain.run(images))


@EVERY
def test_threads(workshop: Workshop, opened: Open, kind: Kind) -> None:
    """Batches of several threads get the answers that they get alone."""
    engine = opened("squeezenet1_1", kind, slots=2)
    batches = [pixels(workshop.artifact("squeezenet1_1"), 1 + seed % 8, seed) for seed in range(64)]
    alone = [engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine.run, batches))
    for expected, given in zip(alone, together, strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-6)


@EVERY
def test_two_models(workshop: Workshop, opened: Open, kind: Kind) -> None:
    """Two models that run at once give what each gives alone."""
    engines = {model: opened(model, kind) for model in ("tiny", "squeezenet1_1")}
    images = {model: pixels(workshop.artifact(model), 8) for model in engines}
    alone = {model: engine.run(images[model]) for model, engine in engines.items()}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(50):
            for model, given in zip(
                engines, pool.map(lambda model: engines[model].run(images[model]), engines), strict=True
            ):
                np.testing.assert_allclose(given, alone[model], atol=1e-6)


@EVERY
def test_memory_comes_back(workshop: Workshop, kind: Kind) -> None:
    """Loaded and unloaded twenty times, a model leaves the card's memory as it was after the first time."""
    images = pixels(workshop.artifact("squeezenet1_1"), 8)
    left = []
    for _ in range(20):
        engine = workshop.open("squeezenet1_1", kind, slots=2)
        engine.run(images)
        engine.close()
        del engine
        left.append(free_bytes())
    print(f"\nfree after each of 20 loads, MiB: {[value >> 20 for value in left]}")
    assert left[-1] > left[0] - SLACK_BYTES


@EVERY_PLAN
def test_memory_is_what_it_says(workshop: Workshop, kind: Kind) -> None:
    """What an engine says that it holds is what the card has less of, but for what CUDA keeps for itself."""
    workshop.open("squeezenet1_1", kind).close()  # the context and the libraries are loaded
    before = free_bytes()
    engine = workshop.open("squeezenet1_1", kind, slots=2)
    taken = before - free_bytes()
    print(f"\nsays {engine.memory_bytes >> 20} MiB, took {taken >> 20} MiB")
    engine.close()
    assert abs(taken - engine.memory_bytes) < 4 * SLACK_BYTES


@EVERY
@pytest.mark.parametrize("model", MODELS)
def test_throughput(workshop: Workshop, opened: Open, model: str, kind: Kind) -> None:
    """Printed by batch size; a larger batch is worth its wait."""
    engine = opened(model, kind)
    rates: dict[int, float] = {}
    for size in (1, 2, 4, 8, 16, 32):
        images, done = pixels(workshop.artifact(model), size), 0
        engine.run(images)
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            engine.run(images)
            done += 1
        rates[size] = done * size / (time.monotonic() - began)
    print(f"\n{model} {kind}: " + ", ".join(f"batch {size} {rate:.0f}/s" for size, rate in rates.items()))
    assert max(rates[16], rates[32]) > rates[1]


@EVERY
def test_gate(workshop: Workshop, opened: Open, kind: Kind, tmp_path: Path) -> None:
    """The artifact's own answers are met on this card, and the report is read back instead of measured again."""
    artifact = workshop.artifact("squeezenet1_1")
    subject = CheckedEngine(
        engine_sha256="e",
        reference_sha256="r",
        runtime=kind.runtime,
        runtime_version="v",
        precision=kind.precision,
        card=workshop.card.name,
        driver=driver_version() or "unknown",
    )
    gate = ParityCheck.of(artifact, subject, MAX_BATCH, tmp_path)
    assert gate.stored() is None
    report = gate.run(opened("squeezenet1_1", kind), reference_of(artifact))
    assert report.passed, figures(report)
    assert gate.stored() == report


def test_onnxruntime_is_strict(workshop: Workshop, opened: Open) -> None:
    """The CUDA provider really runs on the card: its session lists it first and takes no other."""
    kind = next(kind for kind in KINDS if kind.runtime is Runtime.ONNXRUNTIME_CUDA)
    engine = opened("tiny", kind)
    assert isinstance(engine, OnnxRuntimeEngine)
    assert engine.describe().device == f"cuda:{workshop.card.index}"
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(workshop.artifact("tiny").graph, options, providers=["CUDAExecutionProvider"])
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    images = pixels(workshop.artifact("tiny"), 5)
    binding = session.io_binding()
    binding.bind_cpu_input("image", images)
    binding.bind_output("probabilities", "cuda", workshop.card.index)
    session.run_with_iobinding(binding)
    (bound,) = binding.copy_outputs_to_cpu()
    np.testing.assert_allclose(engine.run(images), bound, atol=1e-6)


def test_plan_for_another_model(workshop: Workshop) -> None:
    """A real plan whose tensors are not those of the artifact is refused before it runs."""
    kind = Kind(Runtime.TENSORRT_RTX, PLANS[0].precision)
    plan, other = workshop.plan("tiny", kind), workshop.artifact("squeezenet1_1")
    assert CATALOG["tiny"].input.crop != CATALOG["squeezenet1_1"].input.crop
    with pytest.raises(EngineUnavailableError, match="is no engine of squeezenet1_1"):
        TensorRtEngine(plan, other, card=workshop.card, slots=1, max_batch=8, cache=workshop.root / "cache")
