"""Tables for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from models.artifact.artifact import WeightSource
from models.artifact.measured import MeasuredAccuracy, Proportion, protocol
from service.common.errors import Code, TopfiveError
from service.common.model_info import ModelSummary
from service.common.types import Classification
from service.inference.comparison import Comparison

_IMAGENET = "ImageNet-1k"
_UNTRAINED = "a model with untrained weights has none of it"
_BAR_WIDTH = 24
_WIDTH_FOR_BAR = 70
_WIDTH_FOR_WNID = 80
_WIDTH_FOR_FAMILY = 100
_TWO_DIGITS, _THREE_DIGITS, _FOUR_DIGITS = 9.995, 99.95, 999.5  # before the point, after rounding to three digits


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line without markup and without line breaks, so that a path can be copied."""
    console.print(Text(text, style=style), soft_wrap=True)


def new_table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table of these columns, then of columns of numbers, which are never broken."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def prefixed(count: int) -> str:
    """The count with three digits and a prefix: 326 k, 1.50 G."""
    value, prefix = float(count), ""
    for prefix in ("", "k", "M", "G"):
        if value < _FOUR_DIGITS or prefix == "G":
            break
        value /= 1000
    decimals = 0 if not prefix or value >= _THREE_DIGITS else 1 if value >= _TWO_DIGITS else 2
    return f"{value:.{decimals}f} {prefix}".rstrip()


def rate(percent: float | None) -> str:
    """A percentage with two decimals, or `-` if it is not known."""
    return "-" if percent is None else f"{percent:.2f}"


def accuracy(error: float | None) -> float | None:
    """The accuracy in percent to an error rate in percent, which papers print."""
    return None if error is None else 100 - error


def rate_and_interval(accuracy: Proportion) -> str:
    """The accuracy with its interval below."""
    return f"{accuracy.percent:.2f}\n[{accuracy.low:.2f}, {accuracy.high:.2f}]"


def parameter_count(known: ModelSummary) -> str:
    """The parameters, and those with the auxiliary heads that only the training has."""
    training = f" ({known.parameters_train:,} with auxiliary heads)"
    return f"{known.parameters:,}{training if known.parameters_train != known.parameters else ''}"


def answer(title: str, classification: Classification, width: int) -> RenderableType:
    """The best classes of one image, with bars if `width` allows them, and the model and engine that answered."""
    table = new_table(numbers=["#"])
    table.add_column("class")
    table.add_column("probability", justify="right", no_wrap=True)
    if with_bar := width >= _WIDTH_FOR_BAR:
        table.add_column("", width=_BAR_WIDTH)
    if with_wnid := width >= _WIDTH_FOR_WNID:
        table.add_column("wnid", style="dim", no_wrap=True)
    for prediction in classification.predictions:
        row: list[RenderableType] = [str(prediction.rank), prediction.label, f"{prediction.probability:.4f}"]
        if with_bar:
            row.append(ProgressBar(total=1.0, completed=prediction.probability, width=_BAR_WIDTH))
        if with_wnid:
            row.append(prediction.wnid)
        table.add_row(*row)
    model, engine, timing = classification.model, classification.engine, classification.timing_ms
    done = classification.preprocessing
    accuracy = f"top-1 {model.acc1:.1f} %" if model.acc1 is not None else "accuracy not measured"
    summary = Text(
        f"{model.name} v{model.version} ({model.weights}), {model.parameters:,} parameters, "
        f"{prefixed(model.macs)} MACs, {accuracy}\n"
        f"{engine.runtime} {engine.version}, {engine.device}, {engine.precision}: decode {timing.decode:.1f} ms, "
        f"inference {timing.inference:.1f} ms, total {timing.total:.1f} ms\n"
        f"decoded at {done.scale} by {done.decoder}, {done.recipe}\n",
        style="dim",
    )
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in classification.warnings]
    return Group(Text(title, "bold"), table, *warnings, summary)


