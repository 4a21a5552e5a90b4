"""What loading an original LaViDa checkpoint says."""

from transformers import PreTrainedConfig

from configuration_shirg.configuration_shirg_lavida import UNCONVERTED


class UnconvertedLavidaConfig(PreTrainedConfig):
    """The original's model type, registered so that the Auto classes name the remedy instead of not knowing it."""

    model_type = "llava_llada"

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Raises a `ValueError` that names `shirg convert`."""
        raise ValueError(UNCONVERTED)
