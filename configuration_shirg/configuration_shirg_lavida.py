"""Configuration of SHIRG-LaViDa: one vision tower, one projector, one bidirectional language model, and between them a
view policy (which pixels are looked at) and a selection (which of their tokens the language model reads).

The number of image tokens follows from this file alone, so the processor can write the placeholders before the model
runs.
"""

import math
from copy import deepcopy
from difflib import get_close_matches
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .calibration_shirg import AttentionMap, attention_mean, check_calibration, foreign_means, relevance_sign
from .geometry_shirg import check_pinpoints, grid_side, mosaic_length, mosaic_window, select_best_resolution
from .presets_shirg import GEOMETRIES, geometry_of, preset_fields

_MODULE = "modeling_shirg_lavida"
_MODEL = f"{_MODULE}.ShirgLavidaForConditionalGeneration"

# Keys that transformers itself may hand to a config besides its fields.
_TRANSFORMERS_KEYS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "quantization_config",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    "use_cache",
}

_DEFAULT_SYSTEM = preset_fields("shirg", "full")

UNCONVERTED = (
    "This is an original LaViDa checkpoint (model_type 'llava_llada'). Convert it once with `shirg convert SRC OUT`, "
    "then load OUT."
)

# What a sub-config given as a dict leaves out: LaViDa's own sizes.
_VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": GEOMETRIES["full"]["image_size"],
    "patch_size": 14,
    "vision_use_head": True,  # no field of SiglipVisionConfig before transformers 5.21
}
_TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 126464,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": None,
    "eos_token_id": None,
    "is_causal": False,
}

_MODEL_TYPES = {
    "vision_config": "siglip_vision_model",
    "text_config": "llama",
    "relevance_text_config": "siglip_text_model",
}

# Of all sub-configs: what is no size below 1.
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_channels",
    "image_size",
    "patch_size",
    "vocab_size",
    "max_position_embeddings",
    "projection_size",
)

_WEIGHTS = (
    "attention_weight",
    "text_weight",
    "diversity_weight",
    "neighbor_weight",
    "center_weight",
    "merge_threshold",
    "variance_weight",
    "edge_weight",
)

_LARGEST_FOVEA = 16  # sides of a base view; more is a slip of the pen, and would ask for terabytes

# The fields of `lavida_views`, facts of a checkpoint that preset `lavida` takes from it.
_LAVIDA_VIEWS = ("view_policy", "image_grid_pinpoints", "pooled_grid_size")

# The one remedy for everything that `text_relevance="siglip"` can lack.
_GRAFT_TEXT_TOWER = (
    "Convert the checkpoint with `--vision_base google/siglip-so400m-patch14-384 --text_tower`, or use 'lm' or 'none'."
)


