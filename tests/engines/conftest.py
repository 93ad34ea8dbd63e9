"""Fixtures: the artifact that engines open."""

from pathlib import Path

import pytest

from models.artifact.artifact import Artifact, load


@pytest.fixture(scope="session")
def tiny(exported: Path) -> Artifact:
    """The artifact of `tiny`; do not write into it."""
    return load(exported, "tiny")
