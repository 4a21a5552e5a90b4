"""The path from views to prompt embeddings: vision tower, selection, projector, pooling, splice; loading and saving.

SigLIP and Llama are the stock modules of transformers.

Shape suffixes: B prompts, L prompt tokens, I images, V views of all images, T image tokens of one image, N patches of
one view, K kept patches, D vision width, C language model width, P pixels per side.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import record_function
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, SiglipTextModel
from transformers import initialization as init
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import logging

from .adapters_shirg import Adapter, activate, attach, resolve
from .configuration_shirg_lavida import ShirgLavidaConfig
from .foveal_selections_shirg import CoordinateEmbedding, ZeroLinear, patch_edges
from .image_inputs_shirg import ImageInputs, ShirgImageOutput
from .published_selections_shirg import METHODS
from .quantization_shirg import language_model_only
from .selection_shirg import Selection, ViewTokens, merged_values, pool_square, text_relevance
from .vision_shirg import FovealPositionEmbedding, ShirgVisionTower, full_precision

logger = logging.get_logger(__name__)

_USE_PROCESSOR = (
    "Use the processor that belongs to this config: ShirgLavidaProcessor.from_config(model.config, tokenizer)."
)


class ShirgLavidaProjector(nn.Module):
    """LaViDa's `mlp2x_gelu`: Linear, exact GELU, Linear."""

    def __init__(self, config: ShirgLavidaConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., C)."""
        with record_function("shirg.project"):
            return self.linear_2(self.act(self.linear_1(features)))


class ShirgLavidaPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving, adapters included."""

    config: ShirgLavidaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ShirgVisionTower", "LlamaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    # A preset without a fovea ignores a stored table; `_load_base` warns.
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

        A checkpoint with a foveal position table of another grid than the config's gets a table interpolated from the
        base grid, with a warning. An adapter loads its base at the commit of its training, under the system of its
        training; config fields in `kwargs` win, with a warning. bitsandbytes quantizes the language model alone. Only
        safetensors are read, and a missing weight is an error.
        """
        adapter_name = kwargs.pop("adapter_name", None)
        resolved = resolve(cls.config_class, pretrained_model_name_or_path, config, kwargs)
        loaded = cls._load_base(resolved.path, *args, config=resolved.config, saved=resolved.saved, **resolved.kwargs)
        if (adapter := resolved.adapter) is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.load_adapter(adapter.name, adapter_name, any_system=resolved.chosen, adapter_kwargs=adapter.hub)
        return loaded

    @classmethod
    def _load_base(
        cls,
        path,
        *args,
        config: PreTrainedConfig,
        saved: PreTrainedConfig,
        output_loading_info: bool = False,
        quantization_config: Any = None,
        **kwargs,
    ):
        """The parent's `from_pretrained` of the checkpoint whose stored config is `saved`, under `config`."""
        derived = () if saved.coordinate_embedding else ("coordinate_embedding",)
        if config.fovea_grid is None and saved.fovea_grid is not None:
            logger.warning_once(
                f"{path} has a foveal_position_embedding, which preset {config.prune_method!r} does not use: a model "
                "saved from here has none."
            )
        elif config.fovea_grid != saved.fovea_grid:
            derived += ("foveal_position_embedding",)
            held = "no" if saved.fovea_grid is None else f"a {saved.fovea_grid}x{saved.fovea_grid}"
            logger.warning(
                f"{path} has {held} foveal_position_embedding: the {config.fovea_grid}x{config.fovea_grid} table is "
                "interpolated from the base grid's."
            )
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
        kwargs["quantization_config"] = language_model_only(quantization_config)
        model, info = super().from_pretrained(path, *args, config=config, **kwargs)
        mismatched = {str(key[0]) for key in info["mismatched_keys"]}
        other = sorted(key for key in mismatched if "foveal_position_embedding" not in key)
        if other:
            some = ", ".join(other[:3])
            raise ValueError(f"{path} has other shapes than its config, such as {some}. Does the config belong to it?")
        missing = sorted(key for key in map(str, info["missing_keys"]) if not any(name in key for name in derived))
        if missing:
            raise ValueError(
                f"{path} lacks {len(missing)} tensors that the config asks for, such as {', '.join(missing[:3])}. Is "
                "the download complete? `shirg convert --vision_base` adds a pooling head or a text tower."
            )
        return (model, info) if output_loading_info else model

    def load_adapter(
        self,
        peft_model_id: str,
        adapter_name: str | None = None,
        any_system: bool = False,
        is_trainable: bool = False,
        adapter_kwargs: dict | None = None,
    ) -> None:
        """Load an adapter that fits this model, from a folder or the Hub, and use it alone from now on.

        Args:
            any_system: accept an adapter trained under another system of the same grids, with a warning.
            is_trainable: leave the adapter's weights trainable.
            adapter_kwargs: where on the Hub: `revision`, `token`, `cache_dir`, ...
        """
        hub = adapter_kwargs or {}
        self.check_adapter(peft_model_id, any_system=any_system, **hub)
        attach(self, peft_model_id, adapter_name or "default", is_trainable, hub)

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Use one adapter alone. Modules that it does not replace are the base's, whatever other adapters replace."""
        if self._hf_peft_config_loaded and isinstance(adapter_name, str) and adapter_name in self.peft_config:
            activate(self, adapter_name, trainable=True)
        else:
            super().set_adapter(adapter_name)

    def check_adapter(self, adapter: str, any_system: bool = False, **hub) -> None:
        """Raises a `ValueError` if an adapter does not fit this model: base weights, shapes or system. `load_adapter`
        checks it too; call this before `PeftModel.from_pretrained`, which compares sizes only."""
        opened = Adapter.open(adapter, **hub)
        if opened is None:
            raise ValueError(f"{adapter} has no adapter_config.json: it is no adapter, or cannot be reached.")
        opened.check(self, any_system)

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        """Save weights, config and, for a model that was loaded as remote code, the code files beside them."""
        super().save_pretrained(save_directory, **kwargs)
        if self.is_remote_code():
            custom_object_save(self.config, save_directory)


