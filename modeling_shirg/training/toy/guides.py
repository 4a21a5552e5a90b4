"""Losses that show a small language model how to answer from image tokens; cross-entropy alone does not find it.

An answer is one look away once image tokens tell by what they are named. So, with heads that are thrown away, they
tell after two layers by which words questions name them (a row's key, the number of a cell) and where in the image
they lie, which no view knows of itself; answer positions tell what their question names, in the same code. And four
attention heads are shown where to look: one of the first layer, image tokens at those on which their name is written;
one of the second, answer positions at the word of the question that names something; two of the third, answer
positions at the image tokens on which the answer lies, and at one token for each thing that is counted.

Shape suffixes: B rows, Q questions, S question tokens, R answer tokens, P prefix tokens, T image tokens, L tokens of a
packed row, W words (`WORDS`), C width, H width of a head.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from modeling_shirg.training.toy.dense import WORDS
from modeling_shirg.training.toy.questions import ANSWER_LENGTH, QUESTION_LENGTH

NAMING_WEIGHT = 1.0
PLACE_WEIGHT = 2.0
LOOK_WEIGHT = 0.5
NAME_LOOK_LAYER, ASKING_LAYER, LOOKING_LAYER = 0, 1, 2
_ANSWER = slice(QUESTION_LENGTH, QUESTION_LENGTH + ANSWER_LENGTH)  # the first copy, within a question's block


class Guides(nn.Module):
    """The losses, and the heads that are thrown away. `width` is the language model's."""

    def __init__(self, width: int, num_questions: int):
        super().__init__()
        self.num_questions = num_questions
        self.naming_head = nn.Linear(width, len(WORDS))
        self.place_head = nn.Linear(width, 2)

    def forward(
        self,
        language_model: LlamaModel,
        hidden_states: tuple[torch.Tensor, ...],
        position_ids: torch.Tensor,
        prefix: int,
        names: torch.Tensor,
        name_looks: torch.Tensor,
        places: torch.Tensor,
        question_looks: torch.Tensor,
        question_names: torch.Tensor,
        answer_reads: torch.Tensor,
        answer_looks: torch.Tensor,
        count_looks: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of the losses, and how often each look is right.

        Args:
            language_model: whose heads are shown where to look.
            hidden_states: what enters each of its layers, (B, L, C) each.
            position_ids: (B, L).
            prefix: P; the image tokens are its last.
            names, name_looks, places: of image tokens, (B, T, W), (B, T, T) and (B, T, 2).
            question_looks, question_names: of questions, (B, Q, S) and (B, Q, W).
            answer_reads, answer_looks: of answer positions, (B, Q, R) and (B, Q, R, T).
            count_looks: (B, Q, 1 + T), of the prefix's first token and of image tokens.
        """
        image = slice(prefix - name_looks.shape[1], prefix)
        asks_BQR1 = answer_reads[..., None]
        normed_BLC = language_model.layers[LOOKING_LAYER].input_layernorm(hidden_states[LOOKING_LAYER])
        naming = self._naming(normed_BLC[:, image], names)
        asked = self._naming(self._answers(normed_BLC), asks_BQR1 & question_names[:, :, None])
        place = F.mse_loss(self.place_head(normed_BLC[:, image]).float(), places)

        query_BLH, key_BLH = head_states(language_model, NAME_LOOK_LAYER, 0, hidden_states, position_ids)
        name_logs_BTT = log_attention(query_BLH[:, image], key_BLH[:, :prefix])[..., image]
        name_loss, name_hits = share_loss(name_logs_BTT, name_looks)

        query_BLH, key_BLH = head_states(language_model, ASKING_LAYER, 0, hidden_states, position_ids)
        words_BQSH = self._blocks(key_BLH)[:, :, :QUESTION_LENGTH]
        asking_logs_BQRS = log_attention(self._answers(query_BLH), words_BQSH)
        asking_loss, asking_hits = share_loss(asking_logs_BQRS, asks_BQR1 & question_looks[:, :, None])

        query_BLH, key_BLH = head_states(language_model, LOOKING_LAYER, 0, hidden_states, position_ids)
        looking_logs_BQRT = log_attention(self._answers(query_BLH), key_BLH[:, None, :prefix])[..., image]
        looking_loss, looking_hits = share_loss(looking_logs_BQRT, answer_looks)

        query_BLH, key_BLH = head_states(language_model, LOOKING_LAYER, 1, hidden_states, position_ids)
        counting_logs_BQP = log_attention(self._answers(query_BLH)[:, :, 0], key_BLH[:, :prefix])
        counted_logs_BQK = torch.cat([counting_logs_BQP[..., :1], counting_logs_BQP[..., image]], dim=-1)
        counting_loss = -(counted_logs_BQK * count_looks).sum() / count_looks.any(-1).sum().clamp_min(1)

        looks = name_loss + asking_loss + looking_loss + counting_loss
        loss = NAMING_WEIGHT * (naming + asked) + PLACE_WEIGHT * place + LOOK_WEIGHT * looks
        return loss, {"name_hits": name_hits, "asking_hits": asking_hits, "looking_hits": looking_hits}

    def _naming(self, normed: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """The mean of -log(share of each name)."""
        logs = self.naming_head(normed).float().log_softmax(-1)
        return -(logs * names).sum() / names.sum().clamp_min(1)

    def _blocks(self, values_BLC: torch.Tensor) -> torch.Tensor:
        """What belongs to each question: its tokens and both copies of its answer, (B, Q, S + 2 R, C)."""
        length = self.num_questions * (QUESTION_LENGTH + 2 * ANSWER_LENGTH)
        return values_BLC[:, -length:].unflatten(1, (self.num_questions, -1))

    def _answers(self, values_BLC: torch.Tensor) -> torch.Tensor:
        return self._blocks(values_BLC)[:, :, _ANSWER]


def head_states(
    language_model: LlamaModel,
    number: int,
    head: int,
    hidden_states: tuple[torch.Tensor, ...],
    position_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, scaled, and keys of one head of layer `number` at every position, (B, L, H) each."""
    layer = language_model.layers[number]
    attention = layer.self_attn
    normed_BLC = layer.input_layernorm(hidden_states[number])
    cos, sin = language_model.rotary_emb(normed_BLC, position_ids)
    rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    query, key = (
        F.linear(normed_BLC, projection.weight[rows])[:, None] for projection in (attention.q_proj, attention.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    return query[:, 0] * attention.scaling, key[:, 0]


def log_attention(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Logarithm of the attention that is paid to these keys alone, float32 under autocast too."""
    with torch.autocast(queries.device.type, enabled=False):
        return (queries.float() @ keys.float().transpose(-1, -2)).log_softmax(-1)


def share_loss(log_shares: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of -log(share on the targets) over rows that have one, and how often the largest share is on a target."""
    has_target = targets.any(-1)
    # Rows without a target are filled first: the logarithm of an empty sum has no gradient to give.
    on_target = log_shares.masked_fill(~targets, -torch.inf).masked_fill(~has_target[..., None], 0.0)
    count = has_target.sum().clamp_min(1)
    loss = -torch.where(has_target, on_target.logsumexp(-1), 0.0).sum() / count
    largest = targets.gather(-1, log_shares.argmax(-1, keepdim=True))[..., 0]
    return loss, (largest & has_target).sum() / count
