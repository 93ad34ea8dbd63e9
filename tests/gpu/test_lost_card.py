"""A CUDA context that a kernel has poisoned, in a process of its own: the engine says that its card is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.conftest import PLANS, Kind, Workshop

ROOT = Path(__file__).resolve().parents[2]

# One instruction that stores to an address that nobody has.
KERNEL = """
.version 7.0
.target sm_75
.address_size 64
.visible .entry poison()
{
    .reg .b64 %address;
    .reg .b32 %value;
    mov.u64 %address, 64;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
"""

POISONED = """
import os, sys
from pathlib import Path
import numpy as np
from cuda.bindings import driver
from models.artifact.artifact import load
from models.artifact.engine_plan import read_plans
from service.common.gpus import cards
from service.engines.base import CardLostError
from service.engines.tensorrt.engine import TensorRtEngine

root, stem, kernel = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
artifact = load(root, "tiny")
(plan,) = [plan for plan in read_plans(artifact.folder)[0] if plan.record.stem == stem]
engine = TensorRtEngine(plan, artifact, card=cards().found[0], slots=1, max_batch=8, cache=root / "cache")
images = np.zeros((2, 32, 32, 3), dtype=np.uint8)
assert engine.run(images).shape == (2, 1000)

def checked(result):
    error, *values = result
    assert error == driver.CUresult.CUDA_SUCCESS, error
    return values[0] if values else None

module = checked(driver.cuModuleLoadData(kernel.encode() + b"\\0"))
function = checked(driver.cuModuleGetFunction(module, b"poison"))
checked(driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0))
driver.cuCtxSynchronize()
for _ in range(2):
    try:
        engine.run(images)
    except CardLostError as error:
        print("lost:", error, flush=True)
engine.close()
print("closed", flush=True)
os._exit(1)
"""


@pytest.mark.parametrize("kind", PLANS, ids=str)
def test_poisoned(workshop: Workshop, kind: Kind) -> None:
    """After an illegal address each batch raises CardLostError, and closing neither hangs nor ends the process."""
    plan = workshop.plan("tiny", kind)
    command = [sys.executable, "-c", POISONED, str(workshop.root), plan.record.stem, KERNEL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("lost:")]) == 2, done.stderr
    assert lines[-1] == "closed"
    assert done.returncode == 1
