"""The layers of an imported ONNX graph: by hand, and against the tables of the networks that were exported."""

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnx.numpy_helper import from_array

from export.importing.conversion import variants
from export.importing.layer_table import graph_layers
from export.importing.pipeline import Request, import_model
from export.importing.signature import Layout, Signature
from models.analysis.cost import Cost
from models.analysis.layer_table import Kind, Layer, LayerTable, read_layers
from models.analysis.trace import network_layers
from models.artifact.artifact import read_manifest
from models.build import build
from models.catalog import CATALOG
from service.cli.main import main
from tests.conftest import NullReporter
from tests.onnx_models import classifier, model_of, recipe
from tests.serving import serving


def table_of(model: ModelProto, channels: int = 3, layout: Layout = Layout.NCHW) -> LayerTable:
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
    """A grouped convolution, a batch norm, a PRelu, a product, and a single number that nobody learned."""
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
    """Every field of every row, for one image whatever the batch."""
    half, pooled, end = (6, 4, 4), (6, 1, 1), (9, 9)
    assert table_of(network(batch), 4).layers == (
        Layer("conv", Kind.CONVOLUTION, "4x4", (4, 8, 8), half, 114, 1728, (3, 3), (3, 3), (2, 2), (1, 1), 2),
        Layer("norm", Kind.BATCH_NORM, "4x4", half, half, 12, 0, (3, 3)),
        Layer("act", "PReLU", "4x4", half, half, 6, 0, (3, 3)),
        Layer("pool", Kind.GLOBAL_AVERAGE_POOLING, "classifier", half, pooled, 0, 0, end, (4, 4)),
        Layer("fc", Kind.FULLY_CONNECTED, "classifier", (6,), (10,), 60, 60, end),
        Layer("shift", "bias", "classifier", (10,), (10,), 10, 0, end),
    )
    assert table_of(network(batch), 4).cost == Cost(114 + 12 + 6 + 60 + 10, 1728 + 60)


def test_shared_values_count_once() -> None:
    """A weight that two nodes use is one weight, and both of them multiply."""
    model = network(1)
    model.graph.node.append(helper.make_node("MatMul", ["h", "fc"], ["again"], name="again"))

    rows = {layer.name: layer for layer in table_of(model, 4).layers}

    assert (rows["fc"].parameters, rows["again"].parameters) == (60, 0)
    assert rows["fc"].macs == rows["again"].macs == 60


def test_shapes_that_the_graph_computes() -> None:
    """A Reshape to a shape worked out at run time hides nothing: the convolution after it is whole, its field too."""
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
    """A matrix that is turned before its product multiplies as often as the turned one, and is one parameter set."""
    model = chain(
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "t"], ["y"], name="fc"),
        image=[1, 3, 2, 2],
        w=ones(5, 12),
    )
    (layer,) = table_of(model).layers

    assert (layer.parameters, layer.macs, layer.receptive_field) == (60, 60, (2, 2))


def test_channels_last() -> None:
    """Maps of a graph that keeps channels last are (channels, height, width), a product per place sees its place, and
    a mean over both sides is a global pooling.
    """
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
    assert table_of(model, layout=Layout.NHWC).layers == (
        Layer("conv", Kind.CONVOLUTION, "8x4", (3, 8, 8), (4, 8, 4), 108, 3456, (3, 5), (3, 3), (1, 1), (1, 0), 1),
        Layer("shift", "bias", "8x4", (4, 8, 4), (4, 8, 4), 4, 0, (3, 5)),
        Layer("mix", Kind.FULLY_CONNECTED, "8x4", (4, 8, 4), (6, 8, 4), 24, 768, (3, 5)),
        Layer("mean", Kind.GLOBAL_AVERAGE_POOLING, "classifier", (6, 8, 4), (6,), 0, 0, (10, 8), (8, 4)),
        Layer("fc", Kind.FULLY_CONNECTED, "classifier", (6,), (2,), 12, 12, (10, 8)),
    )


