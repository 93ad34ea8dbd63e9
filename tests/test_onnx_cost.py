"""The cost of an ONNX graph, node by node, against arithmetic by hand."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from export.onnx_cost import NodeCost, graph_cost, totals
from tests.onnx_models import model_of


def network(batch: int) -> ModelProto:
    """A grouped convolution, a batch norm, a PRelu, a product, and a single number that nobody learned."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1], group=2),
        helper.make_node("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"], name="norm"),
        helper.make_node("PRelu", ["n", "slope"], ["r"], name="act"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Mul", ["f", "half"], ["h"], name="halve"),
        helper.make_node("MatMul", ["h", "fc"], ["l"], name="fc"),
        helper.make_node("Add", ["l", "shift"], ["y"], name="shift"),
    ]
    ones = {"s": 6, "o": 6, "m": 6, "v": 6, "b": 6, "shift": 10}
    stored = {name: np.ones(count, dtype=np.float32) for name, count in ones.items()}
    stored |= {
        "w": np.ones((6, 2, 3, 3), dtype=np.float32),
        "slope": np.ones((6, 1, 1), dtype=np.float32),
        "half": np.array(0.5, dtype=np.float32),
        "fc": np.ones((6, 10), dtype=np.float32),
    }
    return model_of(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        stored,
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_each_node_by_hand(batch: int) -> None:
    """Kernel, stride, output, parameters and MACs of each node, for one image whatever the batch."""
    assert graph_cost(network(batch), batch) == (
        NodeCost("conv", "Conv", (3, 3), (2, 2), (6, 4, 4), 6 * 2 * 9 + 6, 6 * 4 * 4 * 2 * 9),
        NodeCost("norm", "BatchNormalization", (), (), (6, 4, 4), 12, 0),
        NodeCost("act", "PRelu", (), (), (6, 4, 4), 6, 0),
        NodeCost("fc", "MatMul", (), (), (10,), 60, 60),
        NodeCost("shift", "Add", (), (), (10,), 10, 0),
    )


def test_totals() -> None:
    """Sums over all nodes."""
    assert totals(graph_cost(network(1), 1)) == (114 + 12 + 6 + 60 + 10, 1728 + 60)


def test_shared_values_count_once() -> None:
    """A weight that two nodes use is one weight, and both of them multiply."""
    model = network(1)
    for node in model.graph.node:
        if node.op_type == "Add":
            node.input[1] = "shift2"
    model.graph.node.append(helper.make_node("Add", ["y", "shift2"], ["z"], name="again"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(10, dtype=np.float32), "shift2"))
    model.graph.output[0].name = "z"

    rows = {row.name: row.parameters for row in graph_cost(model, 1)}

    assert (rows["shift"], rows["again"]) == (10, 0)


def test_shapes_that_the_graph_computes() -> None:
    """A Reshape to a shape worked out at run time hides nothing: the convolution after it is counted."""
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
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, dtype=np.int64), "ones"))

    rows = graph_cost(model, 1)

    assert (rows[0].name, rows[0].output, rows[0].macs) == ("conv", (6, 4, 4), 1728)
