"""Reads manifests."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    import yaml  # of the development install

    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def environment(container: dict[str, Any]) -> dict[str, str]:
    """The variables of a container."""
    return {one["name"]: one["value"] for one in container.get("env", [])}