class ShirgLavidaModel(ShirgLavidaPreTrainedModel):
    """Vision tower, selection, projector and language model, without the head."""

    def __init__(self, config: ShirgLavidaConfig):
        super().__init__(config)
        self.method = METHODS[config.selection_method] if config.chooses else None
        needs_head = self.method is not None and "attention" in self.method.needs and config.attention_source == "map"
        if needs_head and not config.has_map_head:
            raise ValueError(
                f"Preset {config.prune_method!r} scores with SigLIP's pooling head (attention_source='map'), got "
                f"vision_use_head={config.vision_config.vision_use_head} and vision_feature_layer="
                f"{config.vision_feature_layer}. Convert the checkpoint with `--vision_base "
                "google/siglip-so400m-patch14-384`, or choose attention_source='received' or 'norm'."
            )
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
        if self.method is not None and self.method.reads_mean and (foreign := config.foreign_means()):
            logger.warning_once(
                f"Preset {config.prune_method!r} uses its attention uncorrected: the calibration holds a mean for "
                f"{' and for '.join(map(str, foreign))} only. `shirg calibrate --prune_method {config.prune_method}` "
                "estimates one for it."
            )
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def prepare_inputs_embeds(
        self, input_ids: torch.LongTensor, **image_inputs: torch.Tensor | None
    ) -> tuple[torch.Tensor, ShirgImageOutput | None]:
        """Prompt embeddings (B, L, C) with image tokens in place of the placeholders, and how the tokens were chosen.

        `image_inputs` are fields of `ImageInputs`. Placeholders that do not match the image tokens are an error.
        """
        images = ImageInputs.collect(image_inputs)
        embeds_BLC = self.get_input_embeddings()(input_ids)
        placeholder_BL = input_ids == self.config.image_token_id
        rows_I = self._image_rows(placeholder_BL, images)
        if images.pixel_values is None:
            return embeds_BLC, None
        outputs = self._image_features(images, embeds_BLC[rows_I.to(embeds_BLC.device)])
        if outputs.used_tokens is not None:
            outputs.visible_mask = (~placeholder_BL).masked_scatter(placeholder_BL, outputs.used_tokens)
        tokens = torch.cat(outputs.image_tokens).to(embeds_BLC.device, embeds_BLC.dtype)
        return embeds_BLC.masked_scatter(placeholder_BL[..., None].to(embeds_BLC.device), tokens), outputs

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        question_embeds: torch.Tensor | None = None,
        **image_inputs: torch.Tensor | None,
    ) -> ShirgImageOutput:
        """Image tokens of every image. `image_inputs` are further fields of `ImageInputs`; `question_embeds` (I, L, C)
        embed the prompt that holds each image, and without them no question is scored."""
        images = ImageInputs.collect({"pixel_values": pixel_values, **image_inputs})
        return self._image_features(images, question_embeds)

    @torch.no_grad()
    def get_view_tokens(
        self,
        input_ids: torch.LongTensor,
        needs: Collection[str] = ("attention", "relevance"),
        text_relevance: str | None = None,
        calibrated: bool = True,
        **image_inputs: torch.Tensor | None,
    ) -> list[ViewTokens]:
        """What a selection method reads of every view that tokens are selected from, image by image: for measuring.

        Args:
            input_ids: prompt ids with placeholders, (B, L).
            needs: fields of `ViewTokens` to fill besides `features`.
            text_relevance: how patches are compared with the question; by default the config's way.
            calibrated: whether the signals are corrected as the config's calibration says.
        """
        config, images = self.config, ImageInputs.collect(image_inputs)
        if not config.selects:
            raise ValueError(f"Preset {config.prune_method!r} selects no tokens: it has no views to select from.")
        embeds_BLC = self.get_input_embeddings()(input_ids)
        rows_I = self._image_rows(input_ids == config.image_token_id, images)
        question_ILC = embeds_BLC[rows_I.to(embeds_BLC.device)]
        return self._read_views(images, question_ILC, needs, text_relevance or config.text_relevance, calibrated)[2]

    def _image_features(self, images: ImageInputs, question_ILC: torch.Tensor | None) -> ShirgImageOutput:
        config, method = self.config, self.method
        self._check_views(images)
        assert images.dropped_tokens is None or config.selects, "the training's collator checks this"
        if images.selection_noise is not None and (method is None or not method.ranks):
            raise ValueError(f"selection_noise was given, but preset {config.prune_method!r} ranks no patches.")
        if not config.selects:
            return ShirgImageOutput(image_tokens=self._all_tokens(images))
        global_ITC = None
        if config.view_policy == "foveal" and config.scaffold:
            global_ITC = self._pooled(self.multi_modal_projector(self._encode(images.pixel_values)[0]))
        needs = frozenset() if method is None else method.needs
        features_VND, projected_VNC, views = self._read_views(images, question_ILC, needs, config.text_relevance)
        global_from_view = config.view_policy == "whole" and config.scaffold
        if projected_VNC is None and (method is None or global_from_view):
            projected_VNC = self.multi_modal_projector(features_VND)
        if global_from_view:
            global_ITC = self._pooled(projected_VNC)
        selections, budget = None, images.shared("selection_budget") or config.selection_budget
        if method is None:
            side = math.isqrt(budget if config.selection_method == "pool" else projected_VNC.shape[1])
            selected_IKC = pool_square(projected_VNC, side)
        else:
            with record_function("shirg.select"):
                selections = [method.select(view, budget // config.num_selected_views, config) for view in views]
            selected_VKC = self._selected_tokens(features_VND, projected_VNC, selections, images.patch_boxes)
            share = budget // config.num_selected_views
            padded_VKC = torch.stack([F.pad(tokens, (0, 0, 0, share - len(tokens))) for tokens in selected_VKC])
            selected_IKC = padded_VKC.unflatten(0, (-1, config.num_selected_views)).flatten(1, 2)
        if images.dropped_tokens is not None:
            selected_IKC = selected_IKC.masked_fill(images.dropped_tokens[..., None], 0)
        parts = [selected_IKC] if global_ITC is None else [global_ITC, selected_IKC]
        return self._image_output(torch.cat(parts, dim=1), selections, selected_IKC.shape[1], features_VND.shape[1])

    def _encode(
        self, pixels_V3PP: torch.Tensor, needs: Collection[str] = (), any_grid: bool = False
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Features of the views (V, N, D) and the signals that a selection method needs."""
        with record_function("shirg.encode"):
            features_VND, signals = self.vision_tower(pixels_V3PP, needs, any_grid)
        if "edges" in needs:
            signals["edges"] = patch_edges(pixels_V3PP, self.config.vision_config.patch_size)
        return features_VND, signals

    def _all_tokens(self, images: ImageInputs) -> tuple[torch.Tensor, ...]:
        """Image tokens where none is dropped: pooled if the config says so, then joined."""
        config = self.config
        tokens_VNC = self._pooled(self.multi_modal_projector(self._encode(images.pixel_values)[0]))
        if config.has_mosaic:
            return self._mosaics(tokens_VNC, images.mosaic_windows.tolist())
        tokens_ITC = tokens_VNC.reshape(-1, config.num_base_views * config.view_grid**2, tokens_VNC.shape[-1])
        if config.patch_merge_type == "spatial_unpad":
            newline_I1C = self.image_newline.to(tokens_ITC).expand(len(tokens_ITC), 1, -1)
            tokens_ITC = torch.cat([tokens_ITC, newline_I1C], dim=1)
        return tokens_ITC.unbind(0)

    def _pooled(self, tokens_VNC: torch.Tensor) -> torch.Tensor:
        grid = self.config.pooled_grid_size
        return tokens_VNC if grid is None else pool_square(tokens_VNC, grid)

    def _mosaics(self, tokens_VNC: torch.Tensor, windows: list[list[int]]) -> tuple[torch.Tensor, ...]:
        """LaViDa's tokens of each image: its whole view, then the rows of its tiles' mosaic, a newline after each."""
        counts = [1 + rows * columns for rows, columns, *_ in windows]
        images = []
        for views_VNC, window in zip(tokens_VNC.split(counts), windows, strict=True):
            rows, columns, top, bottom, left, right = window
            side = self.config.view_grid
            tiles = views_VNC[1:].unflatten(0, (rows, columns)).unflatten(2, (side, side))
            mosaic_HWC = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)[top:bottom, left:right]
            newline_H1C = self.image_newline.to(mosaic_HWC).expand(len(mosaic_HWC), 1, -1)
            mosaic_TC = torch.cat([mosaic_HWC, newline_H1C], dim=1).flatten(0, 1)
            images.append(torch.cat([views_VNC[0], mosaic_TC]))
        return tuple(images)

    def _read_views(
        self,
        images: ImageInputs,
        question_ILC: torch.Tensor | None,
        needs: Collection[str],
        source: str,
        calibrated: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None, list[ViewTokens]]:
        """Of the views that tokens are selected from: features (V, N, D), the projected features if the relevance by
        `source` reads them, and what a method reads of each view alone, so that no view depends on its batch."""
        pixels_V3PP = images.fovea_pixel_values if self.config.view_policy == "foveal" else images.pixel_values
        features_VND, signals = self._encode(pixels_V3PP, needs, images.fovea_size is not None)
        by_words = "relevance" in needs and source == "lm"
        projected_VNC = self.multi_modal_projector(features_VND) if by_words else None
        with record_function("shirg.select"), torch.no_grad(), full_precision(features_VND):
            if images.selection_noise is not None:
                # Ranking by score + T g equals ranking by score / T + g.
                noise_VN = images.selection_noise.float().reshape(features_VND.shape[:2])
                signals["noise"] = self.config.selection_temperature * noise_VN
            if "relevance" in needs:
                signals["relevance"] = self._relevance(source, features_VND, projected_VNC, images, question_ILC)
            if calibrated:
                self._correct(signals, source)
        views = [
            ViewTokens(features_ND, **{name: signal[view] for name, signal in signals.items()})
            for view, features_ND in enumerate(features_VND)
        ]
        return features_VND, projected_VNC, views

    def _relevance(
        self,
        source: str,
        features_VND: torch.Tensor,
        projected_VNC: torch.Tensor | None,
        images: ImageInputs,
        question_ILC: torch.Tensor | None,
    ) -> list[torch.Tensor | None]:
        """Relevance of each view's patches for its image's question, float32 (N,) each; `None` without a question."""
        mask_IL, ids_IT = images.question_mask, images.relevance_input_ids
        if source == "siglip" and ids_IT is None and mask_IL is not None and mask_IL.any():
            raise ValueError(
                "text_relevance='siglip' needs relevance_input_ids, the questions in SigLIP's own ids. Use the "
                "processor that was saved with this checkpoint, or ShirgLavidaProcessor.from_config(model.config, "
                "tokenizer, relevance_tokenizer=...) with SigLIP's tokenizer."
            )
        relevance_V = []
        for view, features_ND in enumerate(features_VND):
            image, relevance_N = view // self.config.num_selected_views, None
            if source == "lm" and question_ILC is not None and mask_IL is not None and mask_IL[image].any():
                relevance_N = text_relevance(projected_VNC[view], question_ILC[image][mask_IL[image].bool()])
            elif source == "siglip" and ids_IT is not None and ids_IT[image, 0] >= 0:
                ids_1T = ids_IT[image][None].to(self.relevance_text_model.device)
                question_1D = self.relevance_text_model(ids_1T).pooler_output  # SigLIP knows no padding mask
                patches_ND = self.vision_tower.patch_embeddings(features_ND[None])[0]
                relevance_N = text_relevance(patches_ND, question_1D.to(patches_ND.device))
            relevance_V.append(relevance_N)
        return relevance_V

    def _correct(self, signals: dict[str, Any], source: str) -> None:
        """Subtract the calibrated mean from the attention, and give the relevance its calibrated sign."""
        config, method = self.config, self.method
        if "attention" in signals and (method is None or method.corrects_attention):
            mean = config.attention_mean(math.isqrt(signals["attention"].shape[1]))
            if mean is not None:
                signals["attention"] = signals["attention"] - signals["attention"].new_tensor(mean)
        if "relevance" in signals and config.relevance_sign(source) < 0:
            signals["relevance"] = [None if signal is None else -signal for signal in signals["relevance"]]

    def _selected_tokens(
        self,
        features_VND: torch.Tensor,
        projected_VNC: torch.Tensor | None,
        selections: list[Selection],
        patch_boxes: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """The selected tokens of each view, projected, (K, C) each."""
        merged = any(selection.merge_weights is not None for selection in selections)
        if projected_VNC is not None and not merged and self.coordinate_embedding is None:
            pairs = zip(projected_VNC, selections, strict=True)
            return [projected_NC[selection.indices] for projected_NC, selection in pairs]
        kept_VKD = [merged_values(features_ND, s) for features_ND, s in zip(features_VND, selections, strict=True)]
        if self.coordinate_embedding is not None:
            if patch_boxes is None:
                raise ValueError(f"The coordinate embedding needs patch_boxes. {_USE_PROCESSOR}")
            num_patches = self.config.num_selected_views * features_VND.shape[1]
            boxes_VN4 = patch_boxes[:, -num_patches:].reshape(*features_VND.shape[:2], 4)
            kept_VKD = [
                kept_KD + self.coordinate_embedding(merged_values(boxes_N4, selection)).to(kept_KD)
                for kept_KD, boxes_N4, selection in zip(kept_VKD, boxes_VN4, selections, strict=True)
            ]
        return [self.multi_modal_projector(kept_KD) for kept_KD in kept_VKD]

    def _image_output(
        self, tokens_ITC: torch.Tensor, selections: list[Selection] | None, num_selected: int, num_patches: int
    ) -> ShirgImageOutput:
        """The report, the views of each image side by side; `adaptive` may leave the end of a view's share unused."""
        if selections is None:
            return ShirgImageOutput(image_tokens=tokens_ITC.unbind(0))
        views = self.config.num_selected_views
        share = num_selected // views
        kept_VK = torch.stack([F.pad(s.indices, (0, share - len(s.indices)), value=-1) for s in selections])
        offsets_V1 = num_patches * (torch.arange(len(kept_VK), device=kept_VK.device) % views)[:, None]
        kept_IK = torch.where(kept_VK < 0, kept_VK, kept_VK + offsets_V1).reshape(-1, num_selected)
        scores_IN = used_IT = None
        if selections[0].scores is not None:
            scores_IN = torch.stack([s.scores for s in selections]).reshape(-1, views * num_patches)
        if any(len(s.indices) < share for s in selections):
            used_IT = F.pad(kept_IK >= 0, (tokens_ITC.shape[1] - num_selected, 0), value=True)
        return ShirgImageOutput(tokens_ITC.unbind(0), kept_IK, scores_IN, used_IT)

    def _check_views(self, images: ImageInputs) -> None:
        """Raises a `ValueError` that names both shapes where the processor of another preset made the pixels."""
        config = self.config
        base_size, fovea_size = config.vision_config.image_size, images.shared("fovea_size") or config.fovea_size
        needed = {"pixel_values": fovea_size if config.view_policy == "whole" else base_size}
        if config.view_policy == "foveal":
            needed["fovea_pixel_values"] = fovea_size
        for name in ("pixel_values", "fovea_pixel_values"):
            pixels, size = getattr(images, name), needed.get(name)
            shape = None if pixels is None else tuple(pixels.shape[1:])
            wanted = None if size is None else (3, size, size)
            if shape != wanted:
                raise ValueError(
                    f"{name} has views of shape {shape}, preset {config.prune_method!r} needs {wanted}. "
                    f"{_USE_PROCESSOR}"
                )

    def _image_lengths(self, images: ImageInputs) -> torch.Tensor:
        """Number of image tokens of each image, int64 (I,). An option that the preset does not read is an error."""
        config, pixels = self.config, images.pixel_values
        reads = {
            "fovea_size": config.fovea_size is not None and config.selection_method != "none",
            "selection_budget": config.chooses,
        }
        for name, is_read in reads.items():
            if images.shared(name) is not None and not is_read:
                raise ValueError(
                    f"{name}={images.shared(name)} was given, but preset {config.prune_method!r} reads none."
                )
        if pixels is None:
            return torch.empty(0, dtype=torch.int64)
        if config.has_mosaic:
            if images.mosaic_windows is None:
                raise ValueError(f"Preset {config.prune_method!r} needs mosaic_windows. {_USE_PROCESSOR}")
            _, _, top_I, bottom_I, left_I, right_I = images.mosaic_windows.cpu().unbind(-1)
            return config.view_grid**2 + (bottom_I - top_I) * (right_I - left_I + 1)
        if len(pixels) % config.num_base_views:
            raise ValueError(
                f"pixel_values has {len(pixels)} views, preset {config.prune_method!r} needs {config.num_base_views} "
                f"per image. {_USE_PROCESSOR}"
            )
        length = config.num_image_tokens
        if (budget := images.shared("selection_budget")) is not None:
            length += budget - config.selection_budget
        return torch.full((len(pixels) // config.num_base_views,), length)

    def _image_rows(self, placeholder_BL: torch.Tensor, images: ImageInputs) -> torch.Tensor:
        """The prompt that each image stands in, int64 (I,). Prompts that do not hold whole images are an error."""
        lengths_I = self._image_lengths(images)
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
