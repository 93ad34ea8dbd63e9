"""The results of a load test as JSON, as CSV, and as a page with a chart."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape

from loadgen.images import EncodedImage
from loadgen.plot import line_chart
from loadgen.results import LevelResult

# The columns of Triton's perf_analyzer, as its documentation prints them; in microseconds.
_COLUMNS = (
    "Inferences/Second",
    "Client Send",
    "Network+Server Send/Recv",
    "Server Queue",
    "Server Compute Input",
    "Server Compute Infer",
    "Server Compute Output",
    "Client Recv",
    "p50 latency",
    "p90 latency",
    "p95 latency",
    "p99 latency",
)
_CURVES = ("p50", "p90", "p99")
_LOG_FROM = 12.0  # the ratio of the largest to the smallest latency from which the axis is logarithmic
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2rem auto;padding:0 1rem;background:#fff;"
    "color:#1f2328}svg{width:100%;height:auto}table{border-collapse:collapse;width:100%}"
    "th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid #d9dde3}"
    "td:last-child,th:last-child{text-align:left}"
)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The results of a load test, and its configuration. `version` is topfive's version."""

    version: str
    api: str
    urls: tuple[str, ...]
    model: str
    images: tuple[EncodedImage, ...]
    seed: int
    results: tuple[LevelResult, ...]


def as_json(report: LoadReport) -> str:
    """One object; `points` has the fields of a `LevelResult` for each load level."""
    images = [
        {"name": image.name, "bytes": len(image.data), "size": image.size, "group": image.group}
        for image in report.images
    ]
    document = {
        "topfive": report.version,
        "api": report.api,
        "urls": list(report.urls),
        "model": report.model,
        "images": images,
        "seed": report.seed,
        "points": [asdict(result) for result in report.results],
    }
    return json.dumps(document, indent=2) + "\n"


def as_csv(report: LoadReport) -> str:
    """A row for each load level, with the columns of perf_analyzer and in its order, by rising throughput.

    `Client Send` and `Client Recv` are 0: they are part of the network's time. The server's columns are 0 if its
    responses do not say what their steps took.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["Request Rate" if _has_rates(report.results) else "Concurrency", *_COLUMNS])
    for result in sorted(report.results, key=lambda one: one.requests_per_second):
        server, latency = result.server_ms, result.latency_ms
        steps = (server.queue, server.input, server.inference) if server else (0.0,) * 3
        network = max(0.0, (latency.mean or 0.0) - sum(steps))
        writer.writerow(
            [
                result.load,
                f"{result.requests_per_second:.6g}",
                0,
                *(_microseconds(one) for one in (network, *steps)),
                0,
                0,
                *(_microseconds(one or 0.0) for one in (latency.p50, latency.p90, latency.p95, latency.p99)),
            ]
        )
    return file.getvalue()


def as_html(report: LoadReport) -> str:
    """A page without external files: latency over throughput as a chart, and a table. Raises ChartError."""
    title = escape(f"{report.model or report.api} at {', '.join(report.urls)}")
    images = f"{len(report.images)} image{'s' if len(report.images) > 1 else ''}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{title}</h1>\n<p>API {escape(report.api)}, {images}, seed {report.seed}, "
        f"topfive bench {escape(report.version)}. A hollow point is not valid: its note says why.</p>\n"
        f"{_chart(report.results)}\n{_table(report.results)}\n</body>\n</html>\n"
    )


def _chart(results: Sequence[LevelResult]) -> str:
    shown = [result for result in results if result.latency_ms.p50 is not None]
    if not shown:
        return "<p>No load had a good answer.</p>"
    curves = {
        name: [(result.requests_per_second, float(getattr(result.latency_ms, name))) for result in shown]
        for name in _CURVES
    }
    latencies = [latency for points in curves.values() for _, latency in points]
    return line_chart(
        curves,
        title="Latency over throughput",
        x_label="good answers per second",
        y_label="ms",
        y_scale="log" if max(latencies) > _LOG_FROM * min(latencies) else "linear",
        point_labels=[f"{result.load}/s" if result.rate is not None else result.load for result in shown],
        hollow=[index for index, result in enumerate(shown) if not result.valid],
    )


def _table(results: Sequence[LevelResult]) -> str:
    load = "requests/s" if _has_rates(results) else "connections"
    rows = [[load, "answers/s", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "errors", "notes"]]
    for result in results:
        latency = result.latency_ms
        milliseconds = [
            "-" if one is None else f"{one:.2f}" for one in (latency.p50, latency.p90, latency.p95, latency.p99)
        ]
        throughput = f"{result.requests_per_second:.1f}"
        rows.append([result.load, throughput, *milliseconds, str(result.failed), "; ".join(result.notes)])
    head, *body = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    lines = [f"<tr>{head.replace('td>', 'th>')}</tr>", *(f"<tr>{row}</tr>" for row in body)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _has_rates(results: Sequence[LevelResult]) -> bool:
    return any(result.rate is not None for result in results)


def _microseconds(milliseconds: float) -> int:
    return round(milliseconds * 1000)
