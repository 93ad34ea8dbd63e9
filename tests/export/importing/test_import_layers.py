"""The layers of an imported ONNX graph: by hand, and against the tables of catalog networks that were exported."""

import json
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnx.numpy_helper import from_array

from export.importing.conversion import variants
from export.importing.layer_table import STAGE, graph_layers
from export.importing.pipeline import ImportRequest, import_model
from export.importing.signature import ChannelLayout, Signature
from models.analysis.cost import Cost
from models.analysis.layer_table import Layer, LayerTable, Stage, read_layers
from models.analysis.trace import network_layers
from models.artifact.artifact import read_manifest
from models.build import build
from models.catalog import CATALOG
from service.cli.main import main
from tests.conftest import NullReporter
from tests.onnx_models import classifier, model_of, recipe
from tests.serving import serving


def table_of(model: ModelProto, channels: int = 3, layout: ChannelLayout = ChannelLayout.NCHW) -> LayerTable:
    """The layers of a graph whose input has fixed axes, batch first."""
    image = model.graph.input[0]
    batch, *axes = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    element, output = image.type.tensor_type.elem_type, model.graph.output[0].name
    return graph_layers(model, Signature(image.name, layout, element, batch, axes[1], channels, output), batch)


def chain(
    *nodes: onnx.NodeProto, image: list[int], **stored: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> ModelProto:
    """A graph of these nodes from `x` of that shape; the last one's output is the graph's."""
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return model_of(nodes, [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)], [output], stored)


def ones(*shape: int) -> NDArray[np.float32]:
    """Stored values."""
    return np.ones(shape, dtype=np.float32)


def network(batch: int) -> ModelProto:
    """A grouped convolution, a batch norm, a PRelu, a product, and a single number that is not learned."""
    return chain(
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1], group=2),
        helper.make_node("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"], name="norm"),
        helper.make_node("PRelu", ["n", "slope"], ["r"], name="act"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Mul", ["f", "half"], ["h"], name="halve"),
        helper.make_node("MatMul", ["h", "fc"], ["l"], name="fc"),
        helper.make_node("Add", ["l", "shift"], ["y"], name="shift"),
        image=[batch, 4, 8, 8],
        w=ones(6, 2, 3, 3),
        b=ones(6),
        s=ones(6),
        o=ones(6),
        m=ones(6),
        v=ones(6),
        slope=ones(6, 1, 1),
        half=np.array(0.5, dtype=np.float32),
        fc=ones(6, 10),
        shift=ones(10),
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_each_node_by_hand(batch: int) -> None:
    """Every field of every row, for one image whatever the batch; no receptive field is given, and one stage."""
    half, pooled = (6, 4, 4), (6, 1, 1)
    table = table_of(network(batch), 4)

    assert table.layers == (
        Layer("conv", "Conv", STAGE, (4, 8, 8), half, 114, 1728, None),
        Layer("norm", "BatchNormalization", STAGE, half, half, 12, 0, None),
        Layer("act", "PRelu", STAGE, half, half, 6, 0, None),
        Layer("pool", "GlobalAveragePool", STAGE, half, pooled, 0, 0, None),
        Layer("fc", "MatMul", STAGE, (6,), (10,), 60, 60, None),
        Layer("shift", "Add", STAGE, (10,), (10,), 10, 0, None),
    )
    assert table.stages == (Stage(STAGE, 6, (10,), 114 + 12 + 6 + 60 + 10, 1728 + 60, None),)
    assert table.cost == Cost(114 + 12 + 6 + 60 + 10, 1728 + 60)


def test_shared_values_count_once() -> None:
    """A weight that two nodes use is one weight, and both of them multiply."""
    model = network(1)
    model.graph.node.append(helper.make_node("MatMul", ["h", "fc"], ["again"], name="again"))

    rows = {layer.name: layer for layer in table_of(model, 4).layers}

    assert (rows["fc"].parameters, rows["again"].parameters) == (60, 0)
    assert rows["fc"].macs == rows["again"].macs == 60


def test_shapes_that_the_graph_computes() -> None:
    """A Reshape to a shape worked out at run time hides nothing: the convolution after it is whole."""
    model = network(1)
    for node in reversed(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Mul", ["shape", "ones"], ["same"]),
            helper.make_node("Reshape", ["x", "same"], ["x2"]),
        ]
    ):
        model.graph.node.insert(0, node)
    model.graph.node[3].input[0] = "x2"
    model.graph.initializer.append(from_array(np.ones(4, dtype=np.int64), "ones"))

    assert table_of(model, 4) == table_of(network(1), 4)


