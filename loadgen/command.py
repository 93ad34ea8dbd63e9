"""The command `topfive bench`: measures throughput and latency of a server."""

import asyncio
import json
import math
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.connection import Connect, LoadTestError
from loadgen.http_connection import HttpAddress, HttpConnection, multipart_request, raw_request
from loadgen.images import EncodedImage, read_images
from loadgen.measurement import LoadLevel, LoadResult, MeasurementPlan, measure
from loadgen.tensors import Tensor, bare_request, binary_request, infer_address, json_request

_V2 = {"v2-raw": bare_request, "v2-json": json_request, "v2-binary": binary_request, "v2-grpc": None}
_CHECK_S = 60.0  # a first request may wait for a model to load


def _numbers(kind: Callable[[str], float]) -> Callable[[click.Context, click.Parameter, str | None], tuple[float, ...]]:
    """A click callback that reads a list with commas of numbers above 0."""

    def parse(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
        try:
            values = tuple(kind(part) for part in text.split(",")) if text else ()
        except ValueError:
            raise click.BadParameter(f"{text!r} is no number and no list such as 1,4,16") from None
        if not all(0 < value < math.inf for value in values):
            raise click.BadParameter("each must be above 0")
        return values

    return parse


@click.command("bench", context_settings={"show_default": True})
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@click.option(
    "--api",
    type=click.Choice(("raw", "multipart", "grpc", *_V2)),
    default="raw",
    help="How an image is sent; v2 is the Open Inference Protocol",
)
@click.option("--tensor", help="Instead of images, for v2: random values, such as image:UINT8:1,224,224,3")
@click.option("--model", default="", show_default=False, help="Model that answers; by default the server's")
@click.option(
    "--image",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="File or folder, may be repeated; by default a generated JPEG of 500x375 and 100 kB",
)
@click.option("--connections", callback=_numbers(int), help="Connections that never pause, 16 by default")
@click.option("--rate", callback=_numbers(float), help="Random arrivals per second instead")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=10.0, help="Duration of each measurement")
@click.option("--warm-up", type=click.FloatRange(0), default=2.0, help="Seconds before each measurement")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=30.0, help="Seconds until a request fails")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each load, in a list")
def bench_command(
    urls: Sequence[str],
    api: str,
    tensor: str | None,
    model: str,
    paths: Sequence[Path],
    connections: Sequence[float],
    rate: Sequence[float],
    **options: Any,
) -> None:
    """Measure throughput and latency of the server at URL.

    Several URLs share the connections evenly. Images are sent to /predict unless URL has another path; with --api
    grpc and v2-grpc, URL is HOST:PORT. With v2, it is any server of that protocol. --connections 1,4,16 and --rate
    50,100 measure each load in turn.

    The status is 1 if any request failed, or none was answered.
    """
    if connections and rate:
        raise click.UsageError("give --rate or --connections, not both")
    levels = [LoadLevel(rate=one) for one in rate] or [LoadLevel(int(one)) for one in connections or (16,)]
    plan = MeasurementPlan(options["warm_up"], options["seconds"], options["timeout"])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is an open file
    try:
        images = read_images(paths)
        connect = _connect(api, urls, model, images, tensor)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_check(connect, urls))
            results = []
            for level in levels:
                click.echo(f"{level}, {plan.warm_up_s + plan.seconds:g} s ...", err=True)
                results.append(runner.run(measure(connect, 1 if tensor else len(images), level, plan)))
    except LoadTestError as error:
        raise click.ClickException(str(error)) from error
    if options["as_json"]:
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
    else:
        _print(Console(), results)
    sys.exit(int(any(result.failed or not result.requests for result in results)))


def _connect(api: str, urls: Sequence[str], model: str, images: Sequence[EncodedImage], tensor: str | None) -> Connect:
    """Raises LoadTestError of what is no address or no tensor."""
    if api in _V2:
        return _connect_v2(api, urls, model, [Tensor.parse(tensor)] if tensor else list(map(Tensor.of_image, images)))
    if tensor:
        raise LoadTestError(f"--tensor needs --api {', '.join(_V2)}")
    if api == "grpc":
        from loadgen.grpc_connection import GrpcConnection, grpc_address, grpc_request

        servers, calls = [grpc_address(url) for url in urls], [grpc_request(image, model) for image in images]
        return lambda number: GrpcConnection(servers[number % len(servers)], calls)
    addresses = [HttpAddress.parse(url, model) for url in urls]
    request = multipart_request if api == "multipart" else raw_request
    requests = [[request(address, image) for image in images] for address in addresses]
    return lambda number: HttpConnection(addresses[number % len(urls)], requests[number % len(urls)])


def _connect_v2(api: str, urls: Sequence[str], model: str, tensors: Sequence[Tensor]) -> Connect:
    """The same for the Open Inference Protocol."""
    if (request := _V2[api]) is None:
        from loadgen.grpc_connection import INFER, GrpcConnection, grpc_address, infer_message

        servers, calls = [grpc_address(url) for url in urls], [infer_message(one, model) for one in tensors]
        return lambda number: GrpcConnection(servers[number % len(servers)], calls, INFER)
    addresses = [infer_address(url, model) for url in urls]
    requests = [[request(address, one) for one in tensors] for address in addresses]
    return lambda number: HttpConnection(addresses[number % len(urls)], requests[number % len(urls)])


async def _check(connect: Connect, urls: Sequence[str]) -> None:
    """Send one request to each server. Raises LoadTestError where one fails."""
    for number, url in enumerate(urls):
        connection = connect(number)
        response = await connection.send(0, _CHECK_S)
        await connection.aclose()
        if response.failure:
            raise LoadTestError(f"the first request to {url} failed: {response.failure}: {response.text or 'no text'}")


def _print(console: Console, results: Sequence[LoadResult]) -> None:
    """Print a row for each load; below the table its notes and its errors."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("load", no_wrap=True)
    for name in ("answers/s", "p50", "p90", "p99", "max ms", "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    below = Text()
    for result in results:
        load = str(LoadLevel(result.connections, result.rate))
        times = [f"{result.latency_ms.get(name, math.nan):.2f}" for name in ("p50", "p90", "p99", "max")]
        table.add_row(load, f"{result.per_second:.1f}", *times, str(result.failed))
        below.append("".join(f"{load}: {note}\n" for note in result.notes), "yellow")
        for failure, count in result.errors.items():
            below.append(f"{load}: {count} x {failure}: {result.error_examples[failure]}\n", "red")
    console.print(table)
    console.print(below, soft_wrap=True, end="")
