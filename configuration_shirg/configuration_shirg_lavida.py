"""Configuration of SHIRG-LaViDa: vision tower, projector and bidirectional language model, and between them a view
policy (which pixels are looked at) and a selection (which of their tokens the language model reads).

The number of image tokens follows from the config alone, so the processor writes placeholders before the model runs.
"""

import math
import sys
from copy import deepcopy
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .calibration_shirg import AttentionMap, check_calibration, map_of
from .geometry_shirg import check_budget, check_views, grid_side, mosaic_length, mosaic_window, num_base_views
from .presets_shirg import GEOMETRIES, did_you_mean, geometry_of, preset_fields

_MODEL = "modeling_shirg_lavida.ShirgLavidaForConditionalGeneration"
_AUTO_MAP = {
    "AutoConfig": "configuration_shirg_lavida.ShirgLavidaConfig",
    **dict.fromkeys(("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"), _MODEL),
}
# Keys that transformers itself hands to a config besides its fields.
_FOREIGN_KEYS = {"attn_implementation", "experts_implementation", "quantization_config", "use_cache"}
_FOREIGN_KEYS.update(dir(PreTrainedConfig))
UNCONVERTED = (
    "This is an original LaViDa checkpoint (model_type 'llava_llada'). Convert it once with `shirg convert SRC OUT`, "
    "then load OUT."
)

# LaViDa's own sizes, for what a sub-config leaves out.
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
}
# Endings of the fields of the sub-configs that must be at least 1.
_SIZES = ("_size", "_layers", "_heads", "_dim", "_channels", "_embeddings")
# The view fields that preset `lavida` takes from the checkpoint.
_LAVIDA_VIEWS = {"view_policy", "image_grid_pinpoints", "pooled_grid_size"}
# Smallest and largest values. Of the other fields, floats must be finite.
_LARGEST = sys.float_info.max
_RANGES = {
    "selection_temperature": (sys.float_info.min, _LARGEST),
    "selection_mass": (sys.float_info.min, 1),
    "selection_seed": (0, 2**63 - 1),
    **dict.fromkeys(("infill_token_id", "bos_token_id", "eos_token_id", "pad_token_id"), (0, sys.maxsize)),
}


