"""The vision tower: stock SigLIP up to the layer LaViDa projects, position embeddings for a second grid, and the
attention signals that selection scores are made of.

Shape suffixes: V views, N patches of one view, D vision width, P pixels per side, H heads, K head width.
"""

import math
from collections.abc import Collection

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import SiglipVisionModel


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """Scores are float32 whatever autocast surrounds them: in bfloat16 they tie at the cut."""
    return torch.autocast(tensor.device.type, enabled=False)


class FovealPositionEmbedding(nn.Embedding):
    """Position table of a square grid that the vision tower was not trained on.

    It starts as the bicubic interpolation (align_corners=False) of the base table, trains, and is saved like any
    embedding.
    """

    def __init__(self, grid: int, base_table: nn.Embedding):
        super().__init__(grid * grid, base_table.embedding_dim)
        self.grid = grid
        # A tuple hides the base table from module registration: it already belongs to the stock tower.
        self.base_table = (base_table,)

    def interpolated_base(self) -> torch.Tensor:
        """The base table resampled to this grid, shape (grid * grid, D)."""
        return resampled_positions(self.base_table[0].weight.detach(), self.grid).to(self.weight.dtype)


def resampled_positions(table_ND: torch.Tensor, grid: int) -> torch.Tensor:
    """The positions of a square grid at another one by bicubic interpolation, float32 (grid * grid, D).

    Gradients pass to the table.
    """
    side = math.isqrt(table_ND.shape[0])
    table_1Dhw = table_ND.float().T.reshape(1, -1, side, side)
    resized_1Dhw = F.interpolate(table_1Dhw, size=(grid, grid), mode="bicubic", align_corners=False)
    return resized_1Dhw.flatten(2)[0].T


