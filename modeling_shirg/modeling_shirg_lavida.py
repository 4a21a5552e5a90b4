"""SHIRG-LaViDa: a masked-diffusion vision-language model with foveal visual-token selection.

The way of one question: views -> vision tower -> (fovea only) selection -> projector -> (base views only) bilinear
pooling -> spliced into the prompt -> bidirectional language model. SigLIP and Llama are the stock modules of
transformers; with a converted LaViDa checkpoint they compute the original's function (LaViDa, 2505.16839; LLaDA,
2502.09992). What this file adds is the path from views to image tokens; the denoising loop is in
generation_shirg_lavida.py.

Shape suffixes: B prompts, L prompt tokens, I images, V base views of one image, T image tokens of one image, or
SigLIP's ids of one question, N patches of one view, K kept patches, Q tokens of a question, D vision width, C language
model width, P pixels per side.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, Cache, PreTrainedConfig, PreTrainedModel, SiglipTextModel
from transformers import initialization as init
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import is_flash_attention_requested

from .adapters_shirg import Adapter, activate, resolve
from .configuration_shirg_lavida import ShirgLavidaConfig
from .foveal_selections_shirg import CoordinateEmbedding, ZeroLinear, mixed_values, patch_edges
from .generation_shirg_lavida import ShirgLavidaGenerationMixin, visible_attention
from .objective_shirg import additive_mask, check_draws, complementary_masks, diffusion_loss, prefix_lm_mask
from .prefix_cache_shirg import CACHE_ARGUMENT
from .quantization_shirg import language_model_only
from .selection_methods_shirg import METHODS, SelectionMethod
from .selection_shirg import Selection, ViewTokens, pool_square, text_relevance
from .vision_shirg import FovealPositionEmbedding, ShirgVisionTower, full_precision

logger = logging.get_logger(__name__)

_USE_PROCESSOR = (
    "Use the processor that belongs to this config: ShirgLavidaProcessor.from_config(model.config, tokenizer)."
)


@dataclass
class ShirgImageOutput(ModelOutput):
    """Image tokens and how they were chosen.

    Args:
        image_tokens (`tuple` of I `torch.FloatTensor` of shape `(T, C)`): what the language model reads in place of
            each image's placeholders, base views first, then the fovea. T differs between images only where a mosaic
            is cut to the image.
        kept_indices (`torch.LongTensor` of shape `(I, K)`, *optional*): raster indices of the kept foveal patches,
            ascending; `None` where no patch is kept as such (`pool`, or no fovea).
        scores (`torch.FloatTensor` of shape `(I, N)`, *optional*): the score of every foveal patch, float32; `None`
            for methods without a score.
        probabilities (`torch.FloatTensor` of shape `(I, N)`, *optional*): `softmax(scores / selection_temperature)`.
        used_tokens (`torch.BoolTensor` of shape `(I, T)`, *optional*): which of the image tokens stand for something;
            `None` where all do. Only `adaptive` keeps fewer than the budget.
        visible_mask (`torch.BoolTensor` of shape `(B, L)`, *optional*): the same in the prompts: `False` at the
            placeholders that stand for nothing, which attention must not see.
    """

    image_tokens: tuple[torch.FloatTensor, ...] | None = None
    kept_indices: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    probabilities: torch.FloatTensor | None = None
    used_tokens: torch.BoolTensor | None = None
    visible_mask: torch.BoolTensor | None = None


@dataclass
class ShirgLavidaOutput(CausalLMOutputWithPast):
    """Output of the model.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): with labels.
        logits (`torch.FloatTensor` of shape `(B, L, vocab_size)`): token logits, or of the kept positions only; with
            labels `(M, vocab_size)`, those of the masked positions in row-major order.
        masked_positions (`torch.BoolTensor` of shape `(2 * B, L)`, *optional*): with labels, which answer tokens were
            masked, in the first use of every example and in the second.
        past_key_values (`Cache`, *optional*): keys (rotated) and values of the prompt; named `cache` from transformers
            5.24 on.
        hidden_states (`tuple`, *optional*): the language model's, on request.
        attentions (`tuple`, *optional*): the language model's, on request.
        kept_indices, scores (*optional*): see `ShirgImageOutput`; with `output_selection=True`.
    """

    masked_positions: torch.BoolTensor | None = None
    kept_indices: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None


class ShirgLavidaProjector(nn.Module):
    """LaViDa's `mlp2x_gelu`: Linear, exact GELU, Linear."""

    def __init__(self, config: ShirgLavidaConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., C)."""
        return self.linear_2(self.act(self.linear_1(features)))


class ShirgLavidaPreTrainedModel(PreTrainedModel):
    """What every SHIRG-LaViDa model shares: initialisation, saving and what the attention backends may do."""

    config: ShirgLavidaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ShirgVisionTower", "LlamaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    # A preset without a fovea has no use for the table; one with another grid says so in `from_pretrained`.
    _keys_to_ignore_on_load_unexpected = [r"foveal_position_embedding", r"coordinate_embedding"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, FovealPositionEmbedding):
            init.copy_(module.weight, module.interpolated_base())
        elif isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ShirgLavidaModel):
            init.normal_(module.image_newline, std=module.image_newline.numel() ** -0.5)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Load a checkpoint, or an adapter on its own base, under another preset too if the arguments say so.

        The foveal position table belongs to one grid. A checkpoint that was saved with another grid than `config` asks
        for gives its table up: this grid's is derived from the base one, with a warning. An adapter brings its base,
        at the commit that it was trained on, and the system that it was trained for; fields of the config that are
        given win, and the difference is said. A `quantization_config` of bitsandbytes is for the language model alone.
        """
        adapter_name = kwargs.pop("adapter_name", None)
        resolved = resolve(cls.config_class, pretrained_model_name_or_path, config, kwargs)
        loaded = cls._load_base(resolved.path, *args, config=resolved.config, saved=resolved.saved, **resolved.kwargs)
        if resolved.adapter is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            adapter = resolved.adapter
            model.load_adapter(adapter.name, adapter_name, any_system=resolved.chosen, adapter_kwargs=adapter.hub)
        return loaded

    @classmethod
    def _load_base(cls, path, *args, config: PreTrainedConfig, saved: PreTrainedConfig, **kwargs):
        """Load the checkpoint at `path`, where `saved` is the config, with the config `config`."""
        if config.fovea_grid is None and saved.fovea_grid is not None:
            logger.warning_once(
                f"{path} has a foveal_position_embedding that preset {config.prune_method!r} has no use for: a model "
                "that is saved from here has none."
            )
        # A table is derived where the checkpoint has none of this grid; coordinates are a no-op until trained.
        may_lack = () if saved.coordinate_embedding else ("coordinate_embedding",)
        if config.fovea_grid in (None, saved.fovea_grid):
            return cls._load_whole(path, may_lack, *args, config=config, **kwargs)
        held = "no" if saved.fovea_grid is None else f"a {saved.fovea_grid}x{saved.fovea_grid}"
        logger.warning(
            f"{path} has {held} foveal_position_embedding; the one of {config.fovea_grid}x"
            f"{config.fovea_grid} is interpolated from the base grid's."
        )
        tables = "foveal_position_embedding"
        return cls._load_whole(path, (*may_lack, tables), *args, config=config, may_differ=tables, **kwargs)

    @classmethod
    def _load_whole(
        cls,
        path,
        may_lack: tuple[str, ...],
        *args,
        may_differ: str | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        use_safetensors: bool | None = None,
        quantization_config: Any = None,
        **kwargs,
    ):
        """The parent's `from_pretrained`, but a weight that the checkpoint lacks is an error, not a random number, and
        only safetensors are read.

        `may_lack` are parts of the names of weights that it may lack, `may_differ` of those of another shape.
        """
        if use_safetensors is False:
            raise ValueError("use_safetensors=False: only safetensors are read, because a pickle file can run code.")
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
        kwargs["quantization_config"] = language_model_only(quantization_config)
        model, info = super().from_pretrained(path, *args, **kwargs)
        other = [str(key[0]) for key in info["mismatched_keys"] if may_differ is None or may_differ not in str(key[0])]
        if other and not ignore_mismatched_sizes:
            raise ValueError(
                f"{path} has {len(other)} tensors of other shapes than the config asks for, such as "
                f"{', '.join(sorted(other)[:3])}. Is the config that of these weights?"
            )
        lacking = {str(key) for key in info["missing_keys"]} - set(other)
        missing = sorted(key for key in lacking if not any(name in key for name in may_lack))
        if missing:
            raise ValueError(
                f"{path} lacks {len(missing)} tensors that the config asks for, such as {', '.join(missing[:3])}. Is "
                "the download complete? A pooling head or a text tower that the checkpoint never had comes with "
                "`shirg convert --vision_base`."
            )
        return (model, info) if output_loading_info else model

    def load_adapter(
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        *args,
        any_system: bool = False,
        adapter_kwargs: dict | None = None,
        **kwargs,
    ):
        """Load an adapter after checking that it fits, as the one adapter that is used from now on.

        Args:
            peft_model_id: folder or Hub id.
            adapter_name: its name in this model, `"default"` by default.
            any_system: take an adapter that was trained under another system of the same grids; the difference is
                said.
            adapter_kwargs: where on the Hub: `revision`, `token`, `cache_dir`, ...
            args, kwargs: as the parent has them.

        Raises:
            ValueError: it was trained on other base weights, for another system, or lacks tensors.
        """
        if peft_model_id is not None:
            self.check_adapter(peft_model_id, any_system=any_system, **(adapter_kwargs or {}))
        info = super().load_adapter(peft_model_id, adapter_name, *args, adapter_kwargs=adapter_kwargs, **kwargs)
        name = adapter_name or "default"
        lacking = sorted(key for key in info.missing_keys if f".{name}." in key)
        if lacking:
            self.delete_adapter(name)
            raise ValueError(
                f"{peft_model_id} lacks {len(lacking)} tensors that its adapter_config.json asks for, the first for "
                f"{lacking[0]}. Publish the adapter again from its run folder."
            )
        activate(self, name, trainable=kwargs.get("is_trainable", False))
        return info

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Use this adapter alone: the modules that it does not replace are the base's, whatever others replace."""
        if self._hf_peft_config_loaded and isinstance(adapter_name, str) and adapter_name in self.peft_config:
            activate(self, adapter_name, trainable=True)
        else:
            super().set_adapter(adapter_name)

    def check_adapter(self, adapter: str, any_system: bool = False, **hub) -> None:
        """Check that an adapter fits this model, as `load_adapter` does.

        `PeftModel.from_pretrained` sees sizes alone (torch's error) and a missing embedding (a KeyError): to it any
        base of the same sizes will do, the system is the model's, and a table without a place in the model is dropped.

        Args:
            adapter: folder or Hub id.
            any_system: as in `load_adapter`.
            hub: where on the Hub: `revision`, `token`, `cache_dir`, ...

        Raises:
            ValueError: the message says what does not fit: base weights, geometry, or a missing embedding.
        """
        found = Adapter.open(adapter, **hub)
        if found is None:
            raise ValueError(f"{adapter} has no adapter_config.json: it is no adapter, or cannot be reached.")
        found.check(self, any_system)

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """Save weights, config and, for a model that was loaded as remote code, the code files beside them."""
        super().save_pretrained(save_directory, **kwargs)
        if self.is_remote_code():
            custom_object_save(self.config, save_directory)