@pytest.mark.parametrize(
    ("attributes", "padding"),
    [
        ({"auto_pad": "SAME_UPPER", "strides": [1, 1]}, (1, 1)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, None),
        ({"auto_pad": "VALID"}, (0, 0)),
        ({"pads": [2, 1, 2, 1]}, (2, 1)),
        ({"pads": [0, 0, 1, 1]}, None),
    ],
)
def test_padding(attributes: dict[str, Any], padding: tuple[int, int] | None) -> None:
    """Automatic padding is what it comes to, and padding that differs from side to side is no one number."""
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)
    (layer,) = table_of(chain(conv, image=[1, 3, 8, 8], w=ones(4, 3, 3, 3))).layers

    assert layer.padding == padding
    assert layer.receptive_field == (3, 3)


def test_transposed_and_depthwise() -> None:
    """Both are named so; how far a transposed convolution sees is left open, as is all after it."""
    model = chain(
        helper.make_node("Conv", ["x", "w"], ["a"], name="deep", group=3),
        helper.make_node("ConvTranspose", ["a", "u"], ["b"], name="up", strides=[2, 2]),
        helper.make_node("MaxPool", ["b"], ["y"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        image=[1, 3, 6, 6],
        w=ones(3, 1, 3, 3),
        u=ones(3, 5, 2, 2),
    )
    deep, up, pool = table_of(model).layers

    assert (deep.kind, deep.groups, deep.macs, deep.receptive_field) == (Kind.DEPTHWISE, 3, 3 * 9 * 16, (3, 3))
    assert (up.kind, up.output, up.macs) == (Kind.TRANSPOSED, (5, 8, 8), 16 * 3 * 5 * 4)
    assert (pool.output, up.receptive_field, pool.receptive_field) == ((5, 4, 4), None, None)


@pytest.mark.parametrize(
    "between",
    [
        helper.make_node("Resize", ["a", "", "twice"], ["b"]),
        helper.make_node("Slice", ["a", "two", "six", "two"], ["b"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
        helper.make_node("Reshape", ["a", "folded"], ["b"]),
    ],
    ids=lambda node: node.op_type,
)
def test_unknown_ways_leave_the_field_open(between: onnx.NodeProto) -> None:
    """After a node that moves values between places, no number is given for what they see."""
    model = chain(
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        between,
        helper.make_node("Conv", ["b", "w"], ["y"], name="second"),
        image=[1, 3, 8, 8],
        w=ones(3, 3, 3, 3),
        twice=np.array([1, 1, 2, 2], dtype=np.float32),
        two=np.array([2]),
        six=np.array([6]),
        folded=np.array([1, 3, 4, 16]),
    )
    first, second = table_of(model).layers

    assert (first.receptive_field, second.receptive_field) == ((3, 3), None)


def test_merging_and_shuffling() -> None:
    """Two branches meet with the larger field; a shuffle of channels through five axes leaves it as it is."""
    model = chain(
        helper.make_node("Conv", ["x", "w"], ["a"], name="wide", pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["x", "a"], ["b"], axis=1),
        helper.make_node("Reshape", ["b", "groups"], ["c"]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["d", "back"], ["e"]),
        helper.make_node("Conv", ["e", "v"], ["y"], name="after", strides=[2, 2]),
        image=[1, 3, 9, 9],
        w=ones(3, 3, 3, 3),
        v=ones(4, 6, 3, 3),
        groups=np.array([1, 2, 3, 9, 9]),
        back=np.array([1, 6, 9, 9]),
    )
    assert [layer.receptive_field for layer in table_of(model).layers] == [(3, 3), (5, 5)]


def test_quantised_convolutions() -> None:
    """A convolution of bytes with bytes is a convolution, and its weights and its bias are its parameters."""
    scale, zero = np.array(1, dtype=np.float32), np.array(0, dtype=np.uint8)
    weight = np.ones((4, 3, 3, 3), dtype=np.uint8)
    model = chain(
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z", "b"], ["c"], name="bytes"),
        helper.make_node("ConvInteger", ["c", "w2"], ["i"], name="whole", strides=[2, 2]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        image=[1, 3, 7, 7],
        s=scale,
        z=zero,
        w=weight,
        b=np.zeros(4, dtype=np.int32),
        w2=np.ones((2, 4, 3, 3), dtype=np.uint8),
    )
    first, second = table_of(model).layers

    assert (first.kind, first.kernel, first.parameters, first.macs) == (Kind.CONVOLUTION, (3, 3), 112, 108 * 25)
    assert (second.stride, second.parameters, second.macs, second.receptive_field) == ((2, 2), 72, 72 * 4, (5, 5))


def test_rows_inside_a_stage_without_a_map() -> None:
    """What squeezes a map to one value and comes back belongs to the stage around it, not to the classifier."""
    model = chain(
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("GlobalAveragePool", ["a"], ["b"], name="squeeze"),
        helper.make_node("Conv", ["b", "v"], ["c"], name="excite"),
        helper.make_node("Mul", ["a", "c"], ["d"]),
        helper.make_node("MaxPool", ["d"], ["e"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalMaxPool", ["e"], ["y"], name="last"),
        image=[1, 3, 10, 10],
        w=ones(4, 3, 3, 3),
        v=ones(4, 4, 1, 1),
    )
    table = table_of(model)

    assert [layer.stage for layer in table.layers] == ["8x8", "8x8", "8x8", "4x4", "classifier"]
    assert [stage.output for stage in table.stages] == [(4, 1, 1), (4, 4, 4), (4, 1, 1)]


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


def facts(table: LayerTable) -> list[tuple[object, ...]]:
    """What a table says of layers that multiply or pool, their names aside: kinds, sizes, costs and fields."""
    return [
        (
            one.kind,
            one.kernel,
            one.stride,
            one.padding,
            one.groups,
            one.input,
            one.output,
            one.macs,
            one.receptive_field,
        )
        for one in table.layers
        if one.macs or "pooling" in one.kind
    ]


LARGE = [pytest.param(name, marks=pytest.mark.large) for name in ("googlenet", "densenet121", "efficientnet_b0")]


@pytest.mark.parametrize("dynamo", [False, True], ids=["script", "dynamo"])
@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", *LARGE])
def test_exported_networks(folder: Path, name: str, dynamo: bool) -> None:
    """The table of the file has the layers of the network's own in the same order; where the file tells modules, rows
    and stages have the same names and give the same maps.
    """
    own = network_layers(build(CATALOG[name]), CATALOG[name].input)

    table = table_of(onnx.load(exported(name, dynamo, folder)))

    assert facts(table) == facts(own)
    assert table.cost.macs == own.cost.macs == CATALOG[name].macs
    if not dynamo:
        expected = [layer.name for layer in own.layers if layer.macs]
        assert [layer.name for layer in table.layers if layer.macs] == expected
        assert [(one.name, one.output, one.macs) for one in table.stages] == [
            (one.name, one.output, one.macs) for one in own.stages
        ]
    else:
        assert table.stages[0].name == "x".join(map(str, own.layers[0].output[1:]))
        assert table.stages[-1].name == "classifier"


@pytest.mark.anyio
async def test_shown_by_the_command_line_and_by_rest(folder: Path, tmp_path: Path) -> None:
    """An imported model has a table in its artifact, of the manifest's totals, and both doors show it."""
    root = tmp_path / "artifacts"
    text = "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
    file = exported("squeezenet1_1", False, folder)
    import_model(Request(file, "own", recipe(tmp_path, text)), root, NullReporter())

    result = CliRunner().invoke(main, ["layers", "own", "--json", "--artifacts", str(root)])
    async with serving(root, models=("own",)) as running:
        reply = await running.http.get("/models/own/layers")

    version, manifest = read_manifest(root, "own")
    table = read_layers(root, version, manifest)
    assert table.cost == Cost(manifest.parameters, manifest.macs)
    assert reply.status_code == 200
    assert reply.json() == json.loads(result.stdout)
    rows = reply.json()["layers"]
    assert [row["name"] for row in rows] == [layer.name for layer in table.layers]
    assert (rows[0]["name"], rows[0]["macs"], rows[0]["output"]) == ("features.0", 64 * 27 * 111**2, [64, 111, 111])


def test_table_of_a_batch_that_cannot_be_freed() -> None:
    """A graph that takes three images at once has the table of one."""
    model = classifier(batch=3, head="reshape")
    fixed = list(variants(model, Signature("x", Layout.NCHW, TensorProto.FLOAT, 3, 16, 3, model.graph.output[0].name)))

    table = table_of(fixed[-1].model)

    assert [(layer.kind, layer.output, layer.macs) for layer in table.layers] == [
        (Kind.GLOBAL_AVERAGE_POOLING, (3, 1, 1), 0),
        (Kind.FULLY_CONNECTED, (4,), 12),
    ]
