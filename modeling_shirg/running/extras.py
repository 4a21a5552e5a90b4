"""Packages that only some commands need."""

from importlib.util import find_spec


def need(extra: str, *packages: str) -> None:
    """Raises a `ValueError` that names the extra to install, unless its packages are there."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} is not installed: pip install 'shirg-lavida[{extra}]'.")
