"""Fixtures: five exported models."""

import shutil
from pathlib import Path

import pytest

from tests.fleet import copy_model
from tests.repository.host import NAMES


@pytest.fixture(scope="session")
def five(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five small models, `tiny` and copies of it; do not write into it."""
    root = tmp_path_factory.mktemp("five") / "artifacts"
    shutil.copytree(exported, root)
    for name in NAMES[1:]:
        copy_model(root, name)
    return root
