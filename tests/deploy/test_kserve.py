"""deploy/kserve: what KServe's definitions say, and the runtime's command as a process on a folder with an artifact."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.artifact.artifact import PACKAGED
from service.cli.variables import VARIABLES
from tests.deploy.container import answer_of
from tests.deploy.manifests import DEPLOY, documents, environment

FOLDER = DEPLOY / "kserve"
NAME = "my-photos"


def manifest(name: str) -> Any:
    """The one document of a file."""
    [document] = documents(FOLDER / name)
    return document


def strict(schema: Any) -> Any:
    """The schema, which refuses unknown fields of an object where it names its fields; a cluster would drop them."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    open_ended = ("additionalProperties", "x-kubernetes-preserve-unknown-fields")
    closed = isinstance(schema.get("properties"), dict) and not any(key in schema for key in open_ended)
    return inner | ({"additionalProperties": False} if closed else {})


def container() -> Any:
    """The runtime's container for the service `NAME`, as the controller makes it."""
    [template] = manifest("clusterservingruntime.yaml")["spec"]["containers"]
    text = json.dumps(template).replace("{{.Name}}", NAME)
    assert "{{" not in text
    return json.loads(text)


@pytest.mark.parametrize(
    ("file", "definition"),
    [
        ("clusterservingruntime.yaml", "clusterservingruntimes.crd.yaml"),
        ("inferenceservice.yaml", "inferenceservices.crd.yaml"),
    ],
)
def test_definitions(file: str, definition: str, shared_data: Path) -> None:
    """Each example fits the definition of its kind, and has no field that the definition does not know."""
    import jsonschema

    example = manifest(file)
    [crd] = documents(shared_data / "kserve" / definition)
    group, version = example["apiVersion"].split("/")
    [schema] = [one["schema"]["openAPIV3Schema"] for one in crd["spec"]["versions"] if one["name"] == version]
    validator = jsonschema.Draft202012Validator(strict(schema))

    assert (crd["spec"]["group"], crd["spec"]["names"]["kind"]) == (group, example["kind"])
    assert list(validator.iter_errors(example)) == []
    example["spec"]["protocolVersion"] = "v2"
    assert list(validator.iter_errors(example)) != []


def test_pod() -> None:
    """The pod that the controller makes of the runtime fits Kubernetes' own schema; its variables are options."""
    import kubernetes_validate

    runtime = manifest("clusterservingruntime.yaml")["spec"]
    spec = {"containers": [container()], "volumes": runtime["volumes"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME}, "spec": spec}

    kubernetes_validate.validate(pod, "1.37", strict=True)
    variables = environment(container())
    assert variables.keys() <= VARIABLES
    assert float(variables["TOPFIVE_PRE_STOP_S"]) + float(variables["TOPFIVE_DRAIN_S"]) < 30


def test_example() -> None:
    """The example asks for a format and a protocol that the runtime has and that is chosen without being named."""
    runtime, example = manifest("clusterservingruntime.yaml")["spec"], manifest("inferenceservice.yaml")
    model = example["spec"]["predictor"]["model"]
    [supported] = [one for one in runtime["supportedModelFormats"] if one["name"] == model["modelFormat"]["name"]]

    assert supported["autoSelect"]
    assert supported["version"] == model["modelFormat"]["version"]
    assert model["protocolVersion"] in runtime["protocolVersions"]


@pytest.mark.parametrize("folder", ["squeezenet1_1", "squeezenet1_1/1"])
def test_container(folder: str) -> None:
    """The runtime serves the artifact under the name of the service, by each protocol, as any user id."""
    made = container()
    env = environment(made) | {"TOPFIVE_PRE_STOP_S": "0", "TOPFIVE_LOG_FORMAT": "text"}
    port = made["readinessProbe"]["httpGet"]["port"]

    paths = [f"/v1/models/{NAME}", f"/v2/models/{NAME}", f"/v2/models/{NAME}/ready", "/v2/health/ready", "/metrics"]

    answer, log = answer_of(made["args"], env, {PACKAGED / folder: "/mnt/models"}, port, paths)

    assert json.loads(answer)["model"]["name"] == NAME
    assert json.loads(answer)["predictions"][0]["label"] == "zebra"
    assert "gRPC on 0.0.0.0:9000" in log
