"""The library behind `shirg push`, never on the Hub, and what training has to write for it.

run.json in a run folder: `base_model.fingerprint` is `base_fingerprint(model_or_folder)`, the model with or without
PEFT's layers; `config_overrides` is `system_overrides(config, base_config)`, of the config that was trained under and
the one that the base has saved; `config` is `geometry_facts(config)`.
"""

from modeling_shirg.adapters_shirg import geometry_facts, system_overrides

from .stored_weights import StoredWeights, base_fingerprint

__all__ = ["StoredWeights", "base_fingerprint", "geometry_facts", "system_overrides"]
