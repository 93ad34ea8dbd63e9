"""Every network of the catalog, exported for real and run in each CPU engine. The large ones: `make test-all`."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from export.gate_images import photos, random_pixels
from export.pipeline import export
from export.weights_choice import WeightsChoice
from models.artifact.artifact import Artifact, WeightSource, load
from models.catalog import CATALOG, Architecture
from service.common.types import Batch, Precision, Probabilities, Runtime
from service.engines.selection.opening import open_engine
from service.engines.selection.select import EngineOptions
from tests.conftest import NullReporter

CPU_RUNTIMES = (Runtime.TORCH, Runtime.OPENVINO, Runtime.ONNXRUNTIME)
# The smallest of each family, VGG aside, whose smallest has 130 million parameters.
SMALL = {
    "lenet5",
    "alexnet_2012",
    "googlenet_2014",
    "googlenet",
    "resnet18",
    "densenet121",
    "efficientnet_b0",
    "squeezenet1_1",
    "tiny",
}

NETWORKS = [
    pytest.param(
        one,
        id=one.name,
        marks=[] if one.name in SMALL else [pytest.mark.large],
    )
    for one in CATALOG
    if "@" not in one.name  # the same networks as without
]


def answers(artifact: Artifact, runtime: Runtime, images: Batch) -> Probabilities:
    """What one engine gives, one image at a time and then all at once."""
    engine = open_engine(artifact, EngineOptions(runtime, Precision.F32, cpus=2, max_batch=len(images))).engine
    try:
        assert engine.describe().runtime == runtime
        single = np.concatenate([engine.run(images[index : index + 1]) for index in range(len(images))])
        assert np.abs(engine.run(images) - single).max() <= 1e-5
    finally:
        engine.close()
    return single


@pytest.mark.parametrize("architecture", NETWORKS)
def test_network(architecture: Architecture, tmp_path: Path) -> None:
    """It exports, passes the gate, is as large as the catalog says, and every CPU engine gives the same answers."""
    bundled = bool(architecture.default_weights and architecture.default_weights.file)
    weights = "pretrained" if bundled else "untrained"
    done = export(architecture, WeightsChoice.parse(weights, None), tmp_path, NullReporter())
    artifact = load(tmp_path, architecture.name)
    spec, manifest = artifact.manifest.input, artifact.manifest
    images = np.concatenate([photos(spec)[:2], random_pixels(spec, 1)])
    given = {runtime: answers(artifact, runtime, images) for runtime in CPU_RUNTIMES}

    assert done.manifest == manifest
    assert manifest.weights.source == WeightSource(weights)
    assert (manifest.parameters, manifest.macs) == (architecture.parameters, architecture.macs)
    assert manifest.parameters_train == architecture.parameters_train
    assert spec == (architecture.input if bundled else architecture.untrained_input or architecture.input)
    for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME):
        report = artifact.parity(runtime, Precision.F32)
        assert report is not None
        assert report.passed
        assert np.abs(given[runtime] - given[Runtime.TORCH]).max() <= 1e-4
    for rows in given.values():
        assert rows.shape == (len(images), architecture.classes)
        assert np.abs(rows.sum(axis=1) - 1).max() <= 1e-4
    assert len({row.tobytes() for row in given[Runtime.TORCH]}) == len(images)  # it looks at the image
    shutil.rmtree(tmp_path / architecture.name)
