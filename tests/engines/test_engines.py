"""The engines: one answer whichever runs, several threads at once, and never something else than was asked for."""

import gc
import locale
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from export.gate_images import random_pixels
from models.artifact.artifact import GRAPH, WEIGHTS, Artifact
from models.artifact.engine_plan import ComputeCapability
from models.catalog import CATALOG
from service.common.cpus import cpu_quota
from service.common.gpus import Card
from service.common.types import Batch, Precision, Runtime
from service.engines.base import CPU, CardLostError, Engine, EngineUnavailableError
from service.engines.onnxruntime import OnnxRuntimeEngine, has_cuda
from service.engines.openvino import OpenVinoEngine, has_bf16
from service.engines.selection.opening import build_engine
from service.engines.selection.select import EngineOptions, installed
from service.engines.torch import TorchEngine

RUNTIMES = (Runtime.OPENVINO, Runtime.ONNXRUNTIME, Runtime.TORCH)
THREADS = 4


@pytest.fixture(scope="module", autouse=True)
def _threads_of_torch() -> Iterator[None]:
    """Other modules find torch's pool of threads as it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def engines(tiny: Artifact) -> Iterator[dict[Runtime, Engine]]:
    """Every engine on the CPU in f32, as the service builds it for two CPUs."""
    options = EngineOptions(cpus=2, max_batch=8)
    opened = {runtime: build_engine(tiny, runtime, Precision.F32, options) for runtime in RUNTIMES}
    yield opened
    for engine in opened.values():
        engine.close()


def pixels(count: int) -> Batch:
    """Random images for `tiny`."""
    return random_pixels(CATALOG["tiny"].input, count)


@pytest.mark.parametrize("size", range(1, 9))
def test_engines_agree(engines: dict[Runtime, Engine], size: int) -> None:
    """At each batch size all engines give float32 [N, C], rows that sum to one, and the same within 1e-5."""
    images = pixels(size)
    expected = engines[Runtime.TORCH].run(images)

    for runtime, engine in engines.items():
        given = engine.run(images)
        assert given.dtype == np.float32, runtime
        assert given.shape == (size, 1000), runtime
        np.testing.assert_allclose(given.sum(axis=1), 1, atol=1e-5, err_msg=runtime)
        np.testing.assert_allclose(given, expected, atol=1e-5, rtol=1e-3, err_msg=runtime)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_at_once_get_their_own_answers(engines: dict[Runtime, Engine], runtime: Runtime) -> None:
    """Batches of different sizes from more threads than the engine has slots do not mix, nor write over each other."""
    engine = engines[runtime]
    images = pixels(64)
    batches = [images[start : start + 1 + start % 5] for start in range(56)]
    alone = [engine.run(batch) for batch in batches]
    kept = [answers.copy() for answers in alone]

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(engine.run, batches))

    for first, copy, second in zip(alone, kept, together, strict=True):
        np.testing.assert_array_equal(first, copy)
        np.testing.assert_allclose(second, first, atol=1e-6)


def test_engines_say_what_runs(engines: dict[Runtime, Engine]) -> None:
    """Runtime, version, device and precision are those of the installed packages."""
    versions = {
        Runtime.OPENVINO: version("openvino"),
        Runtime.ONNXRUNTIME: ort.__version__,
        Runtime.TORCH: torch.__version__,
    }
    for runtime, engine in engines.items():
        info = engine.describe()
        assert (info.runtime, info.version) == (runtime, versions[runtime])
        assert (info.device, info.precision) == ("cpu", "f32")


def test_f32_is_asked_for_in_so_many_words(engines: dict[Runtime, Engine]) -> None:
    """On a CPU with bf16 OpenVINO would choose it by itself; an engine in f32 computes in f32."""
    engine = engines[Runtime.OPENVINO]
    assert isinstance(engine, OpenVinoEngine)
    assert engine._compiled is not None
    assert engine._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


@pytest.mark.parametrize(("slots", "threads"), [(1, 1), (1, 2), (2, 1)])
def test_threads_are_not_pinned(tiny: Artifact, slots: int, threads: int) -> None:
    """With pinning an inference was once seen never to return: it is off in what was compiled."""
    engine = OpenVinoEngine(tiny, Precision.F32, slots=slots, threads=threads, max_batch=1)
    assert engine._compiled is not None
    assert engine._compiled.get_property("ENABLE_CPU_PINNING") is False
    assert int(engine._compiled.get_property("NUM_STREAMS")) == slots
    assert int(engine._compiled.get_property("INFERENCE_NUM_THREADS")) <= slots * threads
    engine.close()


def test_the_locale_stays(tiny: Artifact) -> None:
    """OpenVINO changes the locale of the process for a moment: many openings at once leave it as it was."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        with ThreadPoolExecutor(4) as threads:
            for engine in threads.map(
                lambda slots: OpenVinoEngine(tiny, Precision.F32, slots=slots, threads=1, max_batch=2), [1, 2] * 20
            ):
                engine.close()
        assert locale.setlocale(locale.LC_ALL) == before
    finally:
        locale.setlocale(locale.LC_ALL, before)


