"""Models of other origin: each kind of input and graph gives the file's own answers, and the rest is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.importing.pipeline import ImportRequest, ImportResult, ModelNameError, import_model
from export.importing.recipe import RecipeError
from export.importing.signature import UnsupportedError
from export.parity_gate import EngineKind, ParityError
from models.artifact.artifact import IMPORTED, WeightSource, load, sha256, versions
from models.weights.onnx_reader import OnnxFileError
from service.common.types import Precision, Runtime
from service.engines.selection.opening import build_engine, open_engine
from service.engines.selection.parity import CheckedEngine, ParityCheck, figures, reference_of
from service.engines.selection.select import EngineOptions
from tests.conftest import NullReporter
from tests.export.distorted_engines import distort
from tests.onnx_models import SIZE, WEIGHT, classifier, model_of, recipe, saved, softmax

COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (12, 99, 201), (255, 255, 255)], dtype=np.uint8)
Import = Callable[..., ImportResult]


@pytest.fixture
def import_file(tmp_path: Path) -> Import:
    """Imports the file `net.onnx` in the test's folder as `net` into its folder `artifacts`."""

    def run(text: str = "", name: str = "net", labels: Path | None = None) -> ImportResult:
        request = ImportRequest(tmp_path / "net.onnx", name, recipe(tmp_path, text), labels)
        return import_model(request, tmp_path / "artifacts", NullReporter())

    return run


@pytest.fixture
def importing(tmp_path: Path, import_file: Import) -> Import:
    """Imports a model with the text of a recipe, as `import_file` does."""

    def run(model: ModelProto, *arguments: Any, **keywords: Any) -> ImportResult:
        saved(model, tmp_path)
        return import_file(*arguments, **keywords)

    return run


def answers(root: Path, runtime: Runtime = Runtime.ONNXRUNTIME, batch: int = 5) -> NDArray[Any]:
    """What the artifact `net` says to an image of each colour, `batch` at a time."""
    engine = build_engine(load(root, "net"), runtime, Precision.F32, EngineOptions(max_batch=batch))
    images = np.broadcast_to(COLOURS[:, None, None, :], (len(COLOURS), SIZE, SIZE, 3)).copy()
    try:
        return np.concatenate([engine.run(images[at : at + batch]) for at in range(0, len(images), batch)])
    finally:
        engine.close()


def by_hand(
    order: str = "rgb", scale: float = 255, mean: Any = 0.0, std: Any = 1.0, weight: NDArray[np.float32] = WEIGHT
) -> NDArray[Any]:
    """The same from the words of the recipe: `(pixel / scale - mean) / std`, channels in the network's order."""
    if order == "grey":
        values = (COLOURS.astype(float) @ [0.299, 0.587, 0.114])[:, None]
    else:
        values = COLOURS.astype(float)[:, ["rgb".index(letter) for letter in order]]
    return softmax(((values / scale - np.array(mean)) / np.array(std)) @ weight.T.astype(float))


