"""Deploys deploy/ray on a local cluster of two nodes, kills a replica under load, and scales from 1 to 3 and back.

It prints what it measured; at the end what the way through Ray costs. It runs in an environment that has Ray.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from export.gate_images import PHOTOS
from tests.compose.docker import ROOT, free_port, run, waited
from tests.compose.load import WORKERS, Load

DEPLOY = ROOT / "deploy" / "ray"
NAME = "topfive"
OBJECTS_BYTES = 80 << 20
ZEBRA = PHOTOS / "zebra.jpeg"


def say(line: str) -> None:
    """One line of the report."""
    print(line, flush=True)  # noqa: T201


def command(name: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).with_name(name))


@contextmanager
def cluster(dashboard_port: int) -> Iterator[None]:
    """A cluster of two nodes of three CPUs each, as Ray counts them."""
    head = {"num_cpus": 3, "include_dashboard": True, "dashboard_port": dashboard_port}
    nodes = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": OBJECTS_BYTES})
    try:
        nodes.add_node(num_cpus=3, object_store_memory=OBJECTS_BYTES)
        ray.init(address=nodes.address, log_to_driver=False, configure_logging=False)
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
        yield
        serve.shutdown()
    finally:
        ray.shutdown()
        nodes.shutdown()


def deploy(dashboard: str, port: int, **changes: Any) -> None:
    """`serve deploy` with the config of the repository, with that port and these changes of its deployment."""
    config = yaml.safe_load((DEPLOY / "topfive.yaml").read_text())
    config["proxy_location"] = "HeadOnly"  # both nodes are on this machine, where a port exists once
    config["http_options"]["port"] = port
    [deployment] = config["applications"][0]["deployments"]
    deployment.update(changes, ray_actor_options={"num_cpus": 1})
    if "num_replicas" in changes:
        del deployment["autoscaling_config"]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        run(command("serve"), "deploy", file.name, "--address", dashboard)


def replicas() -> list[Any]:
    """The live replicas."""
    actors = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
    return [one for one in actors if one.class_name.startswith(f"ServeReplica:{NAME}")]


def running(count: int) -> bool:
    """Whether Ray says that the application runs with so many replicas, and no other one is left."""
    application = serve.status().applications.get(NAME)
    if application is None or application.status != "RUNNING":
        return False
    return application.deployments["Topfive"].replica_states == {"RUNNING": count} and len(replicas()) == count


def check_answers(url: str) -> None:
    """The trained model knows each photo, on every replica."""
    for photo in sorted(PHOTOS.glob("*.jpeg")) * 2:
        answer = httpx.post(f"{url}/predict", content=photo.read_bytes(), headers={"Content-Type": "image/jpeg"})
        label = answer.json()["predictions"][0]["label"]
        assert label.lower() == photo.stem.replace("_", " ").replace("-", " "), (photo.name, answer.text)
    broken = httpx.post(f"{url}/predict", content=b"no image", headers={"Content-Type": "image/jpeg"})
    assert (broken.status_code, broken.json()["code"]) == (422, "bad_image")
    assert httpx.get(f"{url}/docs").status_code == 200
    layout = httpx.get(f"{url}/models/squeezenet1_1").json()["layout"]
    assert layout["slots"] * layout["threads"] == 1, "the CPU that Ray gives"


def check_loss(load: Load) -> None:
    """A replica that is killed loses at most what it had in flight, and Ray replaces it."""
    load.more(100)
    killed = replicas()[0]
    os.kill(killed.pid, signal.SIGKILL)
    load.more(200)
    took_s = waited("a new replica runs", lambda: killed.pid not in [one.pid for one in replicas()] and running(2))
    before = load.counts()
    load.more(200)
    after = load.counts()
    lost = sum(count for end, count in after.items() if end != "200")
    say(f"one of two replicas killed under load: {after}; two ran again after {took_s:.1f} s")
    assert lost <= WORKERS, after
    assert {end: count for end, count in before.items() if end != "200"} == {
        end: count for end, count in after.items() if end != "200"
    }, "requests after that are answered"


def check_scaling(dashboard: str, url: str, port: int) -> None:
    """Replicas follow the load from 1 to 3 and back."""
    scaling = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 1, "metrics_interval_s": 1}
    deploy(
        dashboard,
        port,
        autoscaling_config={**scaling, "look_back_period_s": 3, "upscale_delay_s": 1, "downscale_delay_s": 3},
    )
    waited("one replica without load", lambda: running(1))
    load = Load(f"{url}/predict", ZEBRA.read_bytes())
    up_s = waited("three replicas under load", lambda: running(3))
    load.more(100)
    load.stop()
    down_s = waited("one replica after the load", lambda: running(1))
    say(f"scaled from 1 to 3 in {up_s:.1f} s under load, and back in {down_s:.1f} s: {load.counts()}")
    assert set(load.counts()) == {"200"}


def measure(urls: dict[str, str], rounds: int = 3) -> None:
    """Throughput and latency of one replica and of a server without Ray, in turn; the median of the rounds."""
    for connections in (1, 16):
        rows: dict[str, list[Any]] = {what: [] for what in urls}
        for what in list(urls) * rounds:
            words = ("--image", str(ZEBRA), "--connections", str(connections), "--seconds", "5", "--json")
            rows[what] += json.loads(run(command("topfive"), "bench", urls[what], *words))
        for what, measured in rows.items():
            rate = median(row["per_second"] for row in measured)
            p50, p99 = (median(row["latency_ms"][name] for row in measured) for name in ("p50", "p99"))
            say(f"{what}, {connections} connections: {rate:.0f} requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")


@contextmanager
def direct_server(port: int) -> Iterator[None]:
    """`topfive serve` with as many CPUs as a replica."""
    arguments = ["serve", "--models", "squeezenet1_1", "--cpus", "1", "--port", str(port), "--grpc-port", "0"]
    with subprocess.Popen([command("topfive"), *arguments], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def ready(url: str) -> bool:
    """Whether the server there is ready."""
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    """Check everything; an assertion fails where something does not hold."""
    os.environ["PYTHONPATH"] = f"{DEPLOY}:{ROOT}"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    port, dashboard_port = free_port(), free_port()
    url, dashboard = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{dashboard_port}"
    began = time.monotonic()
    with cluster(dashboard_port):
        say(f"cluster of two nodes in {time.monotonic() - began:.1f} s")
        deploy(dashboard, port, num_replicas=2)
        say(f"two replicas in {waited('two replicas', lambda: running(2)):.1f} s")
        assert len({one.node_id for one in replicas()}) == 2, "one on each node"
        check_answers(url)
        say("twenty answers of the trained model are right")
        load = Load(f"{url}/predict", ZEBRA.read_bytes())
        check_loss(load)
        load.stop()
        deploy(dashboard, port, num_replicas=1)
        waited("one replica", lambda: running(1))
        direct = f"http://127.0.0.1:{(direct_port := free_port())}"
        with direct_server(direct_port):
            waited("topfive serve is ready", lambda: ready(direct))
            measure({"one replica of Ray Serve": url, "topfive serve": direct})
        check_scaling(dashboard, url, port)
    say("test-ray: all held")


if __name__ == "__main__":
    main()