@pytest.mark.skipif(not has_bf16(), reason="needs a CPU with bf16 (AMX or AVX-512-BF16)")
def test_bf16_computes_in_bf16_and_says_so(tiny: Artifact, engines: dict[Runtime, Engine]) -> None:
    """The answers in bf16 are close to those in f32, and are not them."""
    engine = OpenVinoEngine(tiny, Precision.BF16, slots=1, threads=1, max_batch=8)
    images = pixels(8)
    f32, bf16 = engines[Runtime.OPENVINO].run(images), engine.run(images)

    assert engine.describe().precision == "bf16"
    assert 0 < np.abs(f32 - bf16).max() < 0.03
    assert bf16.dtype == np.float32


class _OtherPrecision:
    """A `Core` whose compiled models say that they compute in f16 whatever was asked for."""

    def compile_model(self, *_arguments: object) -> "_OtherPrecision":
        return self

    def get_property(self, _name: str) -> "_OtherPrecision":
        return self

    def get_type_name(self) -> str:
        return "f16"


def test_another_precision_than_asked_for_is_refused(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 on a CPU without it is not emulated; nor is there an engine that says it computes in something else."""
    monkeypatch.setattr("service.engines.openvino.has_bf16", lambda: False)
    with pytest.raises(EngineUnavailableError, match="no bf16 instructions"):
        OpenVinoEngine(tiny, Precision.BF16, slots=1, threads=1, max_batch=8)

    monkeypatch.setattr("service.engines.openvino.Core", _OtherPrecision)
    with pytest.raises(EngineUnavailableError, match="asked for f32 but chose f16"):
        OpenVinoEngine(tiny, Precision.F32, slots=1, threads=1, max_batch=8)


def test_slots_times_threads_never_exceeds_the_cpus() -> None:
    """However many CPUs there are, no more threads run than that, and at least one does."""
    for cpus in range(1, 257):
        layout = EngineOptions(cpus=cpus).on_cpu
        assert 1 <= layout.slots <= 4, cpus
        assert layout.threads >= 1, cpus
        assert layout.slots * layout.threads <= cpus


def test_engines_get_the_threads_they_were_given(tiny: Artifact) -> None:
    """Built for the CPUs of this process, the runtimes have taken slots and threads, and no more than there are."""
    options = EngineOptions(cpus=cpu_quota())
    layout = options.on_cpu
    openvino = build_engine(tiny, Runtime.OPENVINO, Precision.F32, options)
    onnxruntime = build_engine(tiny, Runtime.ONNXRUNTIME, Precision.F32, options)
    assert isinstance(openvino, OpenVinoEngine)
    assert isinstance(onnxruntime, OnnxRuntimeEngine)
    assert openvino._compiled is not None

    assert (openvino.slots, onnxruntime.slots) == (layout.slots, layout.slots)
    assert int(openvino._compiled.get_property("NUM_STREAMS")) == layout.slots
    assert int(openvino._compiled.get_property("INFERENCE_NUM_THREADS")) <= options.cpus
    session = onnxruntime._session.get_session_options()
    callers = layout.slots  # each works beside the pool, which has one thread less than its setting
    assert callers + session.intra_op_num_threads - 1 == layout.slots * layout.threads
    assert session.inter_op_num_threads == 1
    assert session.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_torch_engine_takes_the_threads_it_was_given(tiny: Artifact) -> None:
    """torch has one pool of threads for the process, and the engine sets its size."""
    for threads in (2, 1):
        TorchEngine(tiny, threads=threads, max_batch=8)
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize("runtime", [Runtime.OPENVINO, Runtime.ONNXRUNTIME])
@pytest.mark.parametrize("content", [b"", b"this is no graph", None], ids=["empty", "text", "cut off"])
def test_damaged_graph_is_a_clear_error(
    tiny: Artifact, tmp_path: Path, runtime: Runtime, content: bytes | None
) -> None:
    """A file that is not a whole graph is an EngineUnavailableError of one line, whichever engine reads it."""
    data = tiny.graph.read_bytes()[:5000] if content is None else content
    (tmp_path / GRAPH).write_bytes(data)

    with pytest.raises(EngineUnavailableError, match=GRAPH) as caught:
        build_engine(replace(tiny, folder=tmp_path), runtime, Precision.F32, EngineOptions(cpus=1))

    assert "\n" not in str(caught.value).strip()
    assert "src/" not in str(caught.value).partition(GRAPH)[0]


@pytest.mark.parametrize("runtime", [Runtime.OPENVINO, Runtime.ONNXRUNTIME])
def test_failed_run_frees_its_slot(tiny: Artifact, runtime: Runtime) -> None:
    """After a batch of a wrong shape failed, the one slot of the engine takes the next batch."""
    engine = build_engine(tiny, runtime, Precision.F32, EngineOptions(cpus=1))
    assert engine.slots == 1

    with pytest.raises(Exception, match=r"(?i)shape|dimension"):
        engine.run(np.zeros((1, 31, 32, 3), dtype=np.uint8))

    assert engine.run(pixels(1)).shape == (1, 1000)
    engine.close()


class _Failing:
    """An infer request, or a session, that fails in its runtime's own words."""

    def __init__(self, words: str) -> None:
        self.words = words

    def run(self, *_arguments: object, **_options: object) -> object:
        raise RuntimeError(self.words)

    infer = run


def test_lost_card_is_said(tiny: Artifact) -> None:
    """A CUDA error after which nothing runs is no ordinary failure; the session is never let go, for that may abort."""
    engine = OnnxRuntimeEngine(tiny, Runtime.ONNXRUNTIME, slots=1, threads=1, max_batch=8)
    session = _Failing("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered")
    alive = weakref.ref(session)
    engine._session = session
    with pytest.raises(CardLostError, match="an illegal memory access"):
        engine.run(pixels(1))
    engine.close()
    del session, engine
    gc.collect()
    assert alive() is not None


def test_out_of_memory_is_a_memory_error(tiny: Artifact) -> None:
    """The batcher halves a batch on MemoryError, so each runtime's own way to say it becomes one."""
    openvino = OpenVinoEngine(tiny, Precision.F32, slots=1, threads=1, max_batch=8)
    openvino._requests.get()
    openvino._requests.put(_Failing("bad allocation"))
    onnxruntime = OnnxRuntimeEngine(tiny, Runtime.ONNXRUNTIME, slots=1, threads=1, max_batch=8)
    onnxruntime._session = _Failing(
        "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 602112000"
    )

    for engine in (openvino, onnxruntime):
        with pytest.raises(MemoryError):
            engine.run(pixels(1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_closed_engine_gives_its_memory_back(tiny: Artifact, runtime: Runtime) -> None:
    """After close nothing holds the compiled network, and a run is an error at once, not a wait without end."""
    engine = build_engine(tiny, runtime, Precision.F32, EngineOptions(cpus=1))
    engine.run(pixels(2))
    held = {OpenVinoEngine: "_compiled", OnnxRuntimeEngine: "_session", TorchEngine: "_served"}[type(engine)]
    network = weakref.ref(getattr(engine, held))

    engine.close()
    gc.collect()

    assert network() is None
    with pytest.raises((RuntimeError, AttributeError)):
        engine.run(pixels(1))


def test_torch_engine_needs_the_weights(tiny: Artifact, tmp_path: Path) -> None:
    """An artifact without a whole state dict, or of a network that the catalog does not know, is refused by name."""
    with pytest.raises(EngineUnavailableError, match=rf"{WEIGHTS}.*--runtime"):
        TorchEngine(replace(tiny, folder=tmp_path), threads=1, max_batch=8)
    (tmp_path / WEIGHTS).write_bytes(b"this is no state dict")
    with pytest.raises(EngineUnavailableError, match=WEIGHTS):
        TorchEngine(replace(tiny, folder=tmp_path), threads=1, max_batch=8)
    renamed = replace(tiny, manifest=tiny.manifest.model_copy(update={"name": "mine"}))
    with pytest.raises(EngineUnavailableError, match="mine"):
        TorchEngine(renamed, threads=1, max_batch=8)


@pytest.mark.parametrize("cuda", [False, True])
def test_cuda_is_installed_where_onnxruntime_has_it(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    """ONNX Runtime's own list of providers decides: the package of the CPU has a module of the same name."""
    providers = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)

    assert installed(Runtime.ONNXRUNTIME)
    assert installed(Runtime.ONNXRUNTIME_CUDA) is cuda


@pytest.mark.skipif(has_cuda(), reason="this ONNX Runtime was built with CUDA")
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available:UserWarning")
def test_cuda_without_a_card_never_runs_on_the_cpu(tiny: Artifact) -> None:
    """The real ONNX Runtime, asked for CUDA that it does not have, gives no engine."""
    with pytest.raises(EngineUnavailableError, match="CUDAExecutionProvider"):
        OnnxRuntimeEngine(tiny, Runtime.ONNXRUNTIME_CUDA, slots=1, threads=1, max_batch=8)


class _SilentFallback:
    """A session that was asked for CUDA, logged a line and took the CPU, as ONNX Runtime does without a driver."""

    asked: list[tuple[str, dict[str, str]]]
    options: ort.SessionOptions

    def __init__(self, _graph: Path, options: ort.SessionOptions, providers: list[tuple[str, dict[str, str]]]) -> None:
        _SilentFallback.options, _SilentFallback.asked = options, providers

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


@pytest.mark.parametrize("index", [None, 0, 1])
def test_silent_fallback_of_onnxruntime_is_refused(
    tiny: Artifact, monkeypatch: pytest.MonkeyPatch, index: int | None
) -> None:
    """A session that took the CPU is refused; it was told not to, to compute in real f32, and on which card."""
    card = None if index is None else Card(index, "a card", ComputeCapability(7, 5), 11 << 30, 10 << 30)
    monkeypatch.setattr(ort, "InferenceSession", _SilentFallback)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)

    with pytest.raises(EngineUnavailableError, match="asked for CUDAExecutionProvider and chose CPUExecutionProvider"):
        OnnxRuntimeEngine(tiny, Runtime.ONNXRUNTIME_CUDA, slots=1, threads=1, max_batch=8, card=card)

    assert _SilentFallback.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "device_id": str(index or 0)}
    assert _SilentFallback.asked == [("CUDAExecutionProvider", options)]


def test_openvino_forks_nothing() -> None:
    """A fresh process that imports the engine and asks the CPU for bf16 forks no process to send statistics from."""
    program = """
import atexit, os, sys
forks = []
os.register_at_fork(before=lambda: forks.append(1))
atexit.register(lambda: print(len(forks)))  # after the threads, which may fork too, have ended
from service.engines.openvino import has_bf16
has_bf16()
assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_what_an_engine_holds_grows_with_what_it_is_given(tiny: Artifact) -> None:
    """Twice the graph, and 128 bytes for each pixel of the rows of all slots: larger batches hold more."""
    graph = tiny.graph.stat().st_size
    sizes = []
    for slots, max_batch in ((1, 1), (2, 1), (2, 4)):
        engine = OnnxRuntimeEngine(tiny, Runtime.ONNXRUNTIME, slots=slots, threads=1, max_batch=max_batch)
        sizes.append(engine.memory_bytes)
        assert engine.device == CPU
        engine.close()
    assert sizes == [2 * graph + rows * 32 * 32 * 128 for rows in (1, 2, 8)]
