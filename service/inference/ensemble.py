"""Ensembles: `ensemble:a+b+c` averages the probabilities of its members."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from models.labels import Label
from service.common.errors import BadRequest
from service.common.metrics import LatencyRecord
from service.common.tasks import together
from service.common.types import ENSEMBLE, ENSEMBLE_PREFIX, MAX_MEMBERS, EngineInfo, ModelCard, Probabilities
from service.repository.loaded_model import Lease, LoadedModel
from service.repository.repository import Repository

_MOST_KEPT = 64  # ensembles whose latency is kept; clients choose the names, so their number is unbounded

_MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several models with the same classes, and the latency of all together. It has the interface of a model."""

    members: tuple[LoadedModel, ...]
    latency: LatencyRecord

    @property
    def name(self) -> str:
        return ENSEMBLE_PREFIX + "+".join(member.name for member in self.members)

    @property
    def metrics_label(self) -> str:
        """The same label for all ensembles, because clients make up their names."""
        return ENSEMBLE

    @property
    def labels(self) -> Sequence[Label]:
        return self.members[0].labels

    @property
    def card(self) -> ModelCard:
        """Sums of the members' figures; version and accuracy stay with the members."""
        cards = self.member_cards
        weights = {card.weights for card in cards}
        return ModelCard(
            name=self.name,
            version=0,
            family=ENSEMBLE,
            parameters=sum(card.parameters for card in cards),
            macs=sum(card.macs for card in cards),
            input_size=max(card.input_size for card in cards),
            weights=cards[0].weights if len(weights) == 1 else _MIXED,
            acc1=None,
            acc5=None,
            acc_dataset=None,
            latency_ms=self.latency.snapshot(),
        )

    @property
    def member_cards(self) -> tuple[ModelCard, ...]:
        return tuple(member.card for member in self.members)

    @property
    def engine_info(self) -> EngineInfo:
        """The engines of the members. If a field differs, `+` joins the values."""
        infos = [member.engine_info for member in self.members]
        if len(set(infos)) == 1:
            return infos[0]
        return EngineInfo(
            runtime=_joined(info.runtime for info in infos),
            version=_joined(info.version for info in infos),
            device=_joined(info.device for info in infos),
            precision=_joined(info.precision for info in infos),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(warning for member in self.members for warning in member.warnings))


ServedModel = LoadedModel | Ensemble
"""What a request may name. The `members` of a model are the model itself."""


class Ensembles:
    """Finds ensembles by name and loads their members. Keeps the latency records of the latest ones."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._latest: OrderedDict[tuple[str, ...], Ensemble] = OrderedDict()

    async def get(self, name: str, lease: Lease | None = None) -> Ensemble:
        """The ensemble of that name, whose members `lease` keeps loaded.

        Raises BadRequest if the name is no valid ensemble, and for each member the errors of `Repository.get`.
        """
        names = tuple(self._repository.canonical(member) for member in member_names(name))
        if len(set(names)) < len(names):
            twice = next(one for one in names if names.count(one) > 1)
            raise BadRequest(f"{twice} is in the ensemble twice; name each member once")
        members = tuple(await together([self._repository.get(member, lease) for member in names]))
        ensemble = self._latest.pop(names, None)  # the object of the last time, so that its latency record continues
        if ensemble is None or ensemble.members != members:
            _check_labels(members)
            ensemble = Ensemble(members, LatencyRecord())
        self._latest[names] = ensemble
        if len(self._latest) > _MOST_KEPT:
            self._latest.popitem(last=False)
        return ensemble


def is_ensemble(name: str) -> bool:
    """Whether the name is the name of an ensemble."""
    return name.startswith(ENSEMBLE_PREFIX)


def canonical(repository: Repository, name: str) -> str:
    """The same name for every spelling of one model or ensemble, whether it exists or not."""
    if not is_ensemble(name):
        return repository.canonical(name)
    return ENSEMBLE_PREFIX + "+".join(repository.canonical(one) for one in _split(name))


def stripped(name: str) -> str:
    """The name of a model or an ensemble as answers contain it: without blanks, members joined by `+`."""
    return ENSEMBLE_PREFIX + "+".join(_split(name)) if is_ensemble(name) else name.strip()


def member_names(name: str) -> tuple[str, ...]:
    """The models in a name: the model itself, or the members of an ensemble. Raises BadRequest."""
    if not is_ensemble(name):
        return (name,)
    names = _split(name)
    if not 2 <= len(names) <= MAX_MEMBERS:
        raise BadRequest(f"an ensemble has 2 to {MAX_MEMBERS} members, such as {ENSEMBLE_PREFIX}googlenet+resnet50")
    return names


def mean(rows: Sequence[Probabilities]) -> Probabilities:
    """The plain average of rows [C], computed in float64."""
    total = np.zeros(rows[0].shape, dtype=np.float64)
    for row in rows:
        total += row
    return (total / len(rows)).astype(np.float32)


def _split(name: str) -> tuple[str, ...]:
    """The members of an ensemble. A `+` that is not escaped in a URL arrives as a blank."""
    return tuple(name.removeprefix(ENSEMBLE_PREFIX).replace("+", " ").split())


def _check_labels(members: Sequence[LoadedModel]) -> None:
    first = members[0]
    for other in members[1:]:
        if other.labels != first.labels:
            raise BadRequest(f"{first.name} and {other.name} have different classes, so they make no ensemble")


def _joined(values: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(values))
