"""Settings that a user wrote down: a JSON or a YAML file."""

import json
from pathlib import Path
from typing import Any

import yaml


def read_settings(file: Path) -> Any:
    """What a file holds: JSON where its name ends in .json, else YAML.

    Raises:
        ValueError: it is not there, or it is no text of that kind.
    """
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
