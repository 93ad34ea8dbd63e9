"""`topfive import` from the command line to the answers over REST and gRPC."""

import asyncio
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from safetensors.torch import load_file

from export.importing.labels import LabelsError, labels_for
from models.artifact.artifact import load, versions
from models.build import build
from models.catalog import CATALOG
from models.labels import Label
from proto.topfive.v1 import classifier_pb2 as pb
from service.cli.main import main
from service.common.types import Precision, Runtime
from service.engines.selection.opening import build_engine
from service.engines.selection.select import EngineOptions
from tests.conftest import png
from tests.onnx_models import classifier, recipe, saved
from tests.serving import serving

Run = Callable[..., Result]

USUAL = "resize = 256\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `topfive import` into the test's folder."""

    def invoke(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, ["import", *map(str, arguments), "--artifacts", str(tmp_path / "artifacts")])

    return invoke


def test_import_says_what_it_made(run: Run, tmp_path: Path) -> None:
    """The command ends with 0 and shows the folder, the engines and what was assumed; `-v` the input and figures."""
    result = run(saved(classifier(), tmp_path), "--name", "net", "--recipe", recipe(tmp_path, 'channels = "bgr"'), "-v")

    assert result.exit_code == 0, result.output
    assert f"net is in {tmp_path}/artifacts/net/1, file weights" in result.stderr
    assert "input: shorter side 16, centre 16, bilinear, bgr, mean (0.0, 0.0, 0.0)" in result.stderr
    assert "passed in OpenVINO f32" in result.stderr
    assert "ONNX Runtime f32" in result.stderr
    assert "onnxruntime f32: max |dp|" in result.stderr
    assert "note: the 4 classes have no names: they are called class 0 and so on; give --labels" in result.stderr
    assert result.stdout == ""


def test_refusal_is_a_message_and_exit_code_1(run: Run, tmp_path: Path) -> None:
    """What cannot be served gives its reason on one line, and no traceback."""
    result = run(saved(classifier(), tmp_path), "--name", "net", "--recipe", recipe(tmp_path, "size = 32"))

    assert result.exit_code == 1
    assert "net was not imported: the graph takes 16 x 16 pixels, not 32; write size = 16" in result.stderr
    assert versions(tmp_path / "artifacts", "net") == []


def test_folder_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    """Where the artifact cannot be put, the message has the path and the system's reason, and exit code 1."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "net").touch()

    result = run(saved(classifier(), tmp_path), "--name", "net", "--recipe", recipe(tmp_path))

    assert result.exit_code == 1
    assert f"net was not imported: {tmp_path}/artifacts/net: File exists" in result.stderr
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["net"]


@pytest.mark.parametrize(
    ("name", "reason"), [("resnet50", "is the name of a catalog network"), ("A b", "'A b' cannot")]
)
def test_name_that_cannot_be_served(run: Run, tmp_path: Path, name: str, reason: str) -> None:
    """A name that cannot be served is refused before the file is looked at."""
    result = run(tmp_path / "none.onnx", "--name", name, "--recipe", tmp_path / "none.toml")

    assert result.exit_code == 1
    assert reason in result.stderr


def test_recipe_and_name_must_be_given(run: Run, tmp_path: Path) -> None:
    """Without a recipe nothing is guessed: a usage error."""
    assert run(tmp_path / "net.onnx", "--name", "net").exit_code == 2
    assert run(tmp_path / "net.onnx", "--recipe", tmp_path / "recipe.toml").exit_code == 2


def test_labels_are_those_given(run: Run, tmp_path: Path) -> None:
    """With --labels the rows are the user's, and nothing is noted as assumed."""
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nhorse, mare\nélan\n", encoding="utf-8")

    result = run(saved(classifier(), tmp_path), "--name", "net", "--recipe", recipe(tmp_path), "--labels", labels)

    assert result.exit_code == 0, result.output
    assert "note" not in result.stderr
    assert [label.label for label in load(tmp_path / "artifacts", "net").labels] == [
        "cat",
        "dog",
        "horse, mare",
        "élan",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "label\na\nb\n", r"has 2 labels, and the network 3 classes; give one for each"),
        ("l.csv", "name\na\nb\nc\n", r"has the columns name; there must be label"),
        ("l.csv", "class_id,label\n0,a\n1,b\n1,c\n", r"class_id must be each of 0 to 2 once"),
        ("l.csv", "class_id,label\n0,a\nx,b\n2,c\n", r"class_id must be each of 0 to 2 once"),
        ("l.csv", 'label\na\n" "\nc\n', r"has no label for class 1"),
        ("l.txt", "a\nb\n", r"has 2 labels"),
        ("l.txt", "a\n\nc\n", r"has no label for class 1"),
        (
            "l.csv",
            "class_id,label\n0,horse, mare\n1,b\n2,c\n",
            r"has not 2 values in row 1; put quotes around",
        ),
        ("l.csv", "class_id;label\n0;a\n", r"the columns class_id;label; .* with commas between them"),
        ("l.csv", f"label\n{'x' * 200_000}\n", r"is not CSV: field larger than "),
        ("l.csv", 'label\n"a\nb\nc\n', r"is not CSV: unexpected end of data"),
        ("l.csv", "label\na\x1b[31m\nb\nc\n", r"has a control character in the label of class 0; remove it"),
        ("l.csv", "\xe9", r"is not text in UTF-8 .*; save it as UTF-8"),
        ("l.TXT", "a\nb\n", r"has 2 labels"),
        ("none.txt", None, r"cannot be read: No such file"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    """Each mistake in a file of labels is named."""
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")

    with pytest.raises(LabelsError, match=message):
        labels_for(3, tmp_path / name)


def test_labels_in_any_order_with_wnid(tmp_path: Path) -> None:
    """class_id says which output a row is of; wnid is kept; quoted commas, spaces and Windows' habits do no harm."""
    (tmp_path / "l.csv").write_bytes(b'\xef\xbb\xbfClass_ID, wnid, Label\r\n1,n2,"b, c"\r\n0, n1,a\r\n\r\n')

    assert labels_for(2, tmp_path / "l.csv").rows == (Label(0, "n1", "a"), Label(1, "n2", "b, c"))


@pytest.mark.anyio
async def test_fixed_batch_is_served_one_by_one(run: Run, tmp_path: Path) -> None:
    """Eight requests at once to a graph that takes one image: each runs alone and gets the answer of its own.

    Without `top_k` all four classes come; five are an error.
    """
    file = saved(classifier(batch=1, head="mixed"), tmp_path)
    assert run(file, "--name", "net", "--recipe", recipe(tmp_path)).exit_code == 0
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)] * 2
    engine = build_engine(
        load(tmp_path / "artifacts", "net"), Runtime.ONNXRUNTIME, Precision.F32, EngineOptions(max_batch=1)
    )
    expected = [engine.run(np.full((1, 16, 16, 3), colour, dtype=np.uint8))[0] for colour in colours]
    engine.close()

    async with serving(tmp_path / "artifacts", models=("net",), max_batch=8, precision="f32") as running:
        replies = await asyncio.gather(
            *(running.http.post("/predict", files={"image": png(colour)}) for colour in colours)
        )
        too_many = await running.http.post("/predict?top_k=5", files={"image": png(0)})
        rpc = await running.stub.Classify(pb.ClassifyRequest(image=png(0)))

    assert [reply.status_code for reply in replies] == [200] * 8
    assert {reply.json()["batch_size"] for reply in replies} == {1}
    assert {len(reply.json()["predictions"]) for reply in replies} == {4} == {len(rpc.predictions)}
    assert too_many.status_code == 400
    for reply, row in zip(replies, expected, strict=True):
        best = reply.json()["predictions"][0]
        assert best["class_id"] == int(row.argmax())
        assert best["probability"] == pytest.approx(float(row.max()), abs=1e-4)


