"""The stand-ins have the surface of what they stand for; and what the code relies on in the real binding is so."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from models.artifact.engine_plan import Flavour
from service.engines.base import EngineUnavailableError
from service.engines.tensorrt import packages
from service.engines.tensorrt.cuda import tells_of_loss
from tests import fake_tensorrt
from tests.fake_cuda import CaptureMode, CopyKind, Error, FakeCudart

runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings: pip install '.[tensorrt-rtx]'")


def names(stand_in: type) -> list[str]:
    """What a stand-in offers under NVIDIA's names."""
    return [name for name in vars(stand_in) if not name.startswith("_")]


def test_functions() -> None:
    """Each function of the fake is CUDA's, with the same parameters."""
    functions = [name for name in names(FakeCudart) if inspect.isfunction(vars(FakeCudart)[name]) and name != "reserve"]
    assert len(functions) > 20
    for name in functions:
        expected = list(inspect.signature(getattr(runtime, name)).parameters)
        assert list(inspect.signature(vars(FakeCudart)[name]).parameters)[1:] == expected, name


@pytest.mark.parametrize(
    ("fake", "name"),
    [(Error, "cudaError_t"), (CopyKind, "cudaMemcpyKind"), (CaptureMode, "cudaStreamCaptureMode")],
)
def test_enums(fake: Any, name: str) -> None:
    """Each constant has CUDA's own number."""
    real = getattr(runtime, name)
    assert {member.name: int(member) for member in fake} == {
        member.name: int(getattr(real, member.name)) for member in fake
    }


def test_flags() -> None:
    """The flags are CUDA's."""
    for name in ("cudaStreamNonBlocking", "cudaEventBlockingSync", "cudaEventDisableTiming", "cudaHostAllocDefault"):
        assert int(getattr(runtime, name)) == getattr(FakeCudart, name), name


def test_lost_by_another_library() -> None:
    """ONNX Runtime's own sentence about a lost card is understood, and its others are not taken for one."""
    sentence = "CUDA failure {}: an illegal memory access was encountered ; GPU=0 ; hostname=h ; expr=cudaMemcpy(a, b)"
    assert tells_of_loss(f"[E:onnxruntime:, cuda_call.cc:119 CudaCall] {sentence.format(700)}")
    assert not tells_of_loss(sentence.format(2))
    assert not tells_of_loss("Failed to allocate memory")


def test_tensorrt() -> None:
    """Each class of the fake's, each of its methods with its parameters, and each constant is RTX's own."""
    try:
        trt = packages.module(Flavour.TENSORRT_RTX)
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    pairs = {
        "Runtime": fake_tensorrt._Runtime,
        "ICudaEngine": fake_tensorrt._Engine,
        "IExecutionContext": fake_tensorrt._Context,
        "IRuntimeConfig": fake_tensorrt._Config,
        "IRuntimeCache": fake_tensorrt._Cache,
    }
    checked = 0
    for real, fake in pairs.items():
        for name in names(fake):
            if name in ("name", "needs"):
                continue
            method = getattr(getattr(trt, real), name)
            checked += 1
            if inspect.isfunction(vars(fake)[name]):
                for parameter in list(inspect.signature(vars(fake)[name]).parameters)[1:]:
                    assert f"{parameter}: " in method.__doc__, f"{real}.{name}({parameter})"
    assert checked >= 19
    for real, values in {
        "TensorIOMode": ("INPUT", "OUTPUT"),
        "DataType": ("FLOAT", "HALF", "UINT8"),
        "EngineStat": ("TOTAL_WEIGHTS_SIZE",),
        "CudaGraphStrategy": ("DISABLED", "WHOLE_GRAPH_CAPTURE"),
        "DynamicShapesKernelSpecializationStrategy": ("LAZY", "EAGER", "NONE"),
    }.items():
        assert set(values) <= set(getattr(trt, real).__members__), real
    for name in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"):
        assert hasattr(trt.IRuntimeConfig, name)


DRIVER = """
#include <unistd.h>
__attribute__((constructor)) static void slow(void) { sleep(1); }
"""

WAIT = """
import sys, threading, time
from cuda.bindings import runtime

ticks, over = 0, threading.Event()

def tick():
    global ticks
    while not over.wait(0.01):
        ticks += 1

thread = threading.Thread(target=tick)
thread.start()
began, before = time.monotonic(), ticks
runtime.cudaEventSynchronize(0)
took_s, ticked = time.monotonic() - began, ticks - before
over.set()
thread.join()
print(took_s, ticked)
"""


def test_waiting_lets_other_threads_go_on(tmp_path: Path) -> None:
    """cudaEventSynchronize holds no other Python thread up: so a batch may wait in it and needs not poll.

    The wait is made by a driver that takes a second to load, which CUDA does in the first call.
    """
    compiler = which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux, for a driver that is slow to load")
    source = tmp_path / "driver.c"
    source.write_text(DRIVER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WAIT], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    took_s, ticked = map(float, done.stdout.split())
    assert took_s > 0.9, "the call did not load the driver"
    assert ticked > 20
