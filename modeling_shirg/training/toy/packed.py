"""Stage `read`: the language model learns to read image tokens, several questions behind one encoded image.

A row is `[prefix with image | question 1 | answer 1, masked | answer 1, complement | question 2 | ...]`. A question
sees the prefix and itself, an answer sees the prefix, its question and itself, and both copies of an answer share
their positions: what each answer is computed from is the prefix-cached forward of inference, but the image is encoded
once, and before any question is known.

Cross-entropy alone does not find how to answer. An answer is one look away once image tokens tell by what they are
named. So image tokens should read, under the language model's head, as the marks on them and their colours. With heads
that are thrown away, they tell after two layers by which words questions name them (a row's key, the number of a cell)
and where in the image they lie, which no view knows of itself; answer positions tell what their question names, in the
same code. And four attention heads are shown where to look: one of the first layer, image tokens at those on which
their name is written; one of the second, answer positions at the word of the question that names something; two of the
third, answer positions at the image tokens on which the answer lies, and at one token for each thing that is counted.

Shape suffixes: B rows, Q questions, S question tokens, R answer tokens, P prefix tokens, T image tokens,
L = P + Q (S + 2 R), or words (`WORDS`) behind T, C width.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from modeling_shirg.training.toy.dense import WORDS, alignment_loss, weighted_cross_entropy
from modeling_shirg.training.toy.questions import ANSWER_LENGTH, QUESTION_LENGTH

PADDING_WEIGHT = 0.05  # end-of-text tokens fill every short answer; at full weight they would be most of the loss
FULLY_MASKED_SHARE = 0.4
ALIGNMENT_WEIGHT, NAMING_WEIGHT, PLACE_WEIGHT, LOOK_WEIGHT = 0.3, 1.0, 2.0, 0.5
NAME_LOOK_LAYER, ASKING_LAYER, LOOKING_LAYER = 0, 1, 2
_ANSWER = slice(QUESTION_LENGTH, QUESTION_LENGTH + ANSWER_LENGTH)  # the first copy, within a question's block


class PackedAnswerModel(nn.Module):
    """The whole model under the packed masked-diffusion loss; the tower is frozen, every image token is kept."""

    accepts_loss_kwargs = False  # the Trainer would add an argument of its own to `guides`

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, num_questions: int):
        super().__init__()
        self.model = model
        self.num_questions = num_questions
        self.naming_head = nn.Linear(model.config.text_config.hidden_size, len(WORDS))
        self.place_head = nn.Linear(model.config.text_config.hidden_size, 2)
        model.model.language_model.set_attn_implementation("eager")  # which returns what it looks at
        model.model.vision_tower.requires_grad_(False)
        single = [tokenizer(word, add_special_tokens=False).input_ids for word in WORDS]
        assert {len(ids) for ids in single} == {1}, "alignment needs one token per word"
        self.register_buffer("word_ids", torch.tensor([ids[0] for ids in single]), persistent=False)

    @torch.no_grad()
    def start_reading(self, read_head_LC: torch.Tensor) -> None:
        """Embed each word as the image tokens that it describes look to the read-out of stage `sharpen`."""
        self.model.lm_head.weight[self.word_ids] = read_head_LC
        table = self.model.get_input_embeddings().weight
        table[self.word_ids] = read_head_LC * (table.std() / read_head_LC.std())

    def forward(
        self,
        pixel_values: torch.Tensor,
        prefix_ids: torch.Tensor,
        question_ids: torch.Tensor,
        question_lengths: torch.Tensor,
        answer_ids: torch.Tensor,
        labels: torch.Tensor,
        **guides: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The loss of a batch of `QuestionBatches`; `guides` are targets of `_guidance`."""
        core, config = self.model.model, self.model.config
        embed, language_model = core.get_input_embeddings(), core.language_model
        masked_BQR = _draw_masks(answer_ids)
        copies_BQ2R = torch.stack([masked_BQR, ~masked_BQR], dim=2)
        targets_BQ2R = answer_ids[:, :, None].expand_as(copies_BQ2R)
        noisy_BQ2R = torch.where(copies_BQ2R, config.mask_token_id, targets_BQ2R)
        image_BTC = torch.stack(core.get_image_features(pixel_values).image_tokens)
        prefix_BPC = torch.cat([embed(prefix_ids), image_BTC], dim=1)
        prefix = prefix_BPC.shape[1]
        tail_BQT = torch.cat([question_ids, noisy_BQ2R.flatten(2)], dim=2)
        sees_B1LL = self._mask(prefix, question_lengths)
        outputs = language_model(
            inputs_embeds=torch.cat([prefix_BPC, embed(tail_BQT.flatten(1))], dim=1),
            # Eager attention adds its mask.
            attention_mask=torch.where(sees_B1LL, 0.0, torch.finfo(torch.float32).min),
            position_ids=self._positions(prefix, question_lengths),
            output_hidden_states=True,
            output_attentions=True,
        )
        tail_BQTC = outputs.last_hidden_state[:, prefix:].unflatten(1, (self.num_questions, -1))
        logits = self.model.lm_head(tail_BQTC[:, :, QUESTION_LENGTH:]).unflatten(2, (2, ANSWER_LENGTH)).float()
        weights = torch.where(targets_BQ2R == config.eos_token_id, PADDING_WEIGHT, 1.0) * copies_BQ2R
        loss = weighted_cross_entropy(logits, targets_BQ2R, weights)
        words_BTL = F.linear(language_model.norm(image_BTC), self.model.lm_head.weight[self.word_ids])
        loss = loss + ALIGNMENT_WEIGHT * alignment_loss(words_BTL.float(), labels)
        normed_BLC = language_model.layers[LOOKING_LAYER].input_layernorm(outputs.hidden_states[LOOKING_LAYER])
        return {"loss": loss + self._guidance(normed_BLC, outputs.attentions, prefix, guides)}

    def _mask(self, prefix: int, question_lengths: torch.Tensor) -> torch.Tensor:
        """Which key each query sees, bool (B, 1, L, L)."""
        device = question_lengths.device
        block = QUESTION_LENGTH + 2 * ANSWER_LENGTH
        offset = torch.arange(self.num_questions * block, device=device)
        owner = F.pad(offset // block + 1, (prefix, 0))
        part = (offset % block - QUESTION_LENGTH).div(ANSWER_LENGTH, rounding_mode="floor").clamp_min(-1)
        part = F.pad(part + 2, (prefix, 0))
        sees = (owner[None] == 0) | ((owner[:, None] == owner) & ((part == 1) | (part[:, None] == part)))
        real_BQS = torch.arange(QUESTION_LENGTH, device=device) < question_lengths[..., None]
        real_BL = F.pad(F.pad(real_BQS, (0, 2 * ANSWER_LENGTH), value=True).flatten(1), (prefix, 0), value=True)
        return (sees[None] & real_BL[:, None])[:, None]

    def _positions(self, prefix: int, question_lengths: torch.Tensor) -> torch.Tensor:
        """Position ids (B, L): each question starts after the prefix, each answer after its question's real tokens."""
        device = question_lengths.device
        question = torch.arange(QUESTION_LENGTH, device=device).expand(*question_lengths.shape, -1)
        answer = question_lengths[..., None] + torch.arange(ANSWER_LENGTH, device=device)
        tail = prefix + torch.cat([question, answer, answer], dim=-1).flatten(1)
        return torch.cat([torch.arange(prefix, device=device).expand(len(tail), -1), tail], dim=1)

    def _guidance(self, normed_BLC: torch.Tensor, attentions, prefix: int, targets: dict) -> torch.Tensor:
        """The sum of the losses of the thrown-away heads and of the looks.

        `normed_BLC` is what layer `LOOKING_LAYER` attends with, `attentions` of each layer are (B, heads, L, L).
        """
        image = slice(prefix - targets["names"].shape[1], prefix)
        asks_BQR1 = targets["answer_reads"][..., None]
        naming = self._naming(normed_BLC[:, image], targets["names"])
        naming += self._naming(self._answers(normed_BLC), asks_BQR1 & targets["question_names"][:, :, None])
        place = F.mse_loss(self.place_head(normed_BLC[:, image]).float(), targets["places"])

        name_BTP = attentions[NAME_LOOK_LAYER][:, 0, image, :prefix]
        looks = look_loss(log_shares(name_BTP)[..., image], targets["name_looks"])

        blocks_BLQL = attentions[ASKING_LAYER][:, 0, prefix:, prefix:].unflatten(2, (self.num_questions, -1))
        own_BQLL = blocks_BLQL.unflatten(1, (self.num_questions, -1)).diagonal(dim1=1, dim2=3).movedim(-1, 1)
        asking_BQRS = own_BQLL[:, :, _ANSWER, :QUESTION_LENGTH]
        looks += look_loss(log_shares(asking_BQRS), asks_BQR1 & targets["question_looks"][:, :, None])

        looking_BQRP = self._answers(attentions[LOOKING_LAYER][:, 0, :, :prefix])
        looks += look_loss(log_shares(looking_BQRP)[..., image], targets["answer_looks"])

        counting_logs_BQP = log_shares(self._answers(attentions[LOOKING_LAYER][:, 1, :, :prefix])[:, :, 0])
        counts_BQP = F.pad(targets["count_looks"][..., 1:], (image.start, 0))
        counts_BQP[..., 0] = targets["count_looks"][..., 0]
        looks -= (counting_logs_BQP * counts_BQP).sum() / counts_BQP.any(-1).sum().clamp_min(1)
        return NAMING_WEIGHT * naming + PLACE_WEIGHT * place + LOOK_WEIGHT * looks

    def _naming(self, normed: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """The mean of -log(share of each name)."""
        logs = self.naming_head(normed).float().log_softmax(-1)
        return -(logs * names).sum() / names.sum().clamp_min(1)

    def _answers(self, values_BLX: torch.Tensor) -> torch.Tensor:
        """What belongs to the first copy of each answer, (B, Q, R, X)."""
        length = self.num_questions * (QUESTION_LENGTH + 2 * ANSWER_LENGTH)
        return values_BLX[:, -length:].unflatten(1, (self.num_questions, -1))[:, :, _ANSWER]


def log_shares(attention: torch.Tensor) -> torch.Tensor:
    """Logarithm of the attention that is paid to these keys alone."""
    return attention.float().clamp_min(1e-30).log().log_softmax(-1)


def look_loss(log_shares: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of -log(share on the targets) over rows that have one."""
    has_target = targets.any(-1)
    # Rows without a target are filled first: the logarithm of an empty sum has no gradient to give.
    on_target = log_shares.masked_fill(~targets, -torch.inf).masked_fill(~has_target[..., None], 0.0)
    return -torch.where(has_target, on_target.logsumexp(-1), 0.0).sum() / has_target.sum().clamp_min(1)


def _draw_masks(answer_ids: torch.Tensor) -> torch.Tensor:
    """LLaDA's forward process (t uniform, each token masked with probability t) with a share of full masks."""
    rate_BQ1 = torch.rand(*answer_ids.shape[:2], 1, device=answer_ids.device)
    full_BQ1 = torch.rand_like(rate_BQ1) < FULLY_MASKED_SHARE
    return (torch.rand(answer_ids.shape, device=answer_ids.device) < rate_BQ1) | full_BQ1