@strict
class ShirgLavidaConfig(PreTrainedConfig):
    r"""
    Args:
        vision_config (`dict` or `SiglipVisionConfig`, *optional*): SigLIP with its last layer and its pooling head;
            the default is so400m-patch14-384.
        text_config (`dict` or `LlamaConfig`, *optional*): the language model; the default is LLaDA-8B. It is always
            bidirectional: `is_causal` is set to `False`.
        relevance_text_config (`dict` or `SiglipTextConfig`, *optional*): SigLIP's own text tower, for
            `text_relevance="siglip"`; `None` without one.
        prune_method (`str`, defaults to `"shirg"`): name of the preset that these fields came from, for reports.
        view_policy (`"foveal"`, `"whole"`, `"anyres"`, `"pad"` or `"square"`, defaults to `"foveal"`): `foveal` looks
            at the whole image squashed to the base size and at one square fovea; `whole` at the whole image squashed
            to `fovea_size`; `anyres` at the whole image and at tiles of a padded canvas, as LaViDa does; `pad` and
            `square` at one view, the image padded to a square in grey or squashed, as LaViDa's low-resolution
            checkpoint does.
        fovea_size (`int`, *optional*, defaults to 448): side in pixels of the fovea, or of the view of `whole`; `None`
            without either.
        fovea_placement (`"center"`, `"salient"` or `"box"`, defaults to `"center"`): where the fovea sits.
        image_grid_pinpoints (`list[list[int]]`, *optional*): canvases (width, height) that `anyres` may choose from.
        patch_merge_type (`"flat"` or `"spatial_unpad"`, defaults to `"flat"`): how the tokens of several views are
            joined: one view after the other; or, as LaViDa does, the whole image's, then the rows of the mosaic of
            tiles without its padding, a newline token after each row. A single view ends in one newline token.
        pooled_grid_size (`int`, *optional*, defaults to 16): side of the grid that the tokens of a base-size view are
            pooled to after the projector; `None` keeps the view's own grid.
        scaffold (`bool`, defaults to `True`): whether the pooled tokens of the whole image come before the selected
            ones. There is none where tokens are selected from tiles.
        selection_method (`str`, defaults to `"shirg"`): how the tokens of the fovea (`foveal`), of the view (`whole`)
            or of all views (`anyres`) are reduced to `selection_budget`: `"none"`, `"pool"` or a name in
            the registry of selection_shirg.py.
        selection_budget (`int`, *optional*, defaults to 724): number of selected tokens of one image; several views
            share it evenly.
        attention_weight, text_weight, diversity_weight (`float`, default 0.5, 0.3, 0.1): weights of the score
            `attention_weight * a + text_weight * s - diversity_weight * d`. Without a question the text weight moves
            to `a`.
        neighbor_weight, center_weight, merge_threshold (`float`, default 0.2, 0.1, 0.05): weights of the distance
            score of `fixed`, and the difference of scores below which `fixed` merges neighbours.
        variance_weight, edge_weight (`float`, default 1/3): weights of the edge score of `mixed`.
        selection_temperature (`float`, defaults to 0.15): temperature of the reported probability map
            `softmax(score / T)`. It changes no top-K; `adaptive` measures its mass.
        selection_mass (`float`, defaults to 0.8): share of that mass that `adaptive` keeps.
        coverage, merging, summaries (`bool`, defaults to `True`): steps of `fixed` and `mixed` that an ablation leaves
            out: a token of every block or region, merging of neighbours, summary tokens.
        coordinate_embedding (`bool`, defaults to `False`): whether a trained embedding of each selected token's box is
            added before the projector.
        selection_seed (`int`, defaults to 0): seed of the `random` control.
        attention_source (`"map"`, `"received"` or `"norm"`, defaults to `"map"`): `a` is the attention of SigLIP's
            pooling probe; or the mean attention a token receives in the last kept layer; or the feature norm. The last
            two need no pooling head.
        text_relevance (`"lm"`, `"siglip"` or `"none"`, defaults to `"lm"`): `s` is the best cosine of the projected
            patch with the language model's embeddings of the question's tokens; or the cosine of the patch alone
            through SigLIP's pooling head with SigLIP's text embedding of the question, which needs
            `relevance_text_config` and the pooling head; or absent.
        calibration (`dict`, *optional*): what `shirg calibrate` found on labelled boxes, see calibration_shirg.py: the
            sign of `s` and the mean that is subtracted from `a` at each position. `None` leaves both as they are.
        vision_feature_layer (`int`, defaults to -2): which hidden state of the vision tower is projected; -1 is the
            last.
        prefix_lm_loss (`bool`, defaults to `False`): with labels, prompt tokens do not see the answer, as in
            generation with the prefix cache.
        loss_weighting (`"none"` or `"inverse_t"`, defaults to `"none"`): plain mean over the masked tokens, as
            LaViDa's code; or LLaDA's 1/t (2502.09992, eq. 5).
        lavida_views (`dict`, *optional*): the view fields that a LaViDa checkpoint was trained with: `view_policy`,
            `image_grid_pinpoints` and `pooled_grid_size`. Preset `lavida` restores them; without, it has LaViDa's own.
        image_token_id, mask_token_id, infill_token_id, bos_token_id, eos_token_id, pad_token_id (`int`): LLaDA's ids,
            and the id of `<image>`. Infill tokens are never predicted.

    Raises:
        StrictDataclassError: of huggingface_hub, for a field of another type, or fields that contradict each other;
            its cause is a `TypeError` or a `ValueError` whose message names the values.

    Example:
    ```python
    >>> from configuration_shirg import ShirgLavidaConfig
    >>> ShirgLavidaConfig.from_preset("shirg").num_image_tokens
    980
    >>> ShirgLavidaConfig.from_preset("shirg", geometry="toy").num_image_tokens
    245
    ```
    """

    model_type = "shirg_lavida"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="siglip_vision_model", init_kwargs=_VISION_DEFAULTS
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs=_TEXT_DEFAULTS),
        "relevance_text_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_text_model", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    relevance_text_config: dict | PreTrainedConfig | None = None
    prune_method: str = "shirg"
    view_policy: Literal["foveal", "whole", "anyres", "pad", "square"] = "foveal"
    fovea_size: int | None = _DEFAULT_SYSTEM["fovea_size"]
    fovea_placement: Literal["center", "salient", "box"] = "center"
    image_grid_pinpoints: list[list[int]] | None = None
    patch_merge_type: Literal["flat", "spatial_unpad"] = "flat"
    pooled_grid_size: int | None = _DEFAULT_SYSTEM["pooled_grid_size"]
    scaffold: bool = True
    selection_method: Literal[
        "none",
        "pool",
        "shirg",
        "random",
        "uniform",
        "fixed",
        "mixed",
        "adaptive",
        "saint",
        "topv",
        "visionzip",
        "vispruner",
        "divprune",
        "cdpruner",
        "holov",
    ] = "shirg"
    selection_budget: int | None = _DEFAULT_SYSTEM["selection_budget"]
    attention_weight: int | float = _DEFAULT_SYSTEM["attention_weight"]
    text_weight: int | float = _DEFAULT_SYSTEM["text_weight"]
    diversity_weight: int | float = _DEFAULT_SYSTEM["diversity_weight"]
    neighbor_weight: int | float = 0.2
    center_weight: int | float = 0.1
    merge_threshold: int | float = 0.05
    variance_weight: int | float = 1 / 3
    edge_weight: int | float = 1 / 3
    selection_temperature: int | float = 0.15
    selection_mass: int | float = 0.8
    selection_seed: int = 0
    coverage: bool = True
    merging: bool = True
    summaries: bool = True
    coordinate_embedding: bool = False
    attention_source: Literal["map", "received", "norm"] = "map"
    text_relevance: Literal["lm", "siglip", "none"] = "lm"
    calibration: dict | None = None
    vision_feature_layer: int = -2
    prefix_lm_loss: bool = False
    loss_weighting: Literal["none", "inverse_t"] = "none"
    lavida_views: dict | None = None
    image_token_id: int = 126349
    mask_token_id: int = 126336
    infill_token_id: int | None = 126085
    bos_token_id: int = 126080
    eos_token_id: int = 126081
    pad_token_id: int = 126081
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        unknown = sorted(key for key in kwargs if key not in _TRANSFORMERS_KEYS and not key.startswith("_"))
        if unknown:
            raise ValueError(f"ShirgLavidaConfig has no field {', '.join(map(repr, unknown))}. Check the spelling.")
        self.auto_map = {
            "AutoConfig": "configuration_shirg_lavida.ShirgLavidaConfig",
            "AutoModel": _MODEL,
            "AutoModelForImageTextToText": _MODEL,
            "AutoModelForMultimodalLM": _MODEL,
            **(kwargs.pop("auto_map", None) or {}),
        }
        self.vision_config = _with_defaults(self.vision_config, _VISION_DEFAULTS)
        self.text_config = _with_defaults(self.text_config, _TEXT_DEFAULTS)
        for name in _MODEL_TYPES:
            _check_sizes(name, getattr(self, name))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """A config from a saved one. Fields given as keyword arguments win; `prune_method` brings its preset along.

        So `from_pretrained(folder, prune_method="lavida-980")` is that system, not a new label on the saved one.
        """
        if config_dict.get("model_type") == "llava_llada":
            raise ValueError(UNCONVERTED)
        for name in kwargs:
            nearest = get_close_matches(name, cls.__annotations__, n=1, cutoff=0.8)
            if nearest and name not in cls.__annotations__:
                raise ValueError(f"ShirgLavidaConfig has no field {name!r}. Did you mean {nearest[0]!r}?")
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in cls.__annotations__}
        if "prune_method" in overrides:
            vision = _with_defaults(overrides.get("vision_config", config_dict.get("vision_config")), _VISION_DEFAULTS)
            views = overrides.get("lavida_views", config_dict.get("lavida_views"))
            fields = _system_fields(overrides["prune_method"], geometry_of(vision["image_size"]), views)
            overrides = {**fields, **overrides}
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    @classmethod
    def from_preset(cls, name: str, geometry: str | None = None, **overrides) -> "ShirgLavidaConfig":
        """A config of the system `name` (one of `PRESETS`).

        Args:
            name: preset name, the same as `--prune_method`.
            geometry: `"full"` or `"toy"`; by default the one of `overrides["vision_config"]`'s image size, else
                `"full"`.
            **overrides: any field of this class; they win over the preset.
        """
        vision = overrides.pop("vision_config", None) or {}
        vision = vision.to_dict() if isinstance(vision, PreTrainedConfig) else dict(vision)
        if geometry is None:
            geometry = geometry_of(vision.get("image_size", _VISION_DEFAULTS["image_size"]))
        fields = _system_fields(name, geometry, overrides.get("lavida_views"))
        image_size = GEOMETRIES[geometry]["image_size"]
        if vision.setdefault("image_size", image_size) != image_size:
            raise ValueError(
                f"geometry={geometry!r} has a base view of {image_size} pixels, got vision_config with "
                f"image_size={vision['image_size']}."
            )
        return cls(vision_config=vision, **{**fields, **overrides})

    def with_preset(self, name: str, **overrides) -> "ShirgLavidaConfig":
        """This config with the views and the selection of preset `name`; the model's sizes and token ids stay."""
        return type(self).from_dict(self.to_dict(), prune_method=name, **overrides)

    @property
    def has_map_head(self) -> bool:
        """Whether SigLIP's pooling head is there, with the layer that LaViDa does not project."""
        return self.vision_config.vision_use_head and self.vision_feature_layer < -1

    @property
    def base_grid(self) -> int:
        """Side of the patch grid of a base-size view."""
        return grid_side(self.vision_config.image_size, self.vision_config.patch_size)

    @property
    def fovea_grid(self) -> int | None:
        """Side of the patch grid of the fovea; `None` without a fovea."""
        return None if self.fovea_size is None else grid_side(self.fovea_size, self.vision_config.patch_size)

    @property
    def has_mosaic(self) -> bool:
        """Whether the tiles are joined to a mosaic without padding, whose token count depends on the image's size."""
        return self.view_policy == "anyres" and self.patch_merge_type == "spatial_unpad"

    @property
    def selects(self) -> bool:
        """Whether tokens are chosen from: the fovea's, the whole view's or the tiles'."""
        return self.selection_budget is not None

    @property
    def chooses(self) -> bool:
        """Whether a method chooses tokens, so that a call may ask for another number of them."""
        return self.selection_method not in ("none", "pool")

    @property
    def num_selected_views(self) -> int:
        """Number of views per image that share `selection_budget`."""
        return self.num_base_views if self.view_policy == "anyres" else 1

    @property
    def selected_grid(self) -> int:
        """Side of the patch grid of a view that tokens are chosen from."""
        return self.fovea_grid if self.view_policy in ("foveal", "whole") else self.base_grid

    @property
    def num_base_views(self) -> int | None:
        """Number of views per image in `pixel_values`: 1, or 1 + tiles with `anyres`; `None` if it depends on the
        image.
        """
        if self.view_policy != "anyres":
            return 1
        if len(self.image_grid_pinpoints) > 1:
            return None
        width, height = self.image_grid_pinpoints[0]
        return 1 + (width // self.vision_config.image_size) * (height // self.vision_config.image_size)

    @property
    def view_grid(self) -> int:
        """Side of the token grid of one base-size view after pooling."""
        return self.pooled_grid_size or self.base_grid

    @property
    def num_image_tokens(self) -> int | None:
        """Number of image tokens of one image, whatever its size; `None` if it depends on the size: see
        `count_image_tokens`.
        """
        if self.has_mosaic:
            return None
        if self.selects:
            return (self.view_grid**2 if self.scaffold else 0) + self.selection_budget
        newlines = 1 if self.patch_merge_type == "spatial_unpad" else 0
        return self.num_base_views * self.view_grid**2 + newlines

    def relevance_sign(self, source: str) -> int:
        """What relevance by `source` (`"lm"` or `"siglip"`) is multiplied by: 1, or -1 if calibration found so."""
        return relevance_sign(self.calibration, source)

    def attention_mean(self, grid: int) -> list[float] | None:
        """What calibration subtracts from the attention at each of the grid * grid patches of a selected view.

        Raises:
            ValueError: the attention of this config's own views is corrected, and that on this grid was not looked at.
        """
        own, asked = self._attention_map(self.selected_grid), self._attention_map(grid)
        if own in foreign_means(self.calibration, asked):
            raise ValueError(
                f"calibration corrects {own} and says nothing of {grid}x{grid} patches, which a fovea_size of "
                f"{grid * self.vision_config.patch_size} pixels gives. Keep fovea_size={self.fovea_size}, or leave "
                "all corrections out (calibration=None, `--option calibration=null`)."
            )
        return attention_mean(self.calibration, asked)

    def foreign_means(self) -> list[AttentionMap]:
        """The attentions that calibration corrects while that of this config's own views was never calibrated."""
        return foreign_means(self.calibration, self._attention_map(self.selected_grid))

    def _attention_map(self, grid: int) -> AttentionMap:
        return AttentionMap(self.view_policy, grid, self.attention_source)

    def count_image_tokens(self, width: int, height: int) -> int:
        """Number of image tokens of an image of `width` x `height` pixels."""
        if not self.has_mosaic:
            return self.num_image_tokens
        canvas = select_best_resolution(width, height, self.image_grid_pinpoints)
        window = mosaic_window(width, height, canvas, self.vision_config.image_size, self.view_grid)
        return mosaic_length(window, self.view_grid)

    def validate_geometry(self):
        """Part of `@strict` validation: views, selection and score source fit each other, checked in this order."""
        self._validate_models()
        self._validate_token_ids()
        _check_lavida_views(self.lavida_views)
        check_calibration(self.calibration)
        self._validate_views()
        self._validate_selection()
        self._validate_vision_features()
        self._validate_label()

    def _validate_models(self):
        for name, model_type in _MODEL_TYPES.items():
            config = getattr(self, name)
            if config is not None and config.model_type != model_type:
                raise ValueError(f"{name} must be of model_type {model_type!r}, got {config.model_type!r}.")
        tower, width = self.relevance_text_config, self.vision_config.hidden_size
        if tower is not None and tower.projection_size != width:
            raise ValueError(
                f"relevance_text_config.projection_size={tower.projection_size} must be vision_config.hidden_size="
                f"{width}: SigLIP compares both towers' embeddings. Are they of one SigLIP?"
            )
        if self.text_relevance != "siglip":
            return
        if tower is None:
            raise ValueError(
                "text_relevance='siglip' needs SigLIP's text tower, and this config has no relevance_text_config. "
                f"{_GRAFT_TEXT_TOWER}"
            )
        if not self.has_map_head:
            raise ValueError(
                "text_relevance='siglip' needs SigLIP's pooling head and the layer before it (vision_use_head=True "
                f"and vision_feature_layer < -1), got vision_use_head={self.vision_config.vision_use_head} and "
                f"vision_feature_layer={self.vision_feature_layer}. {_GRAFT_TEXT_TOWER}"
            )

    def _validate_token_ids(self):
        vocab_size = self.text_config.vocab_size
        for name in ("image_token_id", "mask_token_id"):
            if not 0 <= getattr(self, name) < vocab_size:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be below text_config.vocab_size={vocab_size}: set it to the "
                    "tokenizer's id."
                )
        for name in ("infill_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}={value} must be a token id, at least 0: set it to the tokenizer's id.")
        if self.image_token_id == self.mask_token_id:
            raise ValueError(f"image_token_id and mask_token_id are both {self.mask_token_id}: they must differ.")

    def _validate_label(self):
        fields = preset_fields(self.prune_method, next(iter(GEOMETRIES)))
        for name in ("view_policy", "patch_merge_type", "selection_method"):
            if getattr(self, name) != fields[name]:
                # LaViDa's low-resolution checkpoint has LaViDa's layout on a single view.
                if name == "view_policy" and fields["patch_merge_type"] == "spatial_unpad" and self.fovea_size is None:
                    continue
                raise ValueError(
                    f"prune_method={self.prune_method!r} has {name}={fields[name]!r}, got {getattr(self, name)!r}: "
                    "build the config with ShirgLavidaConfig.from_preset(prune_method) or config.with_preset(...)."
                )

    def _validate_views(self):
        base, patch = self.vision_config.image_size, self.vision_config.patch_size
        if base < patch:
            raise ValueError(f"vision_config.image_size={base} is smaller than vision_config.patch_size={patch}.")
        widest = self.fovea_grid if self.view_policy == "whole" and self.fovea_size else self.base_grid
        if self.pooled_grid_size is not None and not 1 <= self.pooled_grid_size <= widest:
            raise ValueError(
                f"pooled_grid_size={self.pooled_grid_size} must be between 1 and the {widest} patches per side of the "
                "view."
            )
        has_fovea = self.view_policy in ("foveal", "whole")
        largest = _LARGEST_FOVEA * self.vision_config.image_size
        if has_fovea and (self.fovea_size is None or not patch <= self.fovea_size <= largest):
            raise ValueError(
                f"view_policy={self.view_policy!r} needs fovea_size from the patch size {patch} to {largest} pixels, "
                f"got fovea_size={self.fovea_size}."
            )
        if not has_fovea and self.fovea_size is not None:
            raise ValueError(f"view_policy={self.view_policy!r} has no fovea, got fovea_size={self.fovea_size}.")
        if self.view_policy != "anyres" and self.image_grid_pinpoints is not None:
            raise ValueError(
                f"view_policy={self.view_policy!r} has no tiles, got image_grid_pinpoints={self.image_grid_pinpoints}."
            )
        if has_fovea and self.patch_merge_type != "flat":
            raise ValueError(
                f"view_policy={self.view_policy!r} needs patch_merge_type='flat', got {self.patch_merge_type!r}."
            )
        if self.view_policy == "whole" and self.scaffold and self.pooled_grid_size is None:
            raise ValueError("view_policy='whole' with scaffold=True needs pooled_grid_size, got None.")
        if self.view_policy == "anyres":
            check_pinpoints(self.image_grid_pinpoints, base)
            if self.patch_merge_type == "flat" and len(self.image_grid_pinpoints) != 1:
                raise ValueError(
                    "patch_merge_type='flat' needs exactly one (width, height) in image_grid_pinpoints, got "
                    f"{self.image_grid_pinpoints}."
                )

    def _validate_selection(self):
        for name in _WEIGHTS:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number.")
        if not 0 <= self.selection_seed < 2**63:
            raise ValueError(f"selection_seed={self.selection_seed} must be at least 0 and below 2**63.")
        if not self.selection_temperature > 0:
            raise ValueError(f"selection_temperature must be > 0, got {self.selection_temperature}.")
        if not 0 < self.selection_mass <= 1:
            raise ValueError(f"selection_mass must be above 0 and at most 1, got {self.selection_mass}.")
        if self.view_policy in ("pad", "square") or (self.view_policy == "anyres" and self.selection_method == "none"):
            if self.selection_method != "none" or self.selection_budget is not None:
                raise ValueError(
                    f"view_policy={self.view_policy!r} keeps every token here: it needs selection_method='none' and "
                    f"selection_budget=None, got {self.selection_method!r} and {self.selection_budget}."
                )
            return
        if self.view_policy == "anyres":
            self._validate_tiles_selected()
        available = self.selected_grid**2
        if self.selection_method == "none" and self.selection_budget != available:
            raise ValueError(
                f"selection_method='none' keeps all {available} tokens, got selection_budget={self.selection_budget}."
            )
        budget = self.selection_budget
        self.check_budget(budget)
        if self.selection_method == "pool" and math.isqrt(budget) ** 2 != budget:
            raise ValueError(
                f"selection_method='pool' needs a square selection_budget, got {budget}; "
                f"the nearest below is {math.isqrt(budget) ** 2}."
            )

    def check_budget(self, budget: int | None, fovea_size: int | None = None) -> None:
        """Raises a `ValueError` unless `budget` tokens of one image can be selected, of `fovea_size` if given."""
        grid = self.selected_grid if fovea_size is None else grid_side(fovea_size, self.vision_config.patch_size)
        views, available = self.num_selected_views, grid**2
        if budget is None or not 1 <= budget <= views * available or budget % views:
            share = "" if views == 1 else f" and a multiple of {views}, which the views share"
            raise ValueError(
                f"selection_budget={budget} must be between 1 and the {views * available} tokens of {views} "
                f"view{'s' if views > 1 else ''} of {grid}x{grid} patches{share}."
            )

    def _validate_tiles_selected(self):
        if self.has_mosaic or self.pooled_grid_size is not None or self.scaffold or self.selection_method == "pool":
            raise ValueError(
                "Selecting from tiles needs patch_merge_type='flat', pooled_grid_size=None, scaffold=False and a "
                f"method that keeps tokens, got {self.patch_merge_type!r}, {self.pooled_grid_size}, {self.scaffold} "
                f"and {self.selection_method!r}."
            )

    def _validate_vision_features(self):
        layers = self.vision_config.num_hidden_layers
        if not -layers <= self.vision_feature_layer <= -1:
            raise ValueError(
                f"vision_feature_layer={self.vision_feature_layer} must be between -{layers} and -1: the vision tower "
                f"has {layers} layers."
            )


