"""Versions of installed packages. Imports none of them."""

from importlib.metadata import PackageNotFoundError, version


def package_version(*names: str) -> str | None:
    """The version of the first of these packages that is installed, or None."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