def test_weight_behind_a_transpose() -> None:
    """A matrix that is transposed before its product multiplies as often, and is one parameter set."""
    model = chain(
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "t"], ["y"], name="fc"),
        image=[1, 3, 2, 2],
        w=ones(5, 12),
    )
    (layer,) = table_of(model).layers

    assert (layer.parameters, layer.macs) == (60, 60)


def test_channels_last() -> None:
    """A graph that keeps channels last has shapes in its own order, and the same costs."""
    model = chain(
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["a", "w"], ["b"], name="conv", pads=[1, 0, 1, 0], dilations=[1, 2]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 3, 1]),
        helper.make_node("Add", ["c", "shift"], ["d"], name="shift"),
        helper.make_node("MatMul", ["d", "mix"], ["e"], name="mix"),
        helper.make_node("ReduceMean", ["e"], ["f"], name="mean", axes=[1, 2], keepdims=0),
        helper.make_node("Gemm", ["f", "fc"], ["y"], name="fc"),
        image=[1, 8, 8, 3],
        w=ones(4, 3, 3, 3),
        shift=ones(4),
        mix=ones(4, 6),
        fc=ones(6, 2),
    )
    assert table_of(model, layout=ChannelLayout.NHWC).layers == (
        Layer("conv", "Conv", STAGE, (3, 8, 8), (4, 8, 4), 108, 3456, None),
        Layer("shift", "Add", STAGE, (8, 4, 4), (8, 4, 4), 4, 0, None),
        Layer("mix", "MatMul", STAGE, (8, 4, 4), (8, 4, 6), 24, 768, None),
        Layer("fc", "Gemm", STAGE, (6,), (2,), 12, 12, None),
    )


