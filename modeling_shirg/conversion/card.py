"""The model card of a converted checkpoint, rendered from the facts of the conversion."""

from pathlib import Path
from typing import TYPE_CHECKING

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg.publishing.cards import render
from modeling_shirg.publishing.licences import licence_text

if TYPE_CHECKING:
    from .convert import Conversion

_TAGS = ["masked-diffusion", "vision-language", "lavida", "shirg", "custom_code"]


def write_card(folder: Path, facts: "Conversion", config: ShirgLavidaConfig) -> None:
    """Write README.md into `folder`."""
    base_model = None if facts.revision is None else facts.source
    card = render(
        "converted",
        {**facts.license, "base_model": base_model, "tags": _TAGS},
        title=f"{facts.source.split('/')[-1]}, converted",
        facts=facts,
        from_source=_named(facts.source, facts.revision),
        base=None if facts.vision_base is None else _named(facts.vision_base, facts.vision_base_revision),
        license_text=licence_text(facts.license, "The source"),
        base_license_text=licence_text(facts.vision_base_license, "The vision base"),
        parameters=f"{facts.parameters:,}",
        gigabytes=f"{facts.bytes / 1e9:.3g}",
        image_tokens=config.num_image_tokens,
        views=config.lavida_views,
        source="path/to/this/folder",
        revision="main",
        image="photo.png",
        question="Describe the image in detail.",
        pooled=config.lavida_views["pooled_grid_size"],
    )
    card.save(folder / "README.md")


def _named(name: str, revision: str | None) -> str:
    if revision is None:
        return f"a local folder, `{name}`"
    return f"[{name}](https://huggingface.co/{name}) at revision `{revision}`"
