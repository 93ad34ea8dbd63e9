"""The answers of several models to one image, and their agreement."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.common.types import Classification, Milliseconds, Prediction


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """The answer of one model, or its error. `model` is the name in the request."""

    model: str
    result: Classification | Exception


@dataclass(frozen=True, slots=True)
class ClassName:
    """The WordNet id of a class, empty if it has none, and its English name."""

    wnid: str
    label: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """A class that is the best of some models, and the names of these models."""

    wnid: str
    label: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComparisonTiming:
    """Milliseconds: decoding with every resize and crop, and the total."""

    decode: Milliseconds
    total: Milliseconds


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row for each model, in the order of the request.

    `agreement` has the best class of each model, the most frequent first. `common` has the classes that are among the
    best of every model, the most probable first. Both leave out models with other classes than most have.
    """

    rows: tuple[ComparisonRow, ...]
    agreement: tuple[Agreement, ...]
    common: tuple[ClassName, ...]
    timing_ms: ComparisonTiming
    warnings: tuple[str, ...]


def compared(rows: Sequence[tuple[ComparisonRow, str]], timing_ms: ComparisonTiming) -> Comparison:
    """The comparison of these rows, each with the sha256 of its model's labels.

    Two classes are the same if their wnid is, or without one their label.
    """
    answers = [(row.model, row.result, labels) for row, labels in rows if isinstance(row.result, Classification)]
    label_sets = [labels for *_, labels in answers]
    most = max(label_sets, key=label_sets.count, default="")
    alike = [(model, answer.predictions) for model, answer, labels in answers if labels == most]
    return Comparison(
        rows=tuple(row for row, _ in rows),
        agreement=_agreement((model, predictions[0]) for model, predictions in alike),
        common=_common([predictions for _, predictions in alike]),
        timing_ms=timing_ms,
        warnings=tuple(dict.fromkeys(warning for _, answer, _ in answers for warning in answer.warnings)),
    )


def _identity(prediction: Prediction) -> str:
    return prediction.wnid or prediction.label


def _agreement(best: Iterable[tuple[str, Prediction]]) -> tuple[Agreement, ...]:
    said: dict[str, list[tuple[str, Prediction]]] = {}
    for model, prediction in best:
        said.setdefault(_identity(prediction), []).append((model, prediction))
    groups = sorted(said.values(), key=len, reverse=True)
    return tuple(Agreement(group[0][1].wnid, group[0][1].label, tuple(model for model, _ in group)) for group in groups)


def _common(answers: Sequence[Sequence[Prediction]]) -> tuple[ClassName, ...]:
    if not answers:
        return ()
    by_class = [{_identity(prediction): prediction for prediction in answer} for answer in answers]
    shared = [key for key in by_class[0] if all(key in classes for classes in by_class)]
    shared.sort(key=lambda key: sum(classes[key].probability for classes in by_class), reverse=True)
    return tuple(ClassName(by_class[0][key].wnid, by_class[0][key].label) for key in shared)