GREY = WEIGHT[:, :1]
CASES = {
    "float NCHW rgb": ({}, "", by_hand()),
    "NHWC": ({"layout": "NHWC"}, "mean = 0.5\nstd = 0.5", by_hand(mean=0.5, std=0.5)),
    "bgr of 255, each its own mean": (
        {},
        'channels = "bgr"\nscale = 1\nmean = [104, 117, 123]\nstd = [57, 58, 59]',
        by_hand("bgr", 1, [104, 117, 123], [57, 58, 59]),
    ),
    "bgr NHWC": ({"layout": "NHWC"}, 'channels = "bgr"\nmean = [0.1, 0.2, 0.3]', by_hand("bgr", mean=[0.1, 0.2, 0.3])),
    "grey": ({"weight": GREY}, 'channels = "grey"\nmean = 0.1\nstd = 0.3', by_hand("grey", 255, 0.1, 0.3, GREY)),
    "grey NHWC": ({"weight": GREY, "layout": "NHWC"}, 'channels = "grey"', by_hand("grey", weight=GREY)),
    "logits in [N, C, 1, 1]": ({"head": "conv"}, "", by_hand()),
    "probabilities": ({"head": "softmax"}, 'output = "probabilities"', by_hand()),
    "uint8": ({"element": TensorProto.UINT8, "weight": WEIGHT / 255}, "", by_hand()),
    "uint8 NHWC bgr": (
        {"element": TensorProto.UINT8, "weight": WEIGHT / 255, "layout": "NHWC"},
        'channels = "bgr"\nscale = 1\nmean = 0\nstd = 1',
        by_hand("bgr"),
    ),
    "double": ({"element": TensorProto.DOUBLE}, "", by_hand()),
    "batch of 1": ({"batch": 1, "head": "reshape"}, "", by_hand()),
    "batch of 4": ({"batch": 4, "head": "reshape"}, "", by_hand()),
    "batch said to be any, and is 1": ({"batch": "N", "head": "reshape"}, "", by_hand()),
    "any size": ({"size": "S"}, f"size = {SIZE}", by_hand()),
    "opset 7": ({"opset": 7}, "", by_hand()),
    "opset 8": ({"opset": 8, "head": "conv"}, "", by_hand()),
    "opset 9": ({"opset": 9, "head": "softmax"}, 'output = "probabilities"', by_hand()),
    "opset 11": ({"opset": 11, "batch": 1, "head": "reshape"}, "", by_hand()),
    "opset 21": ({"opset": 21}, "", by_hand()),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_the_recipe(importing: Import, tmp_path: Path, case: str) -> None:
    """Whatever the file takes, the artifact takes RGB bytes in batches and gives what the recipe says by hand."""
    parts, text, expected = CASES[case]

    done = importing(classifier(**parts), text)  # type: ignore[arg-type]

    assert done.manifest.max_batch is None
    np.testing.assert_allclose(answers(tmp_path / "artifacts"), expected, atol=2e-5)
    assert {report.passed for report in done.manifest.parity if report.precision == "f32"} == {True}


def test_both_engines_give_the_same(importing: Import, tmp_path: Path) -> None:
    """OpenVINO answers as ONNX Runtime does and as the recipe says."""
    importing(classifier(layout="NHWC"), 'channels = "bgr"')

    np.testing.assert_allclose(answers(tmp_path / "artifacts", Runtime.OPENVINO), by_hand("bgr"), atol=2e-5)


def test_float16_is_served_in_float32(importing: Import, tmp_path: Path) -> None:
    """A half-precision file keeps its answers within its own rounding, and nothing in the graph is half any more."""
    done = importing(classifier(element=TensorProto.FLOAT16), "std = 0.5")

    graph = onnx.load(tmp_path / "artifacts" / "net" / "1" / "model.onnx").graph
    assert {tensor.data_type for tensor in graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    np.testing.assert_allclose(answers(tmp_path / "artifacts"), by_hand(std=0.5), atol=2e-3)
    assert "the file computes in float16 and is served in float32" in done.notes
    assert {report.thresholds.max_abs_diff for report in done.manifest.parity if report.precision == "f32"} == {0.01}


def test_grey_of_whole_numbers_is_rounded_half_up(importing: Import, tmp_path: Path) -> None:
    """A uint8 network of one channel gets luma rounded to the nearest whole number."""
    weight = (GREY / 255).astype(np.float32)
    importing(classifier(element=TensorProto.UINT8, weight=weight), 'channels = "grey"')

    luma = (COLOURS.astype(int) @ [299, 587, 114] + 500) // 1000
    np.testing.assert_allclose(
        answers(tmp_path / "artifacts"), softmax(luma[:, None] @ weight.T.astype(float)), atol=1e-6
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("runtime", [Runtime.ONNXRUNTIME, Runtime.OPENVINO])
def test_batch_that_cannot_be_freed_is_served_one_by_one(
    importing: Import, tmp_path: Path, batch: int, runtime: Runtime
) -> None:
    """A Reshape that mixes the batch with channels keeps its batch: one image goes in, and the answer is its own."""
    if batch == 1:
        done = importing(classifier(batch=1, head="mixed"))
        expected = by_hand()
    else:
        done = importing(_crossed(batch))
        expected = by_hand(weight=WEIGHT * batch)
    assert done.manifest.max_batch == 1
    assert {report.batch_sizes for report in done.manifest.parity} == {(1,)}
    assert any("served one image at a time" in note for note in done.notes)
    graph = onnx.load(tmp_path / "artifacts" / "net" / "1" / "model.onnx").graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [1, SIZE, SIZE, 3]

    np.testing.assert_allclose(answers(tmp_path / "artifacts", runtime, batch=1), expected, atol=2e-5)

    engine = open_engine(load(tmp_path / "artifacts", "net"), EngineOptions(runtime=runtime, max_batch=8)).engine
    assert engine.max_batch == 1
    engine.close()


def _crossed(batch: int) -> ModelProto:
    """A graph of a fixed batch whose rows are added up: of equal rows each is `batch` times its own logits."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["g"], transB=1),
        helper.make_node("MatMul", ["ones", "g"], ["y"]),
    ]
    return model_of(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        {"w": WEIGHT, "ones": np.ones((batch, batch), dtype=np.float32)},
    )


@pytest.mark.parametrize("classes", [2, 5000])
def test_any_number_of_classes(importing: Import, tmp_path: Path, classes: int) -> None:
    """Two classes and five thousand pass the gate, and are called by their numbers."""
    weight = np.random.default_rng(1).normal(0, 2, (classes, 3)).astype(np.float32)

    done = importing(classifier(weight=weight))

    assert done.manifest.classes == classes
    assert f"the {classes} classes have no names" in done.notes[0]
    assert load(tmp_path / "artifacts", "net").labels[-1].label == f"class {classes - 1}"
    np.testing.assert_allclose(answers(tmp_path / "artifacts"), by_hand(weight=weight), atol=2e-5)


def test_a_thousand_classes_are_imagenet(importing: Import, tmp_path: Path) -> None:
    """Without labels 1000 classes are those of ImageNet-1k, and a note says that this was assumed."""
    done = importing(classifier(weight=np.random.default_rng(1).normal(0, 2, (1000, 3)).astype(np.float32)))

    assert "taken to be ImageNet-1k" in done.notes[0]
    assert load(tmp_path / "artifacts", "net").labels[207].label == "golden retriever"


def test_manifest_says_what_it_is(importing: Import, tmp_path: Path) -> None:
    """Family, the file with its sha256, the recipe in units of 255, sizes, and no accuracy or year of anybody's."""
    manifest = importing(classifier(), "resize = 20\nscale = 1\nmean = 51\nstd = 255").manifest

    assert (manifest.family, manifest.year, manifest.paper) == (IMPORTED, None, "")
    assert (manifest.acc1, manifest.acc5, manifest.acc_dataset) == (None, None, None)
    assert (manifest.weights.source, manifest.weights.name) == (WeightSource.FILE, "net.onnx")
    assert manifest.weights.sha256 == sha256(tmp_path / "net.onnx")
    assert (manifest.input.resize, manifest.input.crop) == (20, SIZE)
    assert (manifest.input.mean[0], manifest.input.std[2]) == (51 / 255, 1.0)
    assert (manifest.parameters, manifest.parameters_train, manifest.macs) == (16, 16, 12)
    assert set(manifest.files) == {"model.onnx", "labels.csv", "layers.json", "reference.npz"}


def test_each_import_is_a_new_version(importing: Import, tmp_path: Path) -> None:
    """A second import of the same name becomes version 2 and is what loads, of the same bytes."""
    importing(classifier())
    importing(classifier())

    assert versions(tmp_path / "artifacts", "net") == [1, 2]
    first, second = (
        json.loads((tmp_path / "artifacts" / "net" / number / "manifest.json").read_text()) for number in "12"
    )
    assert first["files"] == second["files"]


def save_with_external_data(folder: Path) -> Path:
    """Save a classifier as `net.onnx` with its weights in the file that is returned."""
    onnx.save_model(classifier(), folder / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    return folder / "net.bin"


def test_external_data_beside_the_file(import_file: Import, tmp_path: Path) -> None:
    """Weights in a file of their own are brought into the artifact's one file."""
    assert save_with_external_data(tmp_path).is_file()

    import_file()

    np.testing.assert_allclose(answers(tmp_path / "artifacts"), by_hand(), atol=2e-5)


@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_branch_that_reads_values_around_it(importing: Import, tmp_path: Path, element: int) -> None:
    """What only the branch of an If reads stays in the graph, is float32 inside it too, and no name collides."""
    model = classifier(element=element)
    gemm = model.graph.node.pop()
    output = helper.make_tensor_value_info(gemm.output[0], element, ["N", 4])
    body = helper.make_graph([gemm], "body", [], [output], value_info=[output])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    model.graph.node.append(
        helper.make_node("If", ["condition"], [gemm.output[0]], name="choose", then_branch=body, else_branch=body)
    )

    importing(model)

    np.testing.assert_allclose(answers(tmp_path / "artifacts"), by_hand(), atol=2e-3)
    graph = onnx.load(tmp_path / "artifacts" / "net" / "1" / "model.onnx").graph
    (branch, *_) = [one.g for node in graph.node for one in node.attribute if one.HasField("g")]
    assert branch.node[0].input[1] in {tensor.name for tensor in graph.initializer}
    assert branch.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_one_of_several_outputs(importing: Import, tmp_path: Path) -> None:
    """With `output_name` the others are left out of the graph, and what only they need."""
    model = classifier()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["map"], name="only_of_the_map"))
    model.graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 3, SIZE, SIZE]))

    importing(model, f'output_name = "{model.graph.output[0].name}"')

    graph = onnx.load(tmp_path / "artifacts" / "net" / "1" / "model.onnx").graph
    assert [node.name for node in graph.node if "map" in node.name] == []
    np.testing.assert_allclose(answers(tmp_path / "artifacts"), by_hand(), atol=2e-5)