@strict
class ShirgLavidaConfig(PreTrainedConfig):
    """Fields are explained where they are defined; their defaults are preset `shirg` at LaViDa's sizes.

    Token scores are `attention_weight * a + text_weight * s - diversity_weight * d`, for the attention `a`, the
    relevance `s` to the question and the redundancy `d` of a token. Without a question the text weight moves to `a`.

    Raises:
        StrictDataclassError: of huggingface_hub, for a field of another type, or fields that contradict each other;
            the message names the values.
    """

    model_type = "shirg_lavida"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, "siglip_vision_model"),
        "text_config": SubConfigSpec(AutoConfig, "llama"),
        "relevance_text_config": SubConfigSpec(AutoConfig, "siglip_text_model", optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None  # SigLIP; by default so400m-patch14-384
    text_config: dict | PreTrainedConfig | None = None  # Llama; by default LLaDA-8B. `is_causal` is set to `False`
    relevance_text_config: dict | PreTrainedConfig | None = None  # SigLIP's text tower, for text_relevance="siglip"
    prune_method: str = "shirg"  # the preset that these fields came from

    # Views. foveal: the whole image squashed to the base size, and one square fovea. whole: the image squashed to
    # `fovea_size`. anyres: the whole image and the tiles of a padded canvas, as in LaViDa. pad, square: the image
    # padded to a square in grey or squashed, as in LaViDa's low-resolution checkpoint.
    view_policy: Literal["foveal", "whole", "anyres", "pad", "square"] = "foveal"
    fovea_size: int | None = GEOMETRIES["full"]["fovea_size"]  # side in pixels of the fovea, or of the view of whole
    fovea_placement: Literal["center", "salient", "box"] = "center"
    image_grid_pinpoints: list[list[int]] | None = None  # canvases (width, height) that anyres may choose from
    # How tokens are joined: view after view; or, as in LaViDa, the whole image's, then the rows of the mosaic of tiles
    # without its padding, a newline token after each row. A single view ends in one newline token.
    patch_merge_type: Literal["flat", "spatial_unpad"] = "flat"
    pooled_grid_size: int | None = 16  # side to which a base view's tokens are pooled after the projector; or its own
    scaffold: bool = True  # whether the pooled tokens of the whole image come before the selected ones

    # Selection: how the tokens of the fovea, of the view of whole, or of all views of anyres are reduced.
    selection_method: str = "shirg"  # "none", "pool" or a method of the registry in selection_shirg.py
    selection_budget: int | None = 724  # number of selected tokens of one image; several views share it evenly
    attention_weight: int | float = 0.5
    text_weight: int | float = 0.3
    diversity_weight: int | float = 0.1
    neighbor_weight: int | float = 0.2  # this and the next: weights of the distance score of fixed
    center_weight: int | float = 0.1
    merge_threshold: int | float = 0.05  # difference of scores below which fixed merges neighbours
    variance_weight: int | float = 1 / 3  # this and the next: weights of the edge score of mixed
    edge_weight: int | float = 1 / 3
    selection_temperature: int | float = 0.15  # T of softmax(score / T), for adaptive and Gumbel noise
    selection_mass: int | float = 0.8  # share of their mass that adaptive keeps
    selection_seed: int = 0  # of random
    coverage: bool = True  # whether fixed and mixed keep a token of every block or region
    merging: bool = True  # whether fixed merges neighbours
    summaries: bool = True  # whether mixed adds summary tokens
    coordinate_embedding: bool = False  # whether a trained embedding of a token's box is added before the projector
    # a: attention of SigLIP's pooling probe, mean attention received in the last kept layer, or feature norm.
    attention_source: Literal["map", "received", "norm"] = "map"
    # s: best cosine of the projected patch with the embeddings of the question's tokens; cosine of the patch alone
    # through SigLIP's pooling head with SigLIP's text embedding of the question; or absent.
    text_relevance: Literal["lm", "siglip", "none"] = "lm"
    calibration: dict | None = None  # corrections of a and s by `shirg calibrate`, see calibration_shirg.py

    vision_feature_layer: int = -2  # hidden state of the vision tower that is projected; -1 is the last
    prefix_lm_loss: bool = False  # whether prompt tokens do not see the answer, as with the prefix cache
    loss_weighting: Literal["none", "inverse_t"] = "none"  # mean over masked tokens, or LLaDA's 1/t (2502.09992)
    lavida_views: dict | None = None  # view fields of a LaViDa checkpoint's training, which preset lavida restores
    image_token_id: int = 126349
    mask_token_id: int = 126336
    infill_token_id: int | None = 126085  # never predicted
    bos_token_id: int = 126080
    eos_token_id: int = 126081
    pad_token_id: int = 126081
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.auto_map = {**_AUTO_MAP, **(kwargs.pop("auto_map", None) or {})}
        for name in kwargs:
            if name not in _FOREIGN_KEYS and not name.startswith("_"):
                raise ValueError(f"ShirgLavidaConfig has no field {name!r}.{did_you_mean(name, self.__annotations__)}")
        self.vision_config = _with_defaults(self.vision_config, _VISION_DEFAULTS)
        self.text_config = {**_with_defaults(self.text_config, _TEXT_DEFAULTS), "is_causal": False}
        for name in self.sub_configs_defaults:
            for field, value in _with_defaults(getattr(self, name), {}).items():
                if type(value) is int and value < 1 and field.endswith(_SIZES):
                    raise ValueError(f"{name}.{field}={value} must be at least 1.")
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """A config from a saved one. Fields given as keyword arguments win; `prune_method` brings its preset along."""
        if config_dict.get("model_type") == "llava_llada":
            raise ValueError(UNCONVERTED)
        fields = cls.__annotations__
        for name in kwargs:
            if name not in fields and (hint := did_you_mean(name, fields, cutoff=0.8)):
                raise ValueError(f"ShirgLavidaConfig has no field {name!r}.{hint}")
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        merged = {**config_dict, **overrides}
        if "prune_method" in overrides:
            vision = _with_defaults(merged.get("vision_config"), _VISION_DEFAULTS)
            geometry, views = geometry_of(vision["image_size"]), merged.get("lavida_views")
            merged = {**merged, **_system_fields(merged["prune_method"], geometry, views), **overrides}
        return super().from_dict(merged, **kwargs)

    @classmethod
    def from_preset(cls, name: str, geometry: str | None = None, **overrides) -> "ShirgLavidaConfig":
        """A config of the system `name` (one of `PRESETS`); fields in `overrides` win over the preset.

        `geometry` is `"full"` or `"toy"`, by default the one of `overrides["vision_config"]`'s image size.
        """
        vision = _with_defaults(overrides.pop("vision_config", None), {})
        geometry = geometry or geometry_of(vision.get("image_size", _VISION_DEFAULTS["image_size"]))
        fields = _system_fields(name, geometry, overrides.get("lavida_views"))
        image_size = GEOMETRIES[geometry]["image_size"]
        if vision.setdefault("image_size", image_size) != image_size:
            raise ValueError(f"geometry={geometry!r} has image_size={image_size}, got {vision['image_size']}.")
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
    def selected_grid(self) -> int:
        """Side of the patch grid of a view that tokens are selected from."""
        return self.fovea_grid or self.base_grid

    @property
    def view_grid(self) -> int:
        """Side of the token grid of one base-size view after pooling."""
        return self.pooled_grid_size or self.base_grid

    @property
    def has_mosaic(self) -> bool:
        """Whether the tiles are joined to a mosaic without padding, whose token count depends on the image's size."""
        return self.view_policy == "anyres" and self.patch_merge_type == "spatial_unpad"

    @property
    def selects(self) -> bool:
        """Whether the tokens of the fovea, of the view or of the tiles are reduced to `selection_budget`."""
        return self.selection_budget is not None

    @property
    def chooses(self) -> bool:
        """Whether a method chooses tokens, so that a call may ask for another number of them."""
        return self.selection_method not in ("none", "pool")

    @property
    def num_base_views(self) -> int | None:
        """Views per image in `pixel_values`: 1, or 1 + tiles with `anyres`; `None` if it depends on the image."""
        return num_base_views(self.vision_config.image_size, self.image_grid_pinpoints)

    num_selected_views = num_base_views  # the views per image that share `selection_budget`

    @property
    def num_image_tokens(self) -> int | None:
        """Number of image tokens of one image; `None` if it depends on the size: see `count_image_tokens`."""
        if self.has_mosaic:
            return None
        if self.selects:
            return (self.view_grid**2 if self.scaffold else 0) + self.selection_budget
        newlines = 1 if self.patch_merge_type == "spatial_unpad" else 0
        return self.num_base_views * self.view_grid**2 + newlines

    def count_image_tokens(self, width: int, height: int) -> int:
        """Number of image tokens of an image of `width` x `height` pixels."""
        if not self.has_mosaic:
            return self.num_image_tokens
        sizes = self.image_grid_pinpoints, self.vision_config.image_size, self.view_grid
        return mosaic_length(mosaic_window(width, height, *sizes), self.view_grid)

    def check_budget(self, budget: int | None, fovea_size: int | None = None) -> None:
        """Raises a `ValueError` unless `budget` tokens of one image can be selected, of `fovea_size` if given."""
        grid = self.selected_grid if fovea_size is None else grid_side(fovea_size, self.vision_config.patch_size)
        check_budget(budget, self.num_selected_views, grid)

    def relevance_sign(self, source: str) -> int:
        """Factor of the relevance by `source` (`"lm"` or `"siglip"`): 1, or -1 if calibration found so."""
        signs = {} if self.calibration is None else self.calibration["relevance"]
        return signs[source]["sign"] if source in signs else 1

    def attention_mean(self, grid: int) -> list[float] | None:
        """What calibration subtracts from the attention at each of the grid * grid patches of a selected view; a
        `ValueError` if it corrects this config's own views and not this grid."""
        own, asked = self._attention_map(self.selected_grid), self._attention_map(grid)
        means = self._attention_means()
        if asked not in means and means.get(own) is not None:
            raise ValueError(
                f"calibration corrects {own} and says nothing of {grid}x{grid} patches. Keep fovea_size="
                f"{self.fovea_size}, or leave all corrections out (calibration=None, `--option calibration=null`)."
            )
        return means.get(asked)

    def foreign_means(self) -> list[AttentionMap]:
        """The attention maps that calibration corrects, if it holds nothing for this config's own."""
        means = self._attention_means()
        is_own = self._attention_map(self.selected_grid) in means
        return [] if is_own else [attention for attention, mean in means.items() if mean is not None]

    def _attention_means(self) -> dict[AttentionMap, list[float] | None]:
        entries = [] if self.calibration is None else self.calibration["attention"]
        return {map_of(entry): entry["mean"] for entry in entries}

    def _attention_map(self, grid: int) -> AttentionMap:
        return AttentionMap(self.view_policy, grid, self.attention_source)

    # `@strict` calls every method named validate_... after construction.

    def validate_models(self):
        for name, spec in self.sub_configs_defaults.items():
            config = getattr(self, name)
            if config is not None and config.model_type != spec.model_type:
                raise ValueError(f"{name} must be of model_type {spec.model_type!r}, got {config.model_type!r}.")
        vision, tower, layer = self.vision_config, self.relevance_text_config, self.vision_feature_layer
        if not -vision.num_hidden_layers <= layer <= -1:
            raise ValueError(f"vision_feature_layer={layer} must be between -{vision.num_hidden_layers} and -1.")
        if tower is not None and tower.projection_size != vision.hidden_size:
            sizes = f"{tower.projection_size} and vision_config.hidden_size={vision.hidden_size}"
            raise ValueError(f"The towers are not of one SigLIP: relevance_text_config.projection_size={sizes}.")
        if self.text_relevance == "siglip" and (tower is None or not self.has_map_head):
            raise ValueError(
                f"text_relevance='siglip' needs SigLIP's heads, got {'no' if tower is None else 'a'} "
                f"relevance_text_config, vision_use_head={vision.vision_use_head} and vision_feature_layer={layer}: "
                "convert with `--vision_base google/siglip-so400m-patch14-384 --text_tower`, or use 'lm' or 'none'."
            )

    def validate_ranges(self):
        floats = {name: (-_LARGEST, _LARGEST) for name, kind in self.__annotations__.items() if kind == int | float}
        for name, (low, high) in {**floats, **_RANGES}.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}={value} must lie between {low} and {high}.")
        vocab_size = self.text_config.vocab_size
        for name in ("image_token_id", "mask_token_id"):
            if not 0 <= getattr(self, name) < vocab_size:
                raise ValueError(f"{name}={getattr(self, name)} must be below text_config.vocab_size={vocab_size}.")
        if self.image_token_id == self.mask_token_id:
            raise ValueError(f"image_token_id and mask_token_id are both {self.mask_token_id}: they must differ.")

    def validate_system(self):
        _check_lavida_views(self.lavida_views)
        check_calibration(self.calibration)
        vision, pinpoints = self.vision_config, self.image_grid_pinpoints
        check_views(self.view_policy, vision.image_size, vision.patch_size, self.fovea_size, pinpoints)
        self._check_label()
        policy, method = self.view_policy, self.selection_method
        pooled, budget = self.pooled_grid_size, self.selection_budget
        widest = self.fovea_grid if policy == "whole" else self.base_grid
        if pooled is not None and not 1 <= pooled <= widest:
            raise ValueError(f"pooled_grid_size={pooled} must be between 1 and the view's {widest} patches per side.")
        if policy == "whole" and self.scaffold and pooled is None:
            raise ValueError("view_policy='whole' with scaffold=True needs pooled_grid_size, got None.")
        if policy == "anyres" and self.patch_merge_type == "flat" and len(pinpoints) != 1:
            raise ValueError(f"patch_merge_type='flat' needs one canvas in image_grid_pinpoints, got {pinpoints}.")
        if policy == "anyres" and self.chooses and (pooled is not None or self.scaffold):
            raise ValueError(
                f"Selecting tiles needs pooled_grid_size=None and scaffold=False, got {pooled} and {self.scaffold}."
            )
        if method == "none" and self.fovea_size is None:
            if budget is not None:
                raise ValueError(f"selection_method='none' keeps every token of tiles, got selection_budget={budget}.")
            return
        self.check_budget(budget)
        if method == "none" and budget != self.selected_grid**2:
            raise ValueError(f"selection_method='none' keeps all {self.selected_grid**2} tokens, got {budget}.")
        if method == "pool" and math.isqrt(budget) ** 2 != budget:
            raise ValueError(f"selection_method='pool' needs a square budget, got selection_budget={budget}.")

    def _check_label(self) -> None:
        system = preset_fields(self.prune_method, "full")
        names = ["view_policy", "patch_merge_type", "selection_method"]
        if system["patch_merge_type"] == "spatial_unpad" and self.fovea_size is None:
            names.remove("view_policy")  # LaViDa's low-resolution checkpoint has LaViDa's layout on a single view
        for name in names:
            if getattr(self, name) != system[name]:
                raise ValueError(
                    f"prune_method={self.prune_method!r} has {name}={system[name]!r}, got {getattr(self, name)!r}: "
                    "build the config with ShirgLavidaConfig.from_preset(prune_method) or config.with_preset(...)."
                )


def _with_defaults(config: dict | PreTrainedConfig | None, defaults: dict) -> dict:
    """A sub-config as a dict of its own, missing fields filled in."""
    if config is not None and not isinstance(config, (dict, PreTrainedConfig)):
        raise ValueError(f"A sub-config must be a dict or a config, got {config!r:.100}.")
    return {**defaults, **(config.to_dict() if isinstance(config, PreTrainedConfig) else config or {})}


def _system_fields(name: str, geometry: str, lavida_views: dict | None) -> dict:
    """`preset_fields`, but with the views of the checkpoint's training for `lavida`."""
    fields = preset_fields(name, geometry)
    if name != "lavida" or lavida_views is None:
        return fields
    _check_lavida_views(lavida_views)
    return {**fields, **deepcopy(lavida_views)}


def _check_lavida_views(views: dict | None) -> None:
    if views is not None and (not isinstance(views, dict) or set(views) != _LAVIDA_VIEWS):
        raise ValueError(f"lavida_views must be None or have exactly {', '.join(sorted(_LAVIDA_VIEWS))}, got {views}.")
