"""The model card of a converted checkpoint, rendered from the facts of the conversion."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from configuration_shirg import ShirgLavidaConfig

if TYPE_CHECKING:
    from .convert import Conversion

_TEMPLATE = "converted_card_template.md"


def write_card(folder: Path, facts: "Conversion", config: ShirgLavidaConfig) -> None:
    """Write README.md into `folder`."""
    on_hub = facts.revision is not None
    data = ModelCardData(
        **facts.license,
        base_model=facts.source if on_hub else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["masked-diffusion", "vision-language", "lavida", "shirg", "custom_code"],
    )
    card = ModelCard.from_template(
        data,
        template_str=(files("shirg_hub_card") / _TEMPLATE).read_text(),
        title=f"{facts.source.split('/')[-1]}, converted",
        facts=facts,
        source=_named(facts.source, facts.revision),
        base=None if facts.vision_base is None else _named(facts.vision_base, facts.vision_base_revision),
        license_text=_license(facts.license, "The source"),
        base_license_text=_license(facts.vision_base_license, "The vision base"),
        parameters=f"{facts.parameters:,}",
        gigabytes=f"{facts.bytes / 1e9:.3g}",
        image_tokens=config.num_image_tokens,
        views=config.lavida_views,
        pooled=config.lavida_views["pooled_grid_size"],
    )
    card.save(folder / "README.md")


def _named(name: str, revision: str | None) -> str:
    if revision is None:
        return f"a local folder, `{name}`"
    return f"[{name}](https://huggingface.co/{name}) at revision `{revision}`"


def _license(license_fields: dict[str, str], whose: str) -> str:
    if not license_fields:
        return f"{whose} states no licence in its card's metadata: ask its authors before you pass the weights on."
    name = license_fields.get("license_name") or license_fields.get("license")
    link = license_fields.get("license_link")
    return f"{whose}'s card states the licence `{name}`{f' ({link})' if link else ''}; it holds for these weights too."
