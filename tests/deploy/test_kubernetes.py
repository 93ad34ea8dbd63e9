"""deploy/kubernetes: what Kubernetes' own schemas say, what belongs together, and the container as a process."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from service.cli.gateway import gateway_command
from service.cli.serve import serve_command
from service.cli.variables import VARIABLES
from service.common.metrics import Metrics
from service.common.settings import Settings
from tests.deploy.container import answer_of
from tests.deploy.manifests import DEPLOY, documents, environment
from tests.exposition import families
from tests.fakes import FakeEngine
from tests.serving import serving

FOLDER = DEPLOY / "kubernetes"
LINKS = {
    "TOPFIVE_PORT": "tcp://10.96.0.1:8000",
    "TOPFIVE_PORT_8000_TCP": "tcp://10.96.0.1:8000",
    "TOPFIVE_PORT_8000_TCP_ADDR": "10.96.0.1",
    "TOPFIVE_SERVICE_HOST": "10.96.0.1",
    "TOPFIVE_SERVICE_PORT": "8000",
    "TOPFIVE_GATEWAY_PORT": "tcp://10.96.0.2:8000",
}
"""What a pod gets beside the Services `topfive` and `topfive-gateway`, where it does not switch that off."""


def resources() -> list[Any]:
    """Every resource of the folder."""
    return [one for path in sorted(FOLDER.glob("*.yaml")) for one in documents(path) if one["kind"] != "Kustomization"]


def of_kind(kind: str) -> dict[str, Any]:
    """The resources of a kind, by name."""
    return {one["metadata"]["name"]: one for one in resources() if one["kind"] == kind}


def pod(name: str) -> Any:
    """The pod template of a deployment."""
    return of_kind("Deployment")[name]["spec"]["template"]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_schemas(version: str) -> None:
    """Every resource of a kind that Kubernetes itself knows fits its strict schema, which refuses unknown fields."""
    import kubernetes_validate

    own = [one for one in resources() if one["kind"] != "ServiceMonitor"]
    for one in own:
        kubernetes_validate.validate(one, version, strict=True)
    assert len(own) == 8
    own[0]["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(own[0], version, strict=True)


def test_kustomization() -> None:
    """The kustomization has every file, the one for the Prometheus operator in a comment, and names the image."""
    [kustomization] = documents(FOLDER / "kustomization.yaml")
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "servicemonitor.yaml"}
    images = {one["spec"]["template"]["spec"]["containers"][0]["image"] for one in of_kind("Deployment").values()}

    assert set(kustomization["resources"]) == files
    assert "# - servicemonitor.yaml" in (FOLDER / "kustomization.yaml").read_text()
    assert images == {one["name"] for one in kustomization["images"]}


def test_selectors() -> None:
    """Each selector finds the pods of exactly one deployment, and each target and port name exists."""
    deployments = of_kind("Deployment")
    selectors = {
        (one["kind"], one["metadata"]["name"]): one["spec"]["selector"]
        for one in resources()
        if "selector" in one["spec"] and one["kind"] != "ServiceMonitor"
    }
    for (kind, name), selector in selectors.items():
        wanted = selector.get("matchLabels", selector).items()
        found = [one for one in deployments if wanted <= pod(one)["metadata"]["labels"].items()]
        assert found == ["topfive-gateway" if "gateway" in name else "topfive"], (kind, name)
        if kind == "Service":
            ports = {one["name"]: one["containerPort"] for one in pod(found[0])["spec"]["containers"][0]["ports"]}
            for port in of_kind(kind)[name]["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]
    scales = of_kind("HorizontalPodAutoscaler")["topfive"]["spec"]["scaleTargetRef"]
    assert scales == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "topfive"}
    assert "replicas" not in deployments["topfive"]["spec"], "the autoscaler sets them"


def test_monitor() -> None:
    """The monitor selects each server's REST port once; the headless Service has no such port."""
    monitor = of_kind("ServiceMonitor")["topfive"]["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    services = [one for one in of_kind("Service").values() if wanted <= one["metadata"]["labels"].items()]
    [endpoint] = monitor["endpoints"]
    scraped = [
        one["metadata"]["name"] for one in services for port in one["spec"]["ports"] if port["name"] == endpoint["port"]
    ]
    assert sorted(scraped) == ["topfive", "topfive-gateway"]


@pytest.mark.parametrize(("name", "command"), [("topfive", serve_command), ("topfive-gateway", gateway_command)])
def test_pods(name: str, command: click.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are options; the drain fits the grace period; the ports are the defaults; the pod is confined."""
    spec = pod(name)["spec"]
    [container] = spec["containers"]
    variables = environment(container)
    assert variables.keys() <= VARIABLES
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert container["args"][0] == command.name
    context = command.make_context(container["args"][0], container["args"][1:])
    settings = Settings(**{key: value for key, value in context.params.items() if key in Settings.model_fields})

    assert settings.pre_stop_s > 0
    assert settings.pre_stop_s + settings.drain_s < spec["terminationGracePeriodSeconds"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert {"http": Settings().port}.items() <= ports.items() <= {"http": 8000, "grpc": Settings().grpc_port}.items()
    assert spec["enableServiceLinks"] is spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in spec["volumes"]}


@pytest.mark.anyio
async def test_probes_and_metric(exported: Path) -> None:
    """A ready server answers every probe with 200, and has the metric of the autoscaler."""
    containers = [pod(name)["spec"]["containers"][0] for name in of_kind("Deployment")]
    paths = {
        container[f"{probe}Probe"]["httpGet"]["path"]
        for container in containers
        for probe in ("startup", "readiness", "liveness")
    }
    metrics = of_kind("HorizontalPodAutoscaler")["topfive"]["spec"]["metrics"]
    [metric] = [one["pods"]["metric"]["name"] for one in metrics if one["type"] == "Pods"]
    async with serving(exported, FakeEngine()) as running:
        assert {(await running.http.get(path)).status_code for path in paths} == {200}
        assert metric in [one.name for one in families(running.data_plane.metrics)]
    assert paths == {"/livez", "/readyz"}
    assert metric not in [one.name for one in families(Metrics())]


def test_container() -> None:
    """The inference container runs in a read-only root as any user id, also with the variables of a Service."""
    [container] = pod("topfive")["spec"]["containers"]
    env = environment(container) | LINKS | {"TOPFIVE_PRE_STOP_S": "0", "TOPFIVE_LOG_FORMAT": "text"}

    answer, log = answer_of(container["args"], env, {}, container["ports"][0]["containerPort"])

    assert json.loads(answer)["predictions"][0]["label"] == "zebra"
    assert "TOPFIVE_PORT=tcp://10.96.0.1:8000 is not read: Kubernetes sets it beside a Service called topfive" in log
    assert "ready: open" in log
    assert "no option reads" not in log
