"""What arguments may be, said before torch or a model is loaded; only the standard library is imported here."""

import argparse
import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType


def light_module(name: str) -> ModuleType:
    """A module that imports only the standard library, without its packages, which import torch and transformers."""
    package, *folders, module = name.split(".")
    folder = Path(find_spec(package).submodule_search_locations[0], *folders)
    stub = ModuleType("_".join(["light", package, *folders]))
    stub.__path__ = [str(folder)]
    sys.modules.setdefault(stub.__name__, stub)
    return importlib.import_module(f"{stub.__name__}.{module}")


def preset_names() -> list[str]:
    """All systems."""
    return list(light_module("configuration_shirg.presets_shirg").PRESETS)


def preset_name(name: str) -> str:
    """A `type` for arguments that name a preset: an unknown name is an error that suggests the nearest."""
    names = preset_names()
    if name not in names:
        nearest = light_module("configuration_shirg.presets_shirg").did_you_mean(name, names)
        raise argparse.ArgumentTypeError(f"Unknown system {name!r}.{nearest} Known: {', '.join(names)}.")
    return name


def system_label(text: str) -> str:
    """A `type` for arguments that name a system as `NAME` or `NAME:FIELD=VALUE,...`."""
    preset_name(text.partition(":")[0])
    return text


def image_file(source: str) -> str:
    """A `type` for arguments that name an image: a file, a URL, or - for standard input."""
    if source != "-" and not source.startswith(("http://", "https://", "data:")) and not os.path.isfile(source):
        raise argparse.ArgumentTypeError(f"there is no image file {source!r}")
    return source


def checkpoint(name: str) -> str:
    """A `type` for arguments that name a checkpoint: only OWNER/NAME, of which no OWNER is a folder here, may be on
    the Hub."""
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise argparse.ArgumentTypeError(f"{name!r} has no config.json and no adapter_config.json")
    elif name.count("/") != 1 or folder.is_absolute() or folder.parent.is_dir():
        beside = [str(entry) for entry in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        nearest = light_module("configuration_shirg.presets_shirg").did_you_mean(name, beside)
        raise argparse.ArgumentTypeError(f"There is no folder {name!r}, and it is no Hub id (OWNER/NAME).{nearest}")
    return name


def port_number(written: str) -> int:
    """A `type` for arguments that name a port."""
    if not written.isascii() or not written.isdigit() or int(written) > 65535:
        raise argparse.ArgumentTypeError(f"{written!r} must be an integer from 0 to 65535")
    return int(written)