def comparison(title: str, compared: Comparison) -> RenderableType:
    """The best classes of each model, or its error, and below them the agreement of those with the same classes."""
    table = new_table("model", "best classes", numbers=("prob.", "params", "MACs", "top-1", "prec.", "ms"))
    lines: list[Text] = []
    agreed = {model for group in compared.agreement for model in group.models}
    others, untrained = [], False
    for row in compared.rows:
        if isinstance(row.result, Exception):
            code, reason = _code_and_reason(row.result)
            table.add_row(Text(row.model), Text(code, style="red"))
            lines.append(Text(f"{row.model}: {reason}", style="red"))
            continue
        card, best = row.result.model, row.result.predictions
        marked = any(one.weights == WeightSource.UNTRAINED for one in (card, *row.result.members))
        untrained = untrained or marked
        if row.model not in agreed:
            others.append(row.model)
        table.add_row(
            Text.assemble(row.model, (" *" if marked else "", "yellow")),
            Text(best[0].label, "bold"),
            Text(f"{best[0].probability:.3f}", "bold"),
            prefixed(card.parameters),
            prefixed(card.macs),
            "-" if card.acc1 is None else f"{card.acc1:.1f}",
            row.result.engine.precision,
            f"{row.result.timing_ms.inference:.1f}",
        )
        for other in best[1:]:
            table.add_row("", other.label, f"{other.probability:.3f}")
        if len(best) > 1:
            table.add_section()
    if untrained:
        lines.append(Text("* untrained weights: these answers mean nothing (topfive export NAME)", "yellow"))
    said = [f"{group.label} ({len(group.models)} of {len(agreed)})" for group in compared.agreement]
    lines.append(Text(f"best class: {', '.join(said) or 'no model answered'}"))
    if others:
        lines.append(Text(f"with other classes, so not counted: {', '.join(others)}"))
    common = ", ".join(same.label for same in compared.common) or "none"
    lines.append(Text(f"among the best of every model: {common}\n", style="dim"))
    return Group(Text(title, "bold"), table, *lines)


def _code_and_reason(error: Exception) -> tuple[str, str]:
    return (error.code, error.detail) if isinstance(error, TopfiveError) else (Code.INTERNAL, f"it failed: {error}")


def models(rows: Sequence[ModelSummary], width: int) -> RenderableType:
    """A row for each model; below, what the accuracies are, and those on other images than ImageNet's.

    The year and the family are shown if `width` allows them. In 80 columns no name of the catalog is wrapped.
    """
    wide = width >= _WIDTH_FOR_FAMILY
    numbers = ("parameters", "MACs", "top-1", "top-5")
    table = new_table("name", *(("year", "family") if wide else ()), numbers=numbers)
    table.add_column("exported", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row.name),
            *(("-" if row.year is None else str(row.year), Text(row.family)) if wide else ()),
            f"{row.parameters:,}",
            prefixed(row.macs),
            *((rate(row.acc1), rate(row.acc5)) if _on_imagenet(row) else ("-", "-")),
            _version(row),
        )
    lines = [f"top-1, top-5: published accuracy in % on {_IMAGENET}, validation; {_UNTRAINED}"]
    lines += [f"{row.name}: top-1 {rate(row.acc1)} % on {row.acc_dataset}" for row in rows if not _on_imagenet(row)]
    lines += [f"{row.name} v{row.version} measured: {_measured(one)}" for row in rows for one in row.measured]
    return Group(table, Text(), *(Text(line, "dim") for line in lines))


def _on_imagenet(row: ModelSummary) -> bool:
    return row.acc1 is None or (row.acc_dataset or "").startswith(_IMAGENET)


def _version(row: ModelSummary) -> RenderableType:
    if row.version is None:
        return "-"
    return Text(f"v{row.version} {'packaged' if row.packaged else row.weights}", "yellow" if row.warnings else "")


def _measured(one: MeasuredAccuracy) -> str:
    five = "" if one.acc5 is None else f", top-5 {one.acc5:.1f} % [{one.acc5_low:.1f}, {one.acc5_high:.1f}]"
    return (
        f"top-1 {one.acc1:.1f} % [{one.acc1_low:.1f}, {one.acc1_high:.1f}]{five} "
        f"on {one.images:,} images of {one.dataset}, {protocol(one.crops)}, {one.runtime} {one.precision}, {one.date}"
    )