def test_transposed_and_depthwise() -> None:
    """A transposed convolution multiplies once per input value, a depthwise one once per channel."""
    model = chain(
        helper.make_node("Conv", ["x", "w"], ["a"], name="deep", group=3),
        helper.make_node("ConvTranspose", ["a", "u"], ["b"], name="up", strides=[2, 2]),
        helper.make_node("MaxPool", ["b"], ["y"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        image=[1, 3, 6, 6],
        w=ones(3, 1, 3, 3),
        u=ones(3, 5, 2, 2),
    )
    deep, up, pool = table_of(model).layers

    assert deep.macs == 3 * 9 * 16
    assert (up.kind, up.output, up.macs) == ("ConvTranspose", (5, 8, 8), 16 * 3 * 5 * 4)
    assert (pool.kind, pool.output) == ("MaxPool", (5, 4, 4))


def test_one_dimension() -> None:
    """Layers of a signal inside the network have their costs, too."""
    model = chain(
        helper.make_node("Reshape", ["x", "signal"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"], name="conv"),
        helper.make_node("MaxPool", ["b"], ["c"], name="pool", kernel_shape=[2], strides=[2]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"], name="mean"),
        image=[1, 3, 4, 4],
        signal=np.array([1, 3, 16]),
        w=ones(5, 3, 3),
    )
    conv, pool, mean = table_of(model).layers

    assert (conv.parameters, conv.macs, conv.output) == (45, 45 * 14, (5, 14))
    assert (pool.output, mean.output) == ((5, 7), (5, 1))


def test_quantised_convolutions() -> None:
    """A convolution of bytes with bytes is a convolution, and its weights and its bias are its parameters."""
    model = chain(
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z", "b"], ["c"], name="bytes"),
        helper.make_node("ConvInteger", ["c", "w2"], ["i"], name="whole", strides=[2, 2]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        image=[1, 3, 7, 7],
        s=np.array(1, dtype=np.float32),
        z=np.array(0, dtype=np.uint8),
        w=np.ones((4, 3, 3, 3), dtype=np.uint8),
        b=np.zeros(4, dtype=np.int32),
        w2=np.ones((2, 4, 3, 3), dtype=np.uint8),
    )
    first, second = table_of(model).layers

    assert (first.parameters, first.macs) == (112, 108 * 25)
    assert (second.parameters, second.macs) == (72, 72 * 4)


@cache
def exported(name: str, dynamo: bool, folder: Path) -> Path:
    """A catalog network with its seeded values, as one of torch's two exporters writes it."""
    path, size = folder / f"{name}.{dynamo}.onnx", CATALOG[name].input.crop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter warns that it is old
        torch.onnx.export(
            build(CATALOG[name]),
            (torch.zeros(1, 3, size, size),),
            path,
            dynamo=dynamo,
            verbose=False,
            external_data=False,
        )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the exported files of this module are."""
    return tmp_path_factory.mktemp("onnx")


def costs(table: LayerTable) -> list[tuple[object, ...]]:
    """What a table says of layers that multiply: their sizes and costs, not their names."""
    return [(one.input, one.output, one.macs) for one in table.layers if one.macs]


LARGE = [pytest.param(name, marks=pytest.mark.large) for name in ("googlenet", "densenet121", "efficientnet_b0")]


@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", *LARGE])
def test_exported_networks(folder: Path, name: str, dynamo: bool) -> None:
    """The table of an exported file has the layers of the catalog network in the same order."""
    own = network_layers(build(CATALOG[name]), CATALOG[name].input)

    table = table_of(onnx.load(exported(name, dynamo, folder)))

    assert costs(table) == costs(own)
    assert table.cost.macs == own.cost.macs == CATALOG[name].macs


@pytest.mark.anyio
async def test_shown_by_the_command_line_and_by_rest(folder: Path, tmp_path: Path) -> None:
    """The table in the artifact has the manifest's totals; `topfive layers` and REST show it."""
    root = tmp_path / "artifacts"
    text = "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
    file = exported("squeezenet1_1", False, folder)
    import_model(ImportRequest(file, "own", recipe(tmp_path, text)), root, NullReporter())

    result = CliRunner().invoke(main, ["layers", "own", "--json", "--artifacts", str(root)])
    shown = CliRunner().invoke(main, ["layers", "own", "--artifacts", str(root)], env={"COLUMNS": "200"})
    async with serving(root, models=("own",)) as running:
        reply = await running.http.get("/models/own/layers")

    version, manifest = read_manifest(root, "own")
    table = read_layers(root, version, manifest)
    assert table.cost == Cost(manifest.parameters, manifest.macs)
    assert reply.status_code == 200
    assert reply.json() == json.loads(result.stdout)
    rows = reply.json()["layers"]
    assert [row["name"] for row in rows] == [layer.name for layer in table.layers]
    assert (rows[0]["name"], rows[0]["macs"]) == ("/features/features.0/Conv", 64 * 27 * 111**2)
    assert (rows[0]["output"], rows[0]["receptive_field"]) == ([64, 111, 111], None)
    assert shown.exit_code == 0, shown.output
    assert "/features/features.0/Conv" in shown.output


def test_table_of_a_batch_that_cannot_be_freed() -> None:
    """A graph that takes three images at once has the table of one."""
    model = classifier(batch=3, head="reshape")
    fixed = list(
        variants(model, Signature("x", ChannelLayout.NCHW, TensorProto.FLOAT, 3, 16, 3, model.graph.output[0].name))
    )

    table = table_of(fixed[-1].model)

    assert [(layer.kind, layer.output, layer.macs) for layer in table.layers] == [
        ("GlobalAveragePool", (3, 1, 1), 0),
        ("Gemm", (4,), 12),
    ]