class ShirgLavidaModel(ShirgLavidaPreTrainedModel):
    """Vision tower, selection, projector and language model, without the head."""

    def __init__(self, config: ShirgLavidaConfig):
        super().__init__(config)
        self.vision_tower = ShirgVisionTower(config)
        self.multi_modal_projector = ShirgLavidaProjector(config)
        self.coordinate_embedding = None
        if config.coordinate_embedding:
            self.coordinate_embedding = CoordinateEmbedding(config.vision_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        # Read by `text_relevance="siglip"` alone, kept by every preset.
        self.relevance_text_model = None
        if config.relevance_text_config is not None:
            self.relevance_text_model = SiglipTextModel._from_config(config.relevance_text_config)
        # LaViDa's row separator: read by `patch_merge_type="spatial_unpad"` alone, kept by every preset.
        self.image_newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
        self._warn_of_foreign_means()
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def _warn_of_foreign_means(self) -> None:
        config, method = self.config, METHODS.get(self.config.selection_method)
        if method is None or not method.reads_mean:
            return
        if foreign := config.foreign_means():
            logger.warning_once(
                f"Preset {config.prune_method!r} uses its attention as it is: calibration holds a mean for "
                f"{' and for '.join(map(str, foreign))} alone. `shirg calibrate --prune_method {config.prune_method}` "
                "estimates one for it."
            )

    @torch.no_grad()
    def get_view_tokens(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.Tensor,
        fovea_pixel_values: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
        relevance_input_ids: torch.LongTensor | None = None,
        needs: Collection[str] = ("attention", "relevance"),
        text_relevance: str | None = None,
        calibrated: bool = True,
    ) -> list[ViewTokens]:
        """What a selection method sees of every view that tokens are selected from, image by image: for measuring.

        Args:
            input_ids, pixel_values, fovea_pixel_values, question_mask, relevance_input_ids: see `forward`.
            needs: fields of `ViewTokens` to fill besides `features`.
            text_relevance: how patches are compared with the question; by default the config's way.
            calibrated: whether the signals are corrected as the config's calibration says.
        """
        config = self.config
        if not config.selects:
            raise ValueError(f"Preset {config.prune_method!r} selects no tokens: it has no views to select from.")
        source = text_relevance or config.text_relevance
        pixels_V3PP = fovea_pixel_values if config.view_policy == "foveal" else pixel_values
        features_VND, signals = self.vision_tower(pixels_V3PP, needs)
        if "edges" in needs:
            signals["edges"] = patch_edges(pixels_V3PP, config.vision_config.patch_size)
        projected_VNC = None
        if "relevance" in needs and source == "lm":
            projected_VNC = self.multi_modal_projector(features_VND)
        embeds_BLC = self.get_input_embeddings()(input_ids)
        rows_I = self._image_rows(input_ids == config.image_token_id, self._image_lengths(pixel_values, None, None))
        questions = (embeds_BLC[rows_I.to(embeds_BLC.device)], question_mask, relevance_input_ids)
        with full_precision(features_VND):
            return self._view_tokens(features_VND, signals, projected_VNC, needs, questions, source, calibrated)

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        fovea_pixel_values: torch.Tensor | None = None,
        question_embeds: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
        mosaic_windows: torch.Tensor | None = None,
        relevance_input_ids: torch.LongTensor | None = None,
        patch_boxes: torch.Tensor | None = None,
        selection_budget: torch.LongTensor | None = None,
        fovea_size: torch.LongTensor | None = None,
        selection_noise: torch.Tensor | None = None,
        dropped_tokens: torch.BoolTensor | None = None,
    ) -> ShirgImageOutput:
        """Image tokens of every image.

        Args:
            pixel_values: base-size views of all images, (views, 3, P, P).
            fovea_pixel_values: foveal views, (I, 3, P', P'); needed by view policy `foveal`.
            question_embeds: embeddings of the prompt that holds each image, (I, L, C); without them no question is
                scored.
            question_mask: 1 at the question's tokens, (I, L).
            mosaic_windows: where each image lies in the mosaic of its tiles, (I, 6), as the image processor reports;
                needed where a mosaic is cut to the image.
            relevance_input_ids: each image's question in SigLIP's own ids, padded to the text tower's length, (I, T);
                a row of -1 is no question. Read by `text_relevance="siglip"` alone.
            patch_boxes: boxes of all patches, (I, patches, 4), as the image processor reports; needed by the
                coordinate embedding.
            selection_budget: the number of selected tokens, the same for every image, (I,); by default the config's.
            fovea_size: side in pixels of the foveal views (of the view of `whole`), the same for every image, (I,); by
                default the config's. At any other the foveal positions are interpolated; the budget stays.
            selection_noise: for training, Gumbel noise of every patch that is selected from, (I, N): it is added to
                score / `selection_temperature` before the exact top-K.
            dropped_tokens: for training, which of the selected tokens are zeroed after projection, (I, K).
        """
        config = self.config
        view_size = self._fovea_size(fovea_size)
        windows = self._check_views(pixel_values, fovea_pixel_values, mosaic_windows, view_size)
        budget = self._budget(selection_budget, fovea_size)
        if not config.selects:
            self._refuse_draws(selection_noise, dropped_tokens)
            return ShirgImageOutput(image_tokens=self._all_tokens(pixel_values, windows))
        scaffold_ITC = None
        if config.view_policy == "foveal":
            if config.scaffold:
                scaffold_ITC = self._pooled(self.multi_modal_projector(self.vision_tower(pixel_values)[0]))
            pixel_values = fovea_pixel_values
        method = METHODS.get(config.selection_method)
        needs = method.needs if method is not None else frozenset()
        if selection_noise is not None and (method is None or not method.ranks):
            self._refuse_draws(selection_noise, None)
        features_VND, signals = self.vision_tower(pixel_values, needs, any_grid=fovea_size is not None)
        if "edges" in needs:
            signals["edges"] = patch_edges(pixel_values, config.vision_config.patch_size)
        own_scaffold = config.view_policy == "whole" and config.scaffold
        projected_VNC = None
        if method is None or own_scaffold or ("relevance" in needs and config.text_relevance == "lm"):
            projected_VNC = self.multi_modal_projector(features_VND)
        if own_scaffold:
            scaffold_ITC = self._pooled(projected_VNC)
        if method is None:
            side = math.isqrt(budget if config.selection_method == "pool" else projected_VNC.shape[1])
            selected_IKC, selections = pool_square(projected_VNC, side), None
        else:
            questions = (question_embeds, question_mask, relevance_input_ids)
            if selection_noise is not None:
                signals["noise"] = self._score_noise(selection_noise, features_VND)
            selections = self._select(features_VND, signals, projected_VNC, method, budget, questions)
            selected_VKC = self._selected_tokens(features_VND, projected_VNC, selections, patch_boxes)
            share = budget // config.num_selected_views
            padded_VKC = torch.stack([F.pad(each, (0, 0, 0, share - len(each))) for each in selected_VKC])
            selected_IKC = padded_VKC.unflatten(0, (-1, config.num_selected_views)).flatten(1, 2)
        if dropped_tokens is not None:
            if dropped_tokens.shape != selected_IKC.shape[:2]:
                raise ValueError(
                    f"dropped_tokens has the shape {tuple(dropped_tokens.shape)}, the selected tokens need "
                    f"{tuple(selected_IKC.shape[:2])}: one value for each."
                )
            selected_IKC = selected_IKC.masked_fill(dropped_tokens[..., None], 0)
        parts = [selected_IKC] if scaffold_ITC is None else [scaffold_ITC, selected_IKC]
        num_patches = features_VND.shape[1]
        return self._image_output(torch.cat(parts, dim=1), selections, selected_IKC.shape[1], num_patches)

    def _all_tokens(self, pixel_values: torch.Tensor, windows: list[list[int]] | None) -> tuple[torch.Tensor, ...]:
        """Image tokens where none is dropped: pooled if the config says so, then joined."""
        config = self.config
        tokens_VNC = self._pooled(self.multi_modal_projector(self.vision_tower(pixel_values)[0]))
        if config.has_mosaic:
            return self._mosaics(tokens_VNC, windows)
        tokens_ITC = tokens_VNC.reshape(-1, config.num_base_views * config.view_grid**2, tokens_VNC.shape[-1])
        if config.patch_merge_type == "spatial_unpad":
            newline_I1C = self.image_newline.to(tokens_ITC).expand(len(tokens_ITC), 1, -1)
            tokens_ITC = torch.cat([tokens_ITC, newline_I1C], dim=1)
        return tokens_ITC.unbind(0)

    def _pooled(self, tokens_VNC: torch.Tensor) -> torch.Tensor:
        grid = self.config.pooled_grid_size
        return tokens_VNC if grid is None else pool_square(tokens_VNC, grid)

    def _budget(self, selection_budget: torch.Tensor | None, fovea_size: torch.Tensor | None = None) -> int:
        """The number of selected tokens of each image of this call."""
        if selection_budget is None and fovea_size is None:
            return self.config.selection_budget
        budget = self.config.selection_budget
        if selection_budget is not None:
            budget = _shared_value("selection_budget", selection_budget)
            if not self.config.chooses:
                raise ValueError(
                    f"selection_budget={budget} was given, but preset {self.config.prune_method!r} chooses no tokens."
                )
        self.config.check_budget(budget, self._fovea_size(fovea_size))
        return budget

    def _fovea_size(self, fovea_size: torch.Tensor | None) -> int | None:
        """Side in pixels of the foveal views of this call, of the view of `whole`; `None` without either."""
        config = self.config
        if fovea_size is None:
            return config.fovea_size
        size = _shared_value("fovea_size", fovea_size)
        if config.fovea_size is None or config.selection_method == "none":
            reason = (
                "has no fovea" if config.fovea_size is None else f"keeps every token of {config.fovea_size} pixels"
            )
            raise ValueError(f"fovea_size={size} was given, but preset {config.prune_method!r} {reason}.")
        return size

    def _refuse_draws(self, selection_noise: torch.Tensor | None, dropped_tokens: torch.Tensor | None) -> None:
        """Raises a `ValueError` if there are draws of a selection that this preset does not do."""
        draws = {"selection_noise": selection_noise, "dropped_tokens": dropped_tokens}
        for name, given in draws.items():
            if given is not None:
                raise ValueError(
                    f"{name} was given, but preset {self.config.prune_method!r} "
                    f"{'ranks no patches by a score' if name == 'selection_noise' else 'selects no tokens'}."
                )

    def _score_noise(self, selection_noise: torch.Tensor, features_VND: torch.Tensor) -> torch.Tensor:
        """Noise in units of the score, float32 (V, N): ranking by score + T g is ranking by score / T + g."""
        views, patches = self.config.num_selected_views, features_VND.shape[1]
        needed = (len(features_VND) // views, views * patches)
        if selection_noise.shape != needed:
            raise ValueError(
                f"selection_noise has the shape {tuple(selection_noise.shape)}, {needed[0]} images with {needed[1]} "
                f"patches to select from need {needed}."
            )
        return self.config.selection_temperature * selection_noise.float().reshape(-1, patches)

    def _image_output(
        self, tokens_ITC: torch.Tensor, selections: list[Selection] | None, num_selected: int, num_patches: int
    ) -> ShirgImageOutput:
        """What was selected, the views of each image side by side.

        A view with fewer tokens than its share (`adaptive`) leaves the end of its image's tokens unused.
        """
        if selections is None:
            return ShirgImageOutput(image_tokens=tokens_ITC.unbind(0))
        views = self.config.num_selected_views
        share = num_selected // views
        kept_VK = torch.stack([F.pad(each.indices, (0, share - len(each.indices)), value=-1) for each in selections])
        offsets_V1 = num_patches * (torch.arange(len(kept_VK), device=kept_VK.device) % views)[:, None]
        kept_IK = torch.where(kept_VK < 0, kept_VK, kept_VK + offsets_V1).reshape(-1, num_selected)
        scores_IN = None
        if selections[0].scores is not None:
            scores_IN = torch.stack([each.scores for each in selections]).reshape(-1, views * num_patches)
        used_IT = None
        if any(len(each.indices) < share for each in selections):
            used_IT = F.pad(kept_IK >= 0, (tokens_ITC.shape[1] - num_selected, 0), value=True)
        return ShirgImageOutput(
            image_tokens=tokens_ITC.unbind(0),
            kept_indices=kept_IK,
            scores=scores_IN,
            probabilities=None if scores_IN is None else (scores_IN / self.config.selection_temperature).softmax(-1),
            used_tokens=used_IT,
        )

    def _mosaics(self, tokens_VNC: torch.Tensor, windows: list[list[int]]) -> tuple[torch.Tensor, ...]:
        """LaViDa's tokens of each image: its whole view, then the rows of its tiles' mosaic, a newline after each."""
        counts = [1 + rows * columns for rows, columns, *_ in windows]
        images = []
        for views_VNC, (rows, columns, top, bottom, left, right) in zip(
            tokens_VNC.split(counts), windows, strict=True
        ):
            side = self.config.view_grid
            tiles = views_VNC[1:].unflatten(0, (rows, columns)).unflatten(2, (side, side))
            mosaic_HWC = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)[top:bottom, left:right]
            newline_H1C = self.image_newline.to(mosaic_HWC).expand(len(mosaic_HWC), 1, -1)
            mosaic_TC = torch.cat([mosaic_HWC, newline_H1C], dim=1).flatten(0, 1)
            images.append(torch.cat([views_VNC[0], mosaic_TC]))
        return tuple(images)

    def _check_views(
        self,
        pixel_values: torch.Tensor,
        fovea_pixel_values: torch.Tensor | None,
        mosaic_windows: torch.Tensor | None,
        fovea_size: int | None,
    ) -> list[list[int]] | None:
        """The views are those of whole images under this config's view policy; returns the mosaic windows as lists."""
        config = self.config
        size = fovea_size if config.view_policy == "whole" else config.vision_config.image_size
        _check_pixels("pixel_values", pixel_values, size)
        if fovea_pixel_values is not None and fovea_size is not None:
            _check_pixels("fovea_pixel_values", fovea_pixel_values, fovea_size)
        if config.has_mosaic:
            windows = self._mosaic_windows(mosaic_windows).tolist()
            needed = sum(1 + rows * columns for rows, columns, *_ in windows)
            if len(pixel_values) != needed:
                raise ValueError(
                    f"pixel_values has {len(pixel_values)} views, but the mosaics of {len(windows)} images need "
                    f"{needed}. {_USE_PROCESSOR}"
                )
            return windows
        if config.view_policy != "foveal":
            if fovea_pixel_values is not None:
                raise ValueError(f"View policy {config.view_policy!r} has no fovea. {_USE_PROCESSOR}")
            return None
        if fovea_pixel_values is None:
            raise ValueError(f"View policy 'foveal' needs fovea_pixel_values of {fovea_size} pixels. {_USE_PROCESSOR}")
        if len(fovea_pixel_values) != len(pixel_values):
            raise ValueError(
                f"Every image needs one fovea: got {len(pixel_values)} images and {len(fovea_pixel_values)} foveal "
                "views."
            )
        return None

    @torch.no_grad()
    def _select(
        self,
        features_VND: torch.Tensor,
        signals: dict[str, torch.Tensor],
        projected_VNC: torch.Tensor | None,
        method: SelectionMethod,
        budget: int,
        questions: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    ) -> list[Selection]:
        """What each view keeps. `questions` are the last three arguments of `_relevance`, one row per image."""
        config = self.config
        with full_precision(features_VND):
            views = self._view_tokens(
                features_VND,
                signals,
                projected_VNC,
                method.needs,
                questions,
                config.text_relevance,
                calibrated=True,
            )
            # One view at a time: what is kept must not depend on who shares the batch, not even by a rounding error.
            return [method.select(view, budget // config.num_selected_views, config) for view in views]

    def _view_tokens(
        self,
        features_VND: torch.Tensor,
        signals: dict[str, torch.Tensor],
        projected_VNC: torch.Tensor | None,
        needs: Collection[str],
        questions: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
        text_relevance: str,
        calibrated: bool,
    ) -> list[ViewTokens]:
        """What a selection method sees of each view; `questions` are as in `_select`."""
        relevance_V = [None] * len(features_VND)
        if "relevance" in needs:
            views = self.config.num_selected_views
            repeated = [None if each is None else each.repeat_interleave(views, dim=0) for each in questions]
            relevance_V = self._relevance(text_relevance, features_VND, projected_VNC, *repeated)
        if calibrated:
            signals, relevance_V = self._corrected(signals, relevance_V, text_relevance)
        return [
            ViewTokens(
                features=features_ND,
                relevance=relevance_N,
                **{name: signal[view] for name, signal in signals.items()},
            )
            for view, (features_ND, relevance_N) in enumerate(zip(features_VND, relevance_V, strict=True))
        ]

    def _corrected(
        self,
        signals: dict[str, torch.Tensor],
        relevance_V: list[torch.Tensor | None],
        text_relevance: str,
    ) -> tuple[dict[str, torch.Tensor], list[torch.Tensor | None]]:
        """Attention without its mean at each position, and relevance with its sign, where the config has them."""
        config, method = self.config, METHODS.get(self.config.selection_method)
        if config.relevance_sign(text_relevance) < 0:
            relevance_V = [None if each_N is None else -each_N for each_N in relevance_V]
        if "attention" in signals and (method is None or method.corrects_attention):
            attention_VN = signals["attention"]
            mean = config.attention_mean(math.isqrt(attention_VN.shape[1]))
            if mean is not None:
                mean_N = torch.tensor(mean, dtype=torch.float32, device=attention_VN.device)
                signals = {**signals, "attention": attention_VN - mean_N}
        return signals, relevance_V

    def _selected_tokens(
        self,
        features_VND: torch.Tensor,
        projected_VNC: torch.Tensor | None,
        selections: list[Selection],
        patch_boxes: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """The selected tokens of each view, projected, (K, C) each."""
        config = self.config
        mixed = any(each.mixing is not None for each in selections)
        if projected_VNC is not None and not mixed and not config.coordinate_embedding:
            return [projected_NC[each.indices] for projected_NC, each in zip(projected_VNC, selections, strict=True)]
        kept = [mixed_values(features_ND, each) for features_ND, each in zip(features_VND, selections, strict=True)]
        if config.coordinate_embedding:
            boxes_V = self._selected_boxes(patch_boxes, features_VND.shape[:2])
            kept = [
                kept_KD + self.coordinate_embedding(mixed_values(boxes_N4, each)).to(kept_KD)
                for kept_KD, boxes_N4, each in zip(kept, boxes_V, selections, strict=True)
            ]
        return [self.multi_modal_projector(kept_KD) for kept_KD in kept]

    def _selected_boxes(self, patch_boxes: torch.Tensor | None, views_and_patches: tuple[int, int]) -> torch.Tensor:
        """Boxes of the patches that tokens are chosen from, (views, N, 4)."""
        num_patches = self.config.num_selected_views * views_and_patches[1]
        if patch_boxes is None or patch_boxes.shape[1] < num_patches:
            held = "none" if patch_boxes is None else f"{patch_boxes.shape[1]} per image"
            raise ValueError(
                f"coordinate_embedding needs the patch_boxes of {num_patches} patches, got {held}. {_USE_PROCESSOR}"
            )
        return patch_boxes[:, -num_patches:].reshape(*views_and_patches, 4)

    def _relevance(
        self,
        source: str,
        features_IND: torch.Tensor,
        projected_INC: torch.Tensor,
        question_embeds: torch.Tensor | None,
        question_mask: torch.Tensor | None,
        relevance_input_ids: torch.LongTensor | None,
    ) -> list[torch.Tensor | None]:
        """Relevance of each image's patches for its question, float32 (N,) each; `None` without a question."""
        num_images = len(features_IND)
        if source == "lm" and question_embeds is not None and question_mask is not None:
            return [
                text_relevance(projected_NC, embeds_LC[mask_L]) if mask_L.any() else None
                for projected_NC, embeds_LC, mask_L in zip(
                    projected_INC, question_embeds, question_mask.bool(), strict=True
                )
            ]
        if source == "siglip" and self._has_questions(num_images, question_mask, relevance_input_ids):
            return [
                self._siglip_relevance(features_ND, ids_T) if ids_T[0] >= 0 else None
                for features_ND, ids_T in zip(features_IND, relevance_input_ids, strict=True)
            ]
        return [None] * num_images

    def _siglip_relevance(self, features_ND: torch.Tensor, ids_T: torch.LongTensor) -> torch.Tensor:
        """Cosine of each patch with the question in SigLIP's own space, float32 (N,).

        The text tower runs in its own dtype, as the vision tower does; SigLIP knows no attention mask over padding.
        """
        question_1D = self.relevance_text_model(ids_T[None].to(self.relevance_text_model.device)).pooler_output
        patches_ND = self.vision_tower.patch_embeddings(features_ND[None])[0]
        return text_relevance(patches_ND, question_1D.to(patches_ND.device))

    def _has_questions(
        self, num_images: int, question_mask: torch.Tensor | None, relevance_input_ids: torch.LongTensor | None
    ) -> bool:
        """Whether there are questions for SigLIP's text tower, after checking that they are all there."""
        length = self.config.relevance_text_config.max_position_embeddings
        if relevance_input_ids is None:
            if question_mask is not None and question_mask.any():
                raise ValueError(
                    "text_relevance='siglip' needs relevance_input_ids, the questions in SigLIP's own ids. Use the "
                    "processor that was saved with this checkpoint, or ShirgLavidaProcessor.from_config(model.config, "
                    "tokenizer, relevance_tokenizer=...) with SigLIP's tokenizer."
                )
            return False
        if relevance_input_ids.shape != (num_images, length):
            raise ValueError(
                f"relevance_input_ids has the shape {tuple(relevance_input_ids.shape)}, {num_images} images and a "
                f"text tower of {length} positions need {(num_images, length)}: SigLIP reads every question padded to "
                f"its full length. {_USE_PROCESSOR}"
            )
        return True

    def prepare_inputs_embeds(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.Tensor | None = None,
        fovea_pixel_values: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
        mosaic_windows: torch.Tensor | None = None,
        relevance_input_ids: torch.LongTensor | None = None,
        patch_boxes: torch.Tensor | None = None,
        selection_budget: torch.LongTensor | None = None,
        fovea_size: torch.LongTensor | None = None,
        selection_noise: torch.Tensor | None = None,
        dropped_tokens: torch.BoolTensor | None = None,
    ) -> tuple[torch.Tensor, ShirgImageOutput | None]:
        """Prompt embeddings (B, L, C) with the image tokens in place of the placeholders, and how those were chosen.

        Raises:
            ValueError: placeholders and image tokens do not match; the message names both counts.
        """
        embeds_BLC = self.get_input_embeddings()(input_ids)
        placeholder_BL = input_ids == self.config.image_token_id
        rows_I = self._image_rows(placeholder_BL, self._image_lengths(pixel_values, mosaic_windows, selection_budget))
        if pixel_values is None:
            if fovea_pixel_values is not None:
                raise ValueError(f"Got fovea_pixel_values without pixel_values. {_USE_PROCESSOR}")
            return embeds_BLC, None
        if question_mask is not None and question_mask.shape != (len(rows_I), input_ids.shape[1]):
            raise ValueError(
                f"question_mask has shape {tuple(question_mask.shape)}, but the prompts hold {len(rows_I)} images and "
                f"are {input_ids.shape[1]} tokens long: it needs one row per image."
            )
        images = self.get_image_features(
            pixel_values,
            fovea_pixel_values,
            embeds_BLC[rows_I.to(embeds_BLC.device)],
            question_mask,
            mosaic_windows,
            relevance_input_ids,
            patch_boxes,
            selection_budget,
            fovea_size,
            selection_noise,
            dropped_tokens,
        )
        if images.used_tokens is not None:
            images.visible_mask = (~placeholder_BL).masked_scatter(placeholder_BL, images.used_tokens)
        tokens = torch.cat(images.image_tokens).to(embeds_BLC.device, embeds_BLC.dtype)
        return embeds_BLC.masked_scatter(placeholder_BL[..., None].to(embeds_BLC.device), tokens), images

    def _image_lengths(
        self,
        pixel_values: torch.Tensor | None,
        mosaic_windows: torch.Tensor | None,
        selection_budget: torch.LongTensor | None,
    ) -> torch.Tensor:
        """Number of image tokens of each image, int64 (I,)."""
        config = self.config
        if pixel_values is None:
            return torch.empty(0, dtype=torch.int64)
        if not config.has_mosaic:
            if len(pixel_values) % config.num_base_views:
                raise ValueError(
                    f"pixel_values has {len(pixel_values)} views, but preset {config.prune_method!r} needs "
                    f"{config.num_base_views} per image. {_USE_PROCESSOR}"
                )
            length = config.num_image_tokens
            if selection_budget is not None:
                length += self._budget(selection_budget) - config.selection_budget
            return torch.full((len(pixel_values) // config.num_base_views,), length)
        _, _, top_I, bottom_I, left_I, right_I = self._mosaic_windows(mosaic_windows).cpu().unbind(-1)
        return config.view_grid**2 + (bottom_I - top_I) * (right_I - left_I + 1)

    def _mosaic_windows(self, mosaic_windows: torch.Tensor | None) -> torch.Tensor:
        if mosaic_windows is None:
            raise ValueError(f"Preset {self.config.prune_method!r} needs mosaic_windows. {_USE_PROCESSOR}")
        return mosaic_windows

    def _image_rows(self, placeholder_BL: torch.Tensor, lengths_I: torch.Tensor) -> torch.Tensor:
        """The prompt that each image stands in, int64 (I,), after checking that every prompt holds whole images.

        `lengths_I` is what `_image_lengths` returned.
        """
        counts_B = placeholder_BL.sum(-1).cpu()
        ends_I, ends_B = lengths_I.cumsum(0), counts_B.cumsum(0)
        total, available = int(counts_B.sum()), int(lengths_I.sum())
        if total != available or not torch.isin(ends_B[counts_B > 0], ends_I).all():
            per_image = sorted(set(lengths_I.tolist())) or self.config.num_image_tokens
            raise ValueError(
                f"The prompts hold {total} image tokens ({counts_B.tolist()} per prompt), but {len(lengths_I)} images "
                f"give {available}: preset {self.config.prune_method!r} needs exactly {per_image} per image. "
                f"{_USE_PROCESSOR}"
            )
        return torch.searchsorted(ends_B, ends_I)


class ShirgLavidaForConditionalGeneration(ShirgLavidaPreTrainedModel, ShirgLavidaGenerationMixin):
    """SHIRG-LaViDa with its language modelling head; `generate` denoises an answer."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    # The loss is a mean of this batch; the Trainer must not rescale it.
    accepts_loss_kwargs = False

    def __init__(self, config: ShirgLavidaConfig):
        super().__init__(config)
        self.model = ShirgLavidaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The language modelling head."""
        return self.lm_head

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        fovea_pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        question_mask: torch.Tensor | None = None,
        mosaic_windows: torch.Tensor | None = None,
        relevance_input_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        labels: torch.LongTensor | None = None,
        diffusion_time: torch.Tensor | None = None,
        mask_noise: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_selection: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        patch_boxes: torch.Tensor | None = None,
        selection_budget: torch.LongTensor | None = None,
        image_sizes: torch.Tensor | None = None,
        view_boxes: torch.Tensor | None = None,
        fovea_size: torch.LongTensor | None = None,
        selection_noise: torch.Tensor | None = None,
        dropped_tokens: torch.BoolTensor | None = None,
        cache: Cache | None = None,
    ) -> ShirgLavidaOutput:
        """One bidirectional forward over prompts (and whatever response tokens they end in).

        Args:
            input_ids: prompt ids with placeholders, (B, L); or give `inputs_embeds` (B, L, C).
            pixel_values: base-size views of all images in reading order, (I * V, 3, P, P).
            fovea_pixel_values: foveal views, (I, 3, P', P').
            attention_mask: 1 at real tokens, (B, L), padding left or right. Or a 4D mask of who sees whom, (B, heads
                or 1, L, keys): bool, true where seen, or floating-point, what is added to the scores. Flash attention
                takes no 4D mask, and with one position_ids are yours to give where a row is padded.
            question_mask: 1 at the tokens of each image's question, (I, L); without it selection is text-free.
            mosaic_windows: where each image lies in the mosaic of its tiles, (I, 6); needed by preset `lavida`.
            relevance_input_ids: each image's question in SigLIP's own ids, (I, T); needed, where there is a question,
                by presets that score patches with `text_relevance="siglip"`.
            position_ids: (B, L); by default they count the real tokens of each row.
            past_key_values, cache: a cache to read and extend, under the name of older and of newer transformers.
            use_cache: return a cache.
            labels: the answers' ids, (B, L), -100 elsewhere. Every example is then used twice, with complementary
                masks on its answer, and the loss is returned (objective_shirg.py). Padding is masked in attention and
                predicted only where it has a label; LaViDa trained with labels on padding and no attention mask.
            diffusion_time: with labels, the time t in 0..1 of each example, (B,); drawn uniformly by default.
            mask_noise: with labels, the draws in 0..1 that decide what is masked, (B, L); drawn by default.
            logits_to_keep: compute logits of the last so many positions, or of these positions; 0 means all.
            output_selection: return the kept indices and the scores.
            output_hidden_states, output_attentions: return the language model's; attentions need eager attention.
            patch_boxes: boxes of all patches, (I, patches, 4); needed by the coordinate embedding.
            selection_budget: the number of selected tokens of this call, (I,); by default the config's.
            image_sizes, view_boxes: what the processor reports about the views; not used by these
                presets.
            fovea_size, selection_noise, dropped_tokens: of this call; see `get_image_features`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        cache = past_key_values if cache is None else cache
        images = None
        if inputs_embeds is not None and (pixel_values is not None or fovea_pixel_values is not None):
            raise ValueError("inputs_embeds hold the images already: give pixel_values with input_ids only.")
        if inputs_embeds is None:
            inputs_embeds, images = self.model.prepare_inputs_embeds(
                input_ids,
                pixel_values,
                fovea_pixel_values,
                question_mask,
                mosaic_windows,
                relevance_input_ids,
                patch_boxes,
                selection_budget,
                fovea_size,
                selection_noise,
                dropped_tokens,
            )
            attention_mask = visible_attention(attention_mask, images)
        if position_ids is None and cache is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        masked_positions = None
        if labels is None and (diffusion_time is not None or mask_noise is not None):
            raise ValueError("diffusion_time and mask_noise say how labels are masked: give labels too.")
        if labels is not None:
            if cache is not None or use_cache:
                raise ValueError("labels are for training on whole sequences: give no cache or use_cache.")
            if not isinstance(logits_to_keep, int) or logits_to_keep != 0:
                raise ValueError("With labels the logits are those of the masked positions: give no logits_to_keep.")
            check_draws(labels, diffusion_time, mask_noise)
            if diffusion_time is None:
                diffusion_time = torch.rand(len(labels), device=labels.device)
            masked_positions, inputs_embeds, attention_mask, position_ids = self._mask_answers(
                labels, diffusion_time, mask_noise, inputs_embeds, attention_mask, position_ids
            )
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = self._prepared_mask(attention_mask, inputs_embeds)
        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_ARGUMENT: cache},
            use_cache=use_cache,
            is_causal=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if labels is None:
            loss = None
            logits = self.lm_head(_kept_positions(outputs.last_hidden_state, logits_to_keep))
        else:
            logits = self.lm_head(outputs.last_hidden_state[masked_positions])
            loss = diffusion_loss(logits, labels, masked_positions, diffusion_time, self.config.loss_weighting)
        return ShirgLavidaOutput(
            loss=loss,
            logits=logits,
            masked_positions=masked_positions,
            **{CACHE_ARGUMENT: outputs.get(CACHE_ARGUMENT)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            kept_indices=images.kept_indices if output_selection and images is not None else None,
            scores=images.scores if output_selection and images is not None else None,
        )

    def _mask_answers(
        self,
        labels: torch.LongTensor,
        diffusion_time: torch.Tensor,
        mask_noise: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None,
    ) -> tuple[torch.BoolTensor, torch.Tensor, torch.Tensor | None, torch.LongTensor | None]:
        """Both uses of every example: masked positions (2B, L), embeddings, attention mask and positions of 2B rows.

        Raises:
            ValueError: shapes do not fit, there is nothing to predict, or a 4D mask meets `prefix_lm_loss`.
        """
        if labels.shape != inputs_embeds.shape[:2]:
            raise ValueError(f"labels {tuple(labels.shape)} do not fit prompts of {tuple(inputs_embeds.shape[:2])}.")
        if mask_noise is None:
            mask_noise = torch.rand(labels.shape, device=labels.device)
        masked_2BL = complementary_masks(labels, diffusion_time, mask_noise, self.config.infill_token_id)
        if not masked_2BL.any():
            raise ValueError("labels hold no token to predict: every one is -100 or the infill token.")
        # Through the module, not its weight, which may be a shard.
        mask_C = self.get_input_embeddings()(labels.new_tensor(self.config.mask_token_id)).to(inputs_embeds.dtype)
        inputs_embeds = torch.where(masked_2BL[..., None], mask_C, inputs_embeds.repeat(2, 1, 1))
        if self.config.prefix_lm_loss:
            if attention_mask is not None and attention_mask.ndim != 2:
                raise ValueError(
                    "prefix_lm_loss=True makes the 4D mask itself, from an attention_mask (B, L) or none; got one of "
                    f"the shape {tuple(attention_mask.shape)}."
                )
            attention_mask = prefix_lm_mask(labels, attention_mask)
        if attention_mask is not None:
            attention_mask = attention_mask.expand(len(labels), *attention_mask.shape[1:])
            attention_mask = torch.cat([attention_mask, attention_mask])
        position_ids = None if position_ids is None else position_ids.repeat(2, 1)
        return masked_2BL, inputs_embeds, attention_mask, position_ids

    def _prepared_mask(self, mask_BHLL: torch.Tensor, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """A 4D attention mask as every attention kernel that takes one reads it: what is added to the scores.

        Raises:
            ValueError: the mask is neither bool nor floating-point, or flash attention would ignore it.
        """
        language_config = self.model.language_model.config
        if is_flash_attention_requested(language_config):
            raise ValueError(
                f"attn_implementation={language_config._attn_implementation!r} takes no 4D attention mask, which "
                "prefix_lm_loss=True makes too: load the model with attn_implementation='sdpa' or 'eager'."
            )
        if mask_BHLL.dtype == torch.bool:
            return additive_mask(mask_BHLL, inputs_embeds)
        if not mask_BHLL.is_floating_point():
            raise ValueError(
                f"A 4D attention_mask must be bool (true where seen) or floating-point (added to the scores), got "
                f"{mask_BHLL.dtype}: is .bool() missing?"
            )
        return mask_BHLL


def _kept_positions(hidden_BLC: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The last `logits_to_keep` positions, or these positions; 0 is all (transformers' own is of 5.22)."""
    return hidden_BLC[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


def _shared_value(name: str, values: torch.Tensor) -> int:
    """The one value of a per-image argument."""
    if not isinstance(values, torch.Tensor):
        raise TypeError(
            f"{name} must be a tensor with one number per image, as the processor returns it for "
            f"processor(..., {name}=...), got {values!r}."
        )
    distinct = sorted(set(values.flatten().tolist()))
    if len(distinct) != 1:
        raise ValueError(f"All images of a batch need the same {name}, got {distinct}.")
    return distinct[0]


def _check_pixels(name: str, pixels: torch.Tensor, size: int) -> None:
    if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
        raise ValueError(
            f"{name} must have the shape (views, 3, {size}, {size}), got {tuple(pixels.shape)}. {_USE_PROCESSOR}"
        )


__all__ = ["ShirgLavidaForConditionalGeneration", "ShirgLavidaModel", "ShirgLavidaPreTrainedModel"]