@pytest.mark.anyio
async def test_imported_model_is_listed(run: Run, tmp_path: Path) -> None:
    """/models tells an imported model from those of the catalog."""
    assert run(saved(classifier(), tmp_path), "--name", "net", "--recipe", recipe(tmp_path)).exit_code == 0

    async with serving(tmp_path / "artifacts", models=("net",)) as running:
        reply = await running.http.get("/models/net")

    card = reply.json()
    assert (card["family"], card["weights"], card["acc1"], card["classes"]) == ("imported", "file", None, 4)


@pytest.fixture(scope="module")
def squeezenet(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained SqueezeNet as torch's exporter writes it, with a batch of 1."""
    network = build(CATALOG["squeezenet1_1"])
    network.load_state_dict(load_file(shared_data / "squeezenet1_1.safetensors"))
    path = tmp_path_factory.mktemp("onnx") / "squeezenet.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns that it is old
        torch.onnx.export(network, (torch.zeros(1, 3, 224, 224),), path, dynamo=False, opset_version=13)
    return path


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_trained_network_answers_as_the_catalog_does(
    run: Run, squeezenet: Path, trained: Path, shared_data: Path, tmp_path: Path, order: str
) -> None:
    """The imported file, and the same with its channels swapped, gives the catalog's five best on every photo."""
    model = onnx.load(squeezenet)
    text = USUAL
    if order == "bgr":
        text = 'channels = "bgr"\nresize = 256\nmean = [0.406, 0.456, 0.485]\nstd = [0.225, 0.224, 0.229]\n'
        first = next(node for node in model.graph.node if node.op_type == "Conv")
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
        swapped = np.ascontiguousarray(numpy_helper.to_array(tensor)[:, ::-1])
        tensor.CopyFrom(numpy_helper.from_array(swapped, tensor.name))
    assert run(saved(model, tmp_path), "--name", "own", "--recipe", recipe(tmp_path, text)).exit_code == 0

    photos = sorted(map(str, (shared_data / "photos").glob("*.jp*g")))
    found = []
    for name, root in (("own", tmp_path / "artifacts"), ("squeezenet1_1", trained)):
        arguments = ["predict", *photos, "--model", name, "--artifacts", str(root), "--precision", "f32", "--json"]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        lines = [json.loads(line)["predictions"] for line in result.stdout.splitlines()]
        found.append([[(row["wnid"], row["label"]) for row in rows] for rows in lines])
    assert len(found[0]) == len(photos) > 8
    assert found[0] == found[1]
    manifest = load(tmp_path / "artifacts", "own").manifest
    catalog = CATALOG["squeezenet1_1"]
    assert (manifest.parameters, manifest.macs, manifest.max_batch) == (catalog.parameters, catalog.macs, None)
