"""Licences, as cards state them in their metadata."""

_FIELDS = ("license", "license_name", "license_link")


def licence_fields(metadata: dict) -> dict[str, str]:
    """The licence fields of a card's metadata; empty where the card states none."""
    return {name: metadata[name] for name in _FIELDS if metadata.get(name)}


def licence_text(fields: dict[str, str], whose: str) -> str:
    """A sentence about the licence of what weights come from; `whose` begins it, such as "The base"."""
    if not fields:
        return f"{whose} states no licence in its card's metadata: ask its authors before you pass the weights on."
    name = fields.get("license_name") or fields.get("license")
    link = fields.get("license_link")
    return f"{whose}'s card states the licence `{name}`{f' ({link})' if link else ''}; it holds for these weights too."