class ShirgVisionTower(nn.Module):
    """SigLIP without its last layer and post_layernorm, as LaViDa uses it, at the base grid and the fovea's grid."""

    def __init__(self, config):
        super().__init__()
        self.attention_source = config.attention_source
        self.vision_model = SiglipVisionModel._from_config(config.vision_config)
        self.num_kept_layers = config.vision_config.num_hidden_layers + 1 + config.vision_feature_layer
        self.base_grid = config.base_grid
        self.foveal_position_embedding = None
        if config.fovea_grid is not None:
            self.foveal_position_embedding = FovealPositionEmbedding(
                config.fovea_grid, self.vision_model.embeddings.position_embedding
            )

    def forward(
        self, pixels_V3PP: torch.Tensor, needs: Collection[str] = (), any_grid: bool = False
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Features of views of one size, (V, N, D), and the signals of every patch that a selection method needs.

        Args:
            needs: fields of `ViewTokens`; `"attention"`, `"inputs"` and `"keys"` are made here.
            any_grid: take views of any size, at the foveal table's positions resampled to their grid.
        """
        hidden_VND = self._embed(pixels_V3PP, any_grid)
        for layer in self.vision_model.encoder.layers[: self.num_kept_layers]:
            before_VND, hidden_VND = hidden_VND, layer(hidden_VND, None)
        signals = {}
        with torch.no_grad(), full_precision(hidden_VND):
            if "attention" in needs:
                if self.attention_source == "map":
                    signals["attention"] = self.probe_attention(hidden_VND)
                elif self.attention_source == "received":
                    signals["attention"] = self.received_attention(before_VND)
                else:
                    signals["attention"] = hidden_VND.float().norm(dim=-1)
            if "inputs" in needs:
                signals["inputs"] = before_VND.detach()
            if "keys" in needs:
                layer = self.vision_model.encoder.layers[self.num_kept_layers - 1]
                keys_VND = layer.self_attn.k_proj(layer.layer_norm1(self._as_weights(before_VND)))
                signals["keys"] = keys_VND.float().unflatten(-1, (layer.self_attn.num_heads, -1)).mean(-2)
        return hidden_VND, signals

    def _embed(self, pixels_V3PP: torch.Tensor, any_grid: bool) -> torch.Tensor:
        embeddings = self.vision_model.embeddings
        patches_VDgg = embeddings.patch_embedding(pixels_V3PP.to(embeddings.patch_embedding.weight.dtype))
        grid = patches_VDgg.shape[-1]
        foveal = self.foveal_position_embedding
        positions_of = embeddings.position_embedding if grid == self.base_grid else foveal
        assert any_grid or positions_of.num_embeddings == grid**2, f"no positions for {grid}x{grid} patches"
        positions_ND = positions_of(torch.arange(positions_of.num_embeddings, device=pixels_V3PP.device))
        if positions_of.num_embeddings != grid**2:
            positions_ND = resampled_positions(positions_ND, grid)
        return patches_VDgg.flatten(2).transpose(1, 2) + positions_ND.to(patches_VDgg.dtype)

    def probe_attention(self, features_VND: torch.Tensor) -> torch.Tensor:
        """Attention of SigLIP's pooling probe over the patches, averaged over heads, float32 (V, N), rows sum to 1."""
        head = self.vision_model.head
        hidden_VND = self._head_inputs(features_VND)
        weight_q, weight_k, _ = head.attention.in_proj_weight.float().chunk(3)
        bias_q, bias_k, _ = head.attention.in_proj_bias.float().chunk(3)
        num_heads = head.attention.num_heads
        query_HK = F.linear(head.probe[0, 0].float(), weight_q, bias_q).unflatten(0, (num_heads, -1))
        keys_VNHK = F.linear(hidden_VND, weight_k, bias_k).unflatten(-1, (num_heads, -1))
        logits_VHN = torch.einsum("hk,vnhk->vhn", query_HK, keys_VNHK) / math.sqrt(query_HK.shape[-1])
        return logits_VHN.softmax(-1).mean(1)

    def patch_embeddings(self, features_VND: torch.Tensor) -> torch.Tensor:
        """Every patch in the space that SigLIP shares with its text tower, float32 (V, N, D).

        Each patch goes through the pooling head alone. The probe's softmax over one key is 1, so the attention is the
        value and output projections, whatever the probe.
        """
        head = self.vision_model.head
        weight_v, bias_v = (
            each.float().chunk(3)[2] for each in (head.attention.in_proj_weight, head.attention.in_proj_bias)
        )
        values_VND = F.linear(self._head_inputs(features_VND), weight_v, bias_v)
        attended_VND = _in_float32(head.attention.out_proj, values_VND)
        return attended_VND + _in_float32(head.mlp, _in_float32(head.layernorm, attended_VND))

    def _head_inputs(self, features_VND: torch.Tensor) -> torch.Tensor:
        """What the pooling head reads, float32 (V, N, D): the features through the last layer and post_layernorm."""
        if self.vision_model.head.probe.is_meta:
            raise ValueError(
                "The scores read the pooling head's weights, which are offloaded. Give model.vision_tower a device of "
                "its own in device_map, such as 'cpu', or choose attention_source='received' or 'norm'."
            )
        hidden_VND = self._as_weights(features_VND)
        for layer in self.vision_model.encoder.layers[self.num_kept_layers :]:
            hidden_VND = layer(hidden_VND, None)
        return self.vision_model.post_layernorm(hidden_VND).float()

    def received_attention(self, before_VND: torch.Tensor, chunk: int = 128) -> torch.Tensor:
        """Mean attention each patch receives in the last kept layer, given that layer's input, float32 (V, N). Query
        rows are taken `chunk` at a time, so that the (N, N) map never exists as a whole."""
        layer = self.vision_model.encoder.layers[self.num_kept_layers - 1]
        normed_VND = layer.layer_norm1(self._as_weights(before_VND))
        heads = (layer.self_attn.num_heads, layer.self_attn.head_dim)
        queries_VHNK = layer.self_attn.q_proj(normed_VND).unflatten(-1, heads).transpose(1, 2).float()
        keys_VHNK = layer.self_attn.k_proj(normed_VND).unflatten(-1, heads).transpose(1, 2).float()
        received_VN = queries_VHNK.new_zeros(queries_VHNK.shape[0], queries_VHNK.shape[2])
        for part_VHnK in queries_VHNK.split(chunk, dim=2):
            logits = part_VHnK @ keys_VHNK.transpose(-1, -2) * layer.self_attn.scale
            received_VN = received_VN + logits.softmax(-1).mean(1).sum(1)
        return received_VN / queries_VHNK.shape[2]

    def _as_weights(self, hidden_VND: torch.Tensor) -> torch.Tensor:
        """In the tower's own type, which the activations of an autocast region are not."""
        return hidden_VND.to(self.vision_model.post_layernorm.weight.dtype)


def _in_float32(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What `module` with its weights in float32 computes; the module itself stays as it is."""
    return functional_call(module, {name: weight.float() for name, weight in module.named_parameters()}, (inputs,))
