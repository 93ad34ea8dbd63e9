"""Describes the server and its models as the Open Inference Protocol does: metadata, configuration, repository index.

The descriptions are JSON values; the messages of gRPC have the same fields.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from service.common.errors import BadRequest, ModelNotFound
from service.common.model_info import ModelDetail, ModelState, ModelVersion
from service.inference.dataplane import DataPlane
from service.inference.tensors import FLOATS, IMAGE, PIXELS, PROBABILITIES, read_version

_EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "schedule_policy", "parameters")
_LARGEST_BATCH = 64  # of an engine whose largest batch is not known
_STATES = {ModelState.READY: "READY", ModelState.LOADING: "LOADING"}
_CONFIG = '{"version_policy": {"specific": {"versions": [2]}}}'
_LONGEST_NAME = 60  # of a client's own name in an error message
_LONGEST_CONFIG = 64 << 10  # in characters


async def exported(data_plane: DataPlane, name: str, version: int | None) -> ModelDetail:
    """What is known of that version of an exported model. Raises ModelNotFound and NotReady."""
    detail = await data_plane.model(name, version)
    if detail.version is None:
        raise ModelNotFound(f"Request for unknown model: {detail.name!r} is not exported")
    return detail


async def model_names(data_plane: DataPlane) -> list[str]:
    """The name of each exported or loaded model, once."""
    return list(dict.fromkeys(one.name for one in await data_plane.versions()))


def server_metadata(data_plane: DataPlane) -> dict[str, Any]:
    """The name and version of the server, and the extensions that it has."""
    return {
        "name": "topfive",
        "version": version("topfive"),
        "extensions": sorted((*_EXTENSIONS, *data_plane.extensions)),
    }


def model_metadata(detail: ModelDetail) -> dict[str, Any]:
    """The tensors of a model, and in `properties` what is known of it."""
    facts = {
        "family": detail.family,
        "parameters": detail.parameters,
        "macs": detail.macs,
        "weights": detail.weights,
        "acc1": detail.acc1,
        "acc5": detail.acc5,
        "acc_dataset": detail.acc_dataset,
        "preprocessing": f"RGB, resize {detail.input.resize} {detail.input.interpolation}, crop {detail.input.crop}",
    }
    size = detail.input.crop
    return {
        "name": detail.name,
        "versions": [str(one) for one in detail.versions],
        "platform": _platform(detail),
        "inputs": [{"name": IMAGE, "datatype": PIXELS, "shape": [-1, size, size, 3]}],
        "outputs": [{"name": PROBABILITIES, "datatype": FLOATS, "shape": [-1, detail.classes]}],
        "properties": {name: str(value) for name, value in facts.items() if value is not None},
    }


def model_config(detail: ModelDetail) -> dict[str, Any]:
    """What Triton's clients read of the configuration of a model. Dimensions are without that of the batch."""
    size, layout = detail.input.crop, detail.layout
    largest = layout.max_batch if layout else _LARGEST_BATCH
    _, _, gpu = (detail.engine.device if detail.engine else "").partition(":")
    return {
        "name": detail.name,
        "platform": _platform(detail),
        "backend": detail.engine.runtime if detail.engine else "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": largest,
        "input": [
            {"name": IMAGE, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [size, size, 3]},
        ],
        "output": [
            {
                "name": PROBABILITIES,
                "data_type": "TYPE_FP32",
                "dims": [detail.classes],
                "label_filename": "labels.csv",
            }
        ],
        "instance_group": [
            {
                "name": f"{detail.name}_0",
                "kind": "KIND_GPU" if gpu else "KIND_CPU",
                "count": layout.slots if layout else 1,
                "gpus": [int(gpu)] if gpu else [],
            }
        ],
        "dynamic_batching": {"preferred_batch_size": [largest], "max_queue_delay_microseconds": 0},
    }


def _platform(detail: ModelDetail) -> str:
    runtime = detail.engine.runtime if detail.engine else "onnx"
    return "tensorrt_plan" if runtime.startswith("tensorrt") else f"{runtime}_onnx"


def repository_index(known: Sequence[ModelVersion], ready: bool) -> list[dict[str, str]]:
    """The versions of the models with their states; with `ready` only those that are ready."""
    return [
        {
            "name": one.name,
            "version": str(one.version),
            "state": _STATES.get(one.state, "UNAVAILABLE"),
            "reason": one.reason,
        }
        for one in known
        if one.state is ModelState.READY or not ready
    ]


def read_version_policy(parameters: Mapping[str, object]) -> int | None:
    """The version that a load asks for in its model configuration; None is the newest. Raises BadRequest."""
    if others := parameters.keys() - {"config"}:
        raise BadRequest(f"the parameter {min(others)[:_LONGEST_NAME]!r} of a load is not taken; there is config")
    if "config" not in parameters:
        return None
    config = str(parameters["config"])
    try:
        if len(config) > _LONGEST_CONFIG:
            raise ValueError
        (number,) = json.loads(config)["version_policy"]["specific"]["versions"]
        return read_version(str(number))
    except (BadRequest, KeyError, RecursionError, TypeError, ValueError):
        raise BadRequest(f"a load reads the version of its config alone, such as {_CONFIG}") from None
