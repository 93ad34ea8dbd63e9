"""Every network of the catalog as engines in fp16 for all RTX cards, built for real. Large ones: `make test-all`."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from export.batch_norm import calibrate_batch_norm
from export.gate_images import photos, random_pixels
from export.onnx_writer import write_onnx
from export.tensorrt.builder import BuildJob, build_plan
from export.tensorrt.fp16 import to_half
from models.artifact.engine_plan import BatchProfile, ComputeCapability, Flavour
from models.build import ServedNetwork, build
from models.catalog import CATALOG, Architecture
from service.engines.tensorrt.packages import is_installed, module
from tests.models.test_architectures import SMALL

TURING = (ComputeCapability(7, 5),)
LATER = (ComputeCapability(8, 6), ComputeCapability(8, 9), ComputeCapability(12, 0))
NETWORKS = [
    pytest.param(one, id=one.name, marks=[] if one.name in SMALL - {"googlenet_2014"} else [pytest.mark.large])
    for one in CATALOG
    if "@" not in one.name  # the same networks as without
]
PROFILE = BatchProfile(smallest=1, best=8, largest=32)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_engines(architecture: Architecture, tmp_path: Path) -> None:
    """Its graph in fp16 gives PyTorch's answers on the CPU, and builds for Turing and for all cards since.

    A plan holds the values in two bytes each, and at most a fifth of that and 20 MB more.
    """
    if not is_installed(Flavour.TENSORRT_RTX):
        pytest.skip("TensorRT for RTX is not installed; run: pip install '.[tensorrt-rtx]'")
    trt, spec = module(Flavour.TENSORRT_RTX), architecture.untrained_input or architecture.input
    network = build(architecture)
    served = ServedNetwork(network, spec).eval()
    images = np.concatenate([photos(spec)[:2], random_pixels(spec, 2)])
    calibrate_batch_norm(served, images)
    path = tmp_path / "half.onnx"
    write_onnx(ServedNetwork(to_half(network), spec).eval(), spec, architecture.classes, path)
    with torch.inference_mode():
        wanted = np.log(served(torch.from_numpy(images[:3])).numpy())
    (given,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images[:3]})

    logits = np.log(given) - np.log(given).mean(axis=1, keepdims=True), wanted - wanted.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(logits[0], axis=1) * np.linalg.norm(logits[1], axis=1)
    assert ((logits[0] * logits[1]).sum(axis=1) / norms).min() >= 0.98  # noise in place of weights doubles rounding
    told: set[str] = set()
    for targets in (TURING, LATER):
        job = BuildJob(Flavour.TENSORRT_RTX, path, spec.crop, PROFILE, targets)
        written = build_plan(trt, job, lambda phase, done, total: told.add(phase))
        values_bytes = 2 * architecture.parameters
        assert 0.95 * values_bytes <= len(written.content) <= 1.2 * values_bytes + 20e6
    assert "Building engine" in told