def test_names_of_the_contract_inside_the_network_do_not_collide(importing: Import, tmp_path: Path) -> None:
    """A network whose own values are called image and probabilities is served like any other."""
    model = classifier()
    renamed = {"x": "probabilities", model.graph.output[0].name: "image", "v0": "recipe.0", "w": "network.image"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    model.graph.input[0].name, model.graph.output[0].name = "probabilities", "image"
    model.graph.initializer[0].name = "network.image"

    importing(model)

    np.testing.assert_allclose(answers(tmp_path / "artifacts"), by_hand(), atol=2e-5)


def test_quantised_network(importing: Import, tmp_path: Path) -> None:
    """A network with 8-bit weights (QDQ) is its own reference, and its weights count as parameters."""
    model = classifier()
    model.graph.initializer[0].name = "w8"
    quantised = np.clip(np.round(WEIGHT / 0.02), -127, 127).astype(np.int8)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(quantised, "w8"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.02, dtype=np.float32), "s"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["w8", "s"], ["w"]))

    done = importing(model)

    np.testing.assert_allclose(
        answers(tmp_path / "artifacts"), by_hand(weight=quantised.astype(np.float32) * 0.02), atol=2e-5
    )
    assert done.manifest.parameters == 16


OPENVINO, ONNXRUNTIME = (EngineKind(runtime, Precision.F32) for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME))


