"""What a transport may ask about models and the server's state, wherever the models are."""

import asyncio
from typing import Protocol

from service.common.errors import NotReady
from service.common.model_info import ModelDetail, ModelLayers, ModelList, ModelSummary
from service.repository.model_info import model_detail, model_layers
from service.repository.repository import Repository


class Directory(Protocol):
    """Facts of models and readiness, whether the repository is in this process or behind a network."""

    async def models(self) -> ModelList:
        """All of them: loaded, exported, or waiting to be exported. Raises NotReady before a default is known."""

    async def model(self, name: str) -> ModelDetail:
        """One of them. Raises ModelNotFound, or NotReady where it is damaged."""

    async def layers(self, name: str) -> ModelLayers:
        """The layers of an exported one, loaded or not. Raises as `model` does."""

    def check_alive(self) -> None:
        """Raise NotReady where only a new process can help."""

    def check_ready(self) -> None:
        """Raise NotReady or ShuttingDown where requests should go to another server."""


class LocalDirectory:
    """The directory of a repository. It reads files, so on threads; of what is loaded it asks single values only."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def models(self) -> ModelList:
        """All models of the catalog and all other exported ones, by name."""
        default = self._repository.default
        return ModelList(default, await asyncio.to_thread(self._rows))

    async def model(self, name: str) -> ModelDetail:
        """One of them."""
        return await asyncio.to_thread(lambda: model_detail(self._repository.entry(name)))

    async def layers(self, name: str) -> ModelLayers:
        """Its layers, read on a thread."""
        return await asyncio.to_thread(lambda: model_layers(self._repository.entry(name), self._repository.root))

    def _rows(self) -> tuple[ModelSummary, ...]:
        return tuple(model_detail(entry) for entry in self._repository.entries())

    def check_alive(self) -> None:
        """Raise NotReady where a queue is broken or an engine stuck beyond recovery."""
        if not self._repository.alive:
            raise NotReady("an engine or its queue has failed for good; restart the server")

    def check_ready(self) -> None:
        """Raise NotReady or ShuttingDown unless every configured model is loaded, warm and answering."""
        self._repository.check_ready()
