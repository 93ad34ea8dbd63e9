"""Files of API keys for the tests."""

from hashlib import sha256
from pathlib import Path
from typing import Any


def write_keys(path: Path, **keys: dict[str, Any]) -> Path:
    """Write a file of keys by name. The key of `web` is `web-key`."""
    entries = []
    for name, values in keys.items():
        lines = [f'name = "{name}"', f'sha256 = "{sha256(f"{name}-key".encode()).hexdigest()}"']
        lines += [f"{field} = {value!r}" for field, value in values.items()]
        entries.append("[[key]]\n" + "\n".join(lines))
    path.write_text("\n".join(entries))
    return path


def bearer(name: str) -> dict[str, str]:
    """The header or metadata with that key."""
    return {"authorization": f"Bearer {name}-key"}
