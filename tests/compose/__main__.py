"""Builds the images, starts the profiles, kills and restarts servers under load, and takes everything down again.

It prints what it measured. Variables: those of docker-compose.yml, such as PYTHON_IMAGE; and TOPFIVE_TEST_EXPORT=1 for
the export job of the compose file as well, whose image takes minutes and about 7 GB.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import grpc
import httpx

from export.gate_images import PHOTOS
from proto.topfive.v1 import classifier_pb2 as pb
from proto.topfive.v1.classifier_pb2_grpc import ClassifierStub
from tests.compose.docker import ROOT, Compose, Missing, compose_command, free_port, inspect, run, waited
from tests.compose.load import WORKERS, Load

MODEL = "lenet5"
IMAGE = "topfive:cpu"
GRACE_S = 30.0
PHOTO = (PHOTOS / "zebra.jpeg").read_bytes()


def say(line: str) -> None:
    """One line of the report."""
    print(line, flush=True)  # noqa: T201


def check_image() -> None:
    """The image is small, has no torch, compiler or package manager, and runs as a user without rights."""
    size, config = inspect(IMAGE)["Size"], inspect(IMAGE)["Config"]
    assert size < 1_000_000_000, f"{IMAGE} has {size / 1e6:.0f} MB"
    assert config["User"] == "10001:0"
    assert not [value for value in config["Env"] if value.startswith("PIP_")]
    script = (
        "import importlib.util as u, os, shutil, service;"
        "print([m for m in ('torch', 'torchvision', 'onnx', 'pip') if u.find_spec(m)],"
        " [c for c in ('gcc', 'cc', 'g++', 'make') if shutil.which(c)], os.getuid(), bool(service.__cached__))"
    )
    contained = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    found = run("docker", "run", "--rm", *contained, "--entrypoint", "python", IMAGE, "-c", script)
    assert found == "[] [] 10001 True", found
    volumes = ["--volume", "/artifacts", "--volume", "/cache"]
    write = ["--user", "1234", "--entrypoint", "touch", IMAGE, "/artifacts/x", "/cache/x"]
    run("docker", "run", "--rm", *contained, *volumes, *write)  # a user id without a name, such as OpenShift gives
    say(f"image {IMAGE}: {size / 1e6:.0f} MB, no torch, no compiler, uid 10001")


def check_contained(container: str) -> None:
    """The container is read-only, has no capabilities, and is reached from this machine only."""
    found = inspect(container)
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    bound = {one["HostIp"] for ports in (host["PortBindings"] or {}).values() for one in ports}
    assert bound <= {"127.0.0.1"}, bound
    write = ["docker", "exec", container, "sh", "-c", "touch /opt/topfive/x /artifacts/x"]
    assert subprocess.run(write, capture_output=True, check=False, timeout=60).returncode != 0


def check_stop(compose: Compose, service: str) -> None:
    """SIGTERM ends the service with status 0 within its time."""
    (container,) = compose.containers(service)
    began = time.monotonic()
    compose("stop", service)
    took_s = time.monotonic() - began
    assert inspect(container)["State"]["ExitCode"] == 0
    assert took_s < GRACE_S
    say(f"{service}: graceful stop in {took_s:.1f} s, status 0")


def predicted(url: str) -> str:
    """The best class by REST."""
    answer = httpx.post(f"{url}/predict", files={"image": PHOTO}, timeout=60)
    assert answer.status_code == 200, answer.text
    label: str = answer.json()["predictions"][0]["label"]
    return label


def check_edge(compose: Compose, label: str, service: str) -> None:
    """nginx answers REST as that service does, which believes what nginx says; metrics are not public."""
    url = f"http://127.0.0.1:{compose.env['TOPFIVE_EDGE_PORT']}"
    assert predicted(url) == label
    assert f"'{url}/predict'" in httpx.post(f"{url}/predict").json()["detail"]
    assert httpx.get(f"{url}/metrics").json()["detail"] == "this path is not public"
    check_contained(compose.containers("edge")[0])
    say(f"nginx answers for {service}")


def check_cpu(compose: Compose) -> str:
    """One process gives the same answer by REST and by gRPC, and so does nginx in front of it. The best class."""
    began = time.monotonic()
    compose("up", "-d", limit_s=300)
    waited("serve is healthy", lambda: compose.healthy("serve"))
    say(f"profile cpu: healthy {time.monotonic() - began:.1f} s after `up`")
    label = predicted(f"http://127.0.0.1:{compose.env['TOPFIVE_PORT']}")
    for port in ("TOPFIVE_GRPC_PORT", "TOPFIVE_EDGE_GRPC_PORT"):
        with grpc.insecure_channel(f"127.0.0.1:{compose.env[port]}") as channel:
            reply = ClassifierStub(channel).Classify(pb.ClassifyRequest(image=PHOTO), timeout=30)  # type: ignore[no-untyped-call]
        assert reply.predictions[0].label == label
    check_edge(compose, label, "serve")
    check_stop(compose, "edge")
    check_contained(compose.containers("serve")[0])
    check_stop(compose, "serve")
    compose.down()
    return label


def survived(load: Load, what: str, *, lost: int = 0) -> None:
    """Say how the requests ended, with 200 more; all but `lost` of them must have been answered."""
    load.more(200)
    counts, slowest_s = load.counts(), load.slowest_s()
    say(f"{what}: {counts}, slowest {slowest_s:.1f} s")
    assert set(counts) <= {"200", "503"}, what
    assert counts.get("503", 0) <= lost, what
    load.ends.clear()


def served(container: str) -> float:
    """How many answers an inference server has given since its start."""
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics').read().decode())"
    lines = run("docker", "exec", container, "python", "-c", script).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("topfive_requests_total"))


def check_split(compose: Compose, label: str) -> None:
    """A gateway in front of two servers loses no request while servers come and go."""
    compose("up", "-d", "--scale", "inference-cpu=2", limit_s=300)
    waited("both servers are healthy", lambda: compose.healthy("inference-cpu", 2))
    waited("the gateway is healthy", lambda: compose.healthy("gateway"))
    url = f"http://127.0.0.1:{compose.env['TOPFIVE_PORT']}"
    assert predicted(url) == label
    check_edge(compose, label, "gateway")
    one, two = compose.containers("inference-cpu")
    load = Load(f"{url}/predict", PHOTO)
    load.more(200)
    shares = [served(container) for container in (one, two)]
    assert min(shares) > 50, shares
    survived(load, f"steady, servers answered {shares[0]:.0f} and {shares[1]:.0f}")

    check_losses(compose, load, one, two)
    check_contained(compose.containers("gateway")[0])
    check_stop(compose, "gateway")
    load.stop()
    counts = load.counts()
    say(f"the gateway stopped under load: {counts}")
    refused = {"200", "ConnectError", "ReadError", "RemoteProtocolError", "WriteError"}  # of later requests
    assert set(counts) <= refused, counts


def check_losses(compose: Compose, load: Load, one: str, two: str) -> None:
    """Servers are killed, started, silent, stopped and restarted, and a third one joins: every request is answered.

    Only the requests that all servers had when all were killed may be lost.
    """
    run("docker", "kill", "--signal", "KILL", one)
    load.more(200)
    run("docker", "start", one)
    waited("the killed server takes calls again", lambda: compose.healthy("inference-cpu", 2) and served(one) > 20)
    survived(load, "one server killed and started")

    run("docker", "pause", one)
    waited("the silent server is given up", lambda: load.slowest_s() > 5)
    run("docker", "unpause", one)
    survived(load, "one server silent without closing a connection")

    run("docker", "kill", "--signal", "KILL", one, two)
    time.sleep(2)
    run("docker", "start", one, two)
    survived(load, "all servers killed, down for 2 s, started", lost=WORKERS)  # what both had when they were killed

    compose("stop", "inference-cpu")
    assert [inspect(container)["State"]["ExitCode"] for container in (one, two)] == [0, 0]
    compose("start", "inference-cpu")
    survived(load, "all servers stopped and started")

    compose("restart", "inference-cpu")
    survived(load, "all servers restarted")

    compose("up", "-d", "--scale", "inference-cpu=3", "--no-recreate", limit_s=300)
    new = next(container for container in compose.containers("inference-cpu") if container not in (one, two))
    took_s = waited("a third server takes calls", lambda: compose.healthy("inference-cpu", 3) and served(new) > 10)
    survived(load, f"a third server after {took_s:.1f} s")


def exported(folder: Path) -> None:
    """Export the model into that folder, for any user to read."""
    topfive = str(Path(sys.executable).with_name("topfive"))
    run(topfive, "export", MODEL, "--artifacts", str(folder), limit_s=300)
    run("chmod", "-R", "a+rX", str(folder))


def main() -> int:
    """Check everything. The exit status is 0 where all held, 1 where not, 2 where Docker is missing."""
    try:
        command = compose_command()
    except Missing as missing:
        say(f"test-compose: {missing}")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        env = {
            "TOPFIVE_MODELS": MODEL,
            "TOPFIVE_PORT": str(free_port()),
            "TOPFIVE_GRPC_PORT": str(free_port()),
            "TOPFIVE_TEST_ARTIFACTS": folder,
            "TOPFIVE_EDGE_PORT": str(free_port()),
            "TOPFIVE_EDGE_GRPC_PORT": str(free_port()),
            "TOPFIVE_BIND": "127.0.0.1",
            "TOPFIVE_EDGE_BIND": "127.0.0.1",
            "TOPFIVE_FORWARDED_ALLOW_IPS": "172.16.0.0/12,192.168.0.0/16",
        }
        files = ["docker-compose.yml"]
        if not os.environ.get("TOPFIVE_TEST_EXPORT"):
            exported(Path(folder))
            files.append("tests/compose/artifacts.yml")
        if os.environ.get("PYTHON_IMAGE") and not os.environ.get("NGINX_IMAGE"):
            files.append("tests/compose/nginx.yml")
        cpu = Compose(command, [str(ROOT / file) for file in files], ("cpu", "edge"), env)
        split = replace(cpu, profiles=("split", "edge"))
        try:
            began = time.monotonic()
            split("build", limit_s=1800)
            say(f"images built in {time.monotonic() - began:.0f} s")
            check_image()
            check_split(split, check_cpu(cpu))
        except AssertionError as error:
            say(f"test-compose: failed: {error}")
            say(split("logs", "--no-color", "--tail", "40"))
            return 1
        finally:
            split.down()
            cpu.down()
    say("test-compose: all held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