def reverse(given: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probabilities of the classes in the wrong order."""
    return given[:, ::-1]


def test_one_engine_is_enough(importing: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that differs is recorded and never opened; the artifact is written because another one agrees."""
    distort(monkeypatch, {OPENVINO: reverse, ONNXRUNTIME: None})

    done = importing(classifier())

    assert {report.runtime: report.passed for report in done.manifest.parity} == {
        "openvino": False,
        "onnxruntime": True,
    }
    engine = open_engine(load(tmp_path / "artifacts", "net"), EngineOptions()).engine
    assert engine.describe().runtime == "onnxruntime"
    engine.close()


def test_no_engine_is_none(importing: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every engine differs from the file there is no artifact, and the error has the figures of each."""
    distort(monkeypatch, {OPENVINO: reverse, ONNXRUNTIME: reverse})

    with pytest.raises(ParityError, match=r"net differs from net\.onnx.*openvino f32.*onnxruntime f32"):
        importing(classifier())

    assert versions(tmp_path / "artifacts", "net") == []


def test_row_without_a_batch_is_served_one_by_one(importing: Import, tmp_path: Path) -> None:
    """A network that squeezes its batch of one away gives a row of scores, and is served one image at a time."""
    model = _ending("Reshape", helper.make_tensor_value_info("y", TensorProto.FLOAT, [4]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([4]), "row"))
    model.graph.node[-1].input.append("row")

    done = importing(model)

    assert done.manifest.max_batch == 1
    np.testing.assert_allclose(answers(tmp_path / "artifacts", batch=1), by_hand(), atol=1e-5)


def test_axis_of_length_0_is_a_dynamic_one(importing: Import, tmp_path: Path) -> None:
    """Old exporters write 0 where any length is meant, which ONNX Runtime takes by its word: it is read as dynamic."""
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0

    assert importing(model).manifest.max_batch is None
    np.testing.assert_allclose(answers(tmp_path / "artifacts"), by_hand(), atol=1e-5)


def test_half_probabilities_that_round_to_zero(importing: Import, tmp_path: Path) -> None:
    """A softmax in float16 ends in zeros where that in float32 does not: what float16 cannot hold is not compared.

    It is not compared on a card either: an engine as right as that of the import passes.
    """
    model = classifier(element=TensorProto.FLOAT16, head="softmax", weight=WEIGHT * 30)

    done = importing(model, 'output = "probabilities"')

    report = next(report for report in done.manifest.parity if report.precision == Precision.F32)
    assert report.passed
    assert report.logit_cosine > 0.999
    artifact = load(tmp_path / "artifacts", "net")
    engine = build_engine(artifact, Runtime.ONNXRUNTIME, Precision.F32, EngineOptions())
    for precision in (Precision.F32, Precision.FP16):
        checked = CheckedEngine("graph", "reference", "onnxruntime", "1", precision, "a card", "1")
        report = ParityCheck.of(artifact, checked, 8, None).run(engine, reference_of(artifact))
        assert report.passed, figures(report)
    engine.close()


def rounded(model: ModelProto, step: float, element: type[np.generic]) -> ModelProto:
    """The model with its output rounded to 8 bits."""
    output = model.graph.output[0]
    values = {"step": np.array(step, dtype=np.float32), "zero": np.array(0, dtype=element)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    model.graph.node.append(helper.make_node("QuantizeLinear", [output.name, "step", "zero"], ["q"]))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]))
    output.name = "y"
    return model


def test_values_of_8_bits_are_compared_as_coarsely(importing: Import) -> None:
    """A network that rounds its values to 8 bits is held to the figures of bf16, as coarse, and others to those of f32.

    The last bit of a pixel may turn a rounding, and so change the answer by a step of 256.
    """
    model = rounded(classifier(), 0.02, np.int8)

    limits = [
        {report.thresholds.max_abs_diff for report in importing(one).manifest.parity if report.precision == "f32"}
        for one in (model, classifier())
    ]

    assert limits == [{0.03}, {1e-4}]


def test_probabilities_of_8_bits_need_not_add_up_to_1(importing: Import, tmp_path: Path) -> None:
    """A softmax rounded to 8 bits adds up to 1 but for its roundings, and is served as the file gives it."""
    model = classifier(head="softmax", weight=np.linspace(-0.1, 0.1, 600, dtype=np.float32).reshape(200, 3))

    importing(rounded(model, 0.0047, np.uint8), 'output = "probabilities"')

    np.testing.assert_allclose(answers(tmp_path / "artifacts").sum(axis=1), 200 * 0.0047, rtol=1e-3)


def test_same_answer_to_everything_is_noted(importing: Import) -> None:
    """Where no image changes the answer the check says little, and a note says so; no other network has the note."""
    nothing = importing(classifier(weight=np.zeros((4, 3), dtype=np.float32)))

    assert any("the same answer to every photo and to noise" in note for note in nothing.notes)
    assert not any("the same answer" in note for note in importing(classifier()).notes)


def _with(**changes: Any) -> ModelProto:
    """A classifier with another input or output."""
    model = classifier()
    for field, value in changes.items():
        getattr(model.graph, field)[0].CopyFrom(value)
    return model


def _image(shape: list[Any], element: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("x", element, shape)


def _second_input() -> ModelProto:
    model = classifier()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 1]))
    return model


def _no_input() -> ModelProto:
    node = helper.make_node("Constant", [], ["y"], value=onnx.numpy_helper.from_array(WEIGHT))
    return model_of([node], [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 3])], {})


def _ending(operator: str, output: onnx.ValueInfoProto, **attributes: Any) -> ModelProto:
    """The classifier with one more node at its end."""
    model = classifier()
    last = model.graph.output[0].name
    model.graph.node.append(helper.make_node(operator, [last], [output.name], **attributes))
    model.graph.output[0].CopyFrom(output)
    return model


def _foreign() -> ModelProto:
    model = _ending("Mystery", helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4]), domain="org.example")
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    return model


def _segmenter() -> ModelProto:
    return model_of(
        [helper.make_node("Relu", ["x"], ["y"])],
        [_image(["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        {},
    )


def _detector() -> ModelProto:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Reshape", ["f", "shape"], ["r"]),
        helper.make_node("Mul", ["r", "w"], ["y"]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 3])
    return model_of(nodes, [_image(["N", 3, SIZE, SIZE])], [output], {"w": WEIGHT, "shape": np.array([-1, 1, 3])})


def _two_outputs() -> ModelProto:
    model = classifier()
    model.graph.output.append(helper.make_tensor_value_info("v0", TensorProto.FLOAT, ["N", 3, 1, 1]))
    return model


def _zipmap() -> ModelProto:
    keyed = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("z", helper.make_sequence_type_proto(keyed))
    model = _ending("ZipMap", output, domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return model


REFUSED: dict[str, tuple[Callable[[], ModelProto], str, type[Exception], str]] = {
    "two inputs": (_second_input, "", UnsupportedError, r"has 2 inputs \(x, mask\); one image is served"),
    "no input": (_no_input, "", UnsupportedError, r"has 0 inputs \(none\)"),
    "rank 2": (lambda: _with(input=_image(["N", 10])), "", UnsupportedError, r"of shape \[\?, 10\]; .* 4 axes"),
    "no shape": (
        lambda: _with(input=helper.make_tensor_value_info("x", TensorProto.FLOAT, None)),
        "",
        UnsupportedError,
        "of unknown shape",
    ),
    "whole numbers": (
        lambda: _with(input=_image(["N", 3, 16, 16], TensorProto.INT64)),
        "",
        UnsupportedError,
        r"is int64; float32, float16",
    ),
    "four channels": (lambda: _with(input=_image(["N", 4, 16, 16])), "", UnsupportedError, r"one or three channels"),
    "one channel": (lambda: classifier(weight=GREY), "", UnsupportedError, r'one channel; write channels = "grey"'),
    "three channels": (classifier, 'channels = "grey"', UnsupportedError, r'three channels; write channels = "rgb"'),
    "not square": (lambda: _with(input=_image(["N", 3, 16, 20])), "", UnsupportedError, r"16 x 20 pixels; only square"),
    "size unknown": (lambda: classifier(size="S"), "", UnsupportedError, r"images of any size; write size = 224"),
    "size differs": (classifier, "size = 32", UnsupportedError, r"takes 16 x 16 pixels, not 32; write size = 16"),
    "resize below the graph's size": (classifier, "resize = 12", RecipeError, r"resize = 12 is smaller than size = 16"),
    "two outputs": (_two_outputs, "", UnsupportedError, r"outputs v2 \[\?, 4\], v0 \[\?, 3, 1, 1\]; write output_name"),
    "no such output": (classifier, 'output_name = "prob"', UnsupportedError, r"no output 'prob'; it has v2"),
    "zipmap": (_zipmap, "", UnsupportedError, r"is a sequence, as scikit-learn.*options=\{'zipmap': False\}"),
    "a class, not scores": (
        lambda: _ending("ArgMax", helper.make_tensor_value_info("y", TensorProto.INT64, ["N", 1]), axis=1),
        "",
        UnsupportedError,
        r"is int64, not a score of each class",
    ),
    "a map": (_segmenter, "", UnsupportedError, r"is \[1, 3, 16, 16\], which looks like a map over the image"),
    "boxes": (_detector, "", UnsupportedError, r"is \[1, 4, 3\], which looks like boxes or tokens"),
    "one class": (lambda: classifier(weight=WEIGHT[:1]), "", UnsupportedError, r"1 class; two or more are served"),
    "unknown operators": (_foreign, "", UnsupportedError, r"ONNX Runtime cannot load the file: .*org\.example"),
    "several classes at once": (
        lambda: _ending("Sigmoid", helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])),
        'output = "probabilities"',
        UnsupportedError,
        r'ends in a Sigmoid, .*export the network without it and write output = "logits"',
    ),
    "random numbers": (
        lambda: _ending("RandomNormalLike", helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])),
        "",
        UnsupportedError,
        r"answers the same image differently each time.*export the network in evaluation mode",
    ),
    "no score for each": (
        lambda: _ending("ReduceSum", helper.make_tensor_value_info("y", TensorProto.FLOAT, []), keepdims=0),
        "",
        UnsupportedError,
        r"is \[\] for a batch of 1; a score for each class",
    ),
    "no probabilities, all above 0": (
        lambda: _ending("Exp", helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])),
        'output = "probabilities"',
        UnsupportedError,
        r'write output = "logits" if they are logits',
    ),
    "no probabilities": (
        classifier,
        'output = "probabilities"',
        UnsupportedError,
        r'no probabilities: they add up to .*write output = "logits"',
    ),
    "probabilities": (
        lambda: classifier(head="softmax"),
        "",
        UnsupportedError,
        r'probabilities already.*write output = "probabilities"',
    ),
    "uint8 with a mean": (
        lambda: classifier(element=TensorProto.UINT8),
        "mean = 0.5",
        RecipeError,
        r"takes uint8, pixels as they are",
    ),
    "uint8 with a scale": (
        lambda: classifier(element=TensorProto.UINT8),
        "scale = 255",
        RecipeError,
        r"write scale = 1, mean = 0 and std = 1",
    ),
    "not finite": (
        lambda: classifier(weight=WEIGHT * np.float32(1e38)),
        "std = 1e-9",
        UnsupportedError,
        "not finite for photos",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(importing: Import, tmp_path: Path, case: str) -> None:
    """What cannot be served is refused before anything is written, with what it has and what to do."""
    make, text, kind, message = REFUSED[case]

    with pytest.raises(kind, match=message):
        importing(make(), text)

    assert versions(tmp_path / "artifacts", "net") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html></html>", "a page of HTML"),
        (b"PK\x03\x04rest", r"a zip, as PyTorch's \.pth files are; export the network with torch\.onnx\.export"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip; unpack it first"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite; convert it with tf2onnx"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{", "safetensors, weights without a graph"),
        (b"\x00\x01\x02\x03 nothing known", "damaged or something else"),
        (classifier().SerializeToString()[:200], "damaged or something else"),
    ],
)
def test_other_files_are_told_apart(import_file: Import, tmp_path: Path, content: bytes, message: str) -> None:
    """A file that is not ONNX is named for what it looks like."""
    (tmp_path / "net.onnx").write_bytes(content)

    with pytest.raises(OnnxFileError, match=message):
        import_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"keeps its weights in net\.bin, which is not there"), (b"", r"net\.onnx cannot be read")],
    ids=["missing", "cut off"],
)
def test_external_data_that_is_not_whole(
    import_file: Import, tmp_path: Path, content: bytes | None, message: str
) -> None:
    """A file of weights that is missing or too short is an error and no network of zeros."""
    weights = save_with_external_data(tmp_path)
    weights.unlink() if content is None else weights.write_bytes(content)

    with pytest.raises(OnnxFileError, match=message):
        import_file()


@pytest.mark.parametrize("place", ["../net.bin", "sub/../../net.bin", "/etc/hostname", "", "a\0b"])
def test_external_data_elsewhere_is_not_read(importing: Import, tmp_path: Path, place: str) -> None:
    """A file of weights outside the folder of the .onnx file is refused, whether it is there or not."""
    model = classifier()
    (tmp_path.parent / "net.bin").write_bytes(model.graph.initializer[0].raw_data)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], place)
    model.graph.initializer[0].ClearField("raw_data")

    with pytest.raises(OnnxFileError, match="outside its own folder, where nothing is read; save it again"):
        importing(model)


def test_opset_that_is_not_said(importing: Import) -> None:
    """A file without opset_import is named for that."""
    model = classifier()
    model.ClearField("opset_import")

    with pytest.raises(OnnxFileError, match=r"does not name its opset \(opset_import is empty\); export it again"):
        importing(model)


@pytest.mark.parametrize("name", ["Net", "a/b", "../x", "", "a b", "-x", "é", "x" * 101])
def test_names_are_plain(importing: Import, name: str) -> None:
    """A name is part of addresses and a folder: anything else is refused."""
    with pytest.raises(ModelNameError, match="cannot be the name of a model"):
        importing(classifier(), name=name)


def test_names_of_the_catalog_are_taken(importing: Import) -> None:
    """An import never stands for a network of the catalog."""
    with pytest.raises(ModelNameError, match=r"topfive export resnet50 --weights FILE\.onnx"):
        importing(classifier(), name="resnet50")