def _with_defaults(config: dict | PreTrainedConfig | None, defaults: dict) -> dict:
    """A sub-config as a dict of its own, what it leaves out filled in; the language model is always bidirectional."""
    if config is not None and not isinstance(config, (dict, PreTrainedConfig)):
        raise ValueError(f"vision_config and text_config must be dicts or configs, got {config!r:.100}.")
    given = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config or {})
    merged = {**defaults, **given}
    return {**merged, "is_causal": False} if "is_causal" in defaults else merged


def _check_sizes(name: str, config: dict | PreTrainedConfig | None) -> None:
    """Raises a `ValueError` that names a size below 1, which transformers divides by as it builds the config."""
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else config
    for field in _SIZES:
        value = fields.get(field) if isinstance(fields, dict) else None
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}.{field}={value} must be at least 1.")


def _system_fields(name: str, geometry: str, lavida_views: dict | None) -> dict:
    """`preset_fields`, but `lavida` is what the checkpoint was trained with."""
    fields = preset_fields(name, geometry)
    if name != "lavida" or lavida_views is None:
        return fields
    _check_lavida_views(lavida_views)
    return {**fields, **deepcopy(lavida_views)}


def _check_lavida_views(views: dict | None) -> None:
    if views is not None and (not isinstance(views, dict) or set(views) != set(_LAVIDA_VIEWS)):
        raise ValueError(
            f"lavida_views must be None or have exactly the fields {', '.join(_LAVIDA_VIEWS)}, got {views}."
        )
