"""Stage `read`: the language model learns to read image tokens, several questions behind one encoded image.

A row is `[prefix with image | question 1 | answer 1, masked | answer 1, complement | question 2 | ...]`. A question
sees the prefix and itself, an answer sees the prefix, its question and itself, and both copies of an answer share
their positions: what each answer is computed from is the prefix-cached forward of inference, but the image is encoded
once, and before any question is known.

Beside the answers' cross-entropy and the losses of guides.py, image tokens should read, under the language model's
head, as the marks on them and their colours.

Shape suffixes: B rows, Q questions, S question tokens, R answer tokens, P prefix tokens, T image tokens,
L = P + Q (S + 2 R), or words (`WORDS`) behind T, C width.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from modeling_shirg.scenes import FAMILIES
from modeling_shirg.training.toy.dense import WORDS, alignment_loss
from modeling_shirg.training.toy.guides import Guides
from modeling_shirg.training.toy.questions import ANSWER_LENGTH, QUESTION_LENGTH

PADDING_WEIGHT = 0.05  # end-of-text tokens fill every short answer; at full weight they would be most of the loss
FULLY_MASKED_SHARE = 0.4
ALIGNMENT_WEIGHT = 0.3


class PackedAnswerModel(nn.Module):
    """The whole model under the packed masked-diffusion loss; the tower is frozen, every image token is kept."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, num_questions: int):
        super().__init__()
        self.model = model
        self.num_questions = num_questions
        self.guides = Guides(model.config.text_config.hidden_size, num_questions)
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
        family: torch.Tensor,
        **guides: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Loss, and per family the share of fully masked answers that one forward gets right, for a batch of
        `QuestionDataset.collate`. `guides` are the targets of `Guides`."""
        core, config = self.model.model, self.model.config
        embed = core.get_input_embeddings()
        masked_BQR = _draw_masks(answer_ids)
        copies_BQ2R = torch.stack([masked_BQR, ~masked_BQR], dim=2)
        noisy_BQ2R = torch.where(copies_BQ2R, config.mask_token_id, answer_ids[:, :, None])
        image_BTC = torch.stack(core.get_image_features(pixel_values).image_tokens)
        prefix_BPC = torch.cat([embed(prefix_ids), image_BTC], dim=1)
        prefix = prefix_BPC.shape[1]
        tail_BQT = torch.cat([question_ids, noisy_BQ2R.flatten(2)], dim=2)
        position_ids = self._positions(prefix, question_lengths)
        outputs = core.language_model(
            inputs_embeds=torch.cat([prefix_BPC, embed(tail_BQT.flatten(1))], dim=1),
            attention_mask=self._mask(prefix, question_lengths),
            position_ids=position_ids,
            is_causal=False,
            output_hidden_states=True,
        )
        tail_BQTC = outputs.last_hidden_state[:, prefix:].unflatten(1, (self.num_questions, -1))
        logits = self.model.lm_head(tail_BQTC[:, :, QUESTION_LENGTH:]).unflatten(2, (2, ANSWER_LENGTH)).float()
        loss = self._answer_loss(logits, answer_ids, copies_BQ2R, config.eos_token_id)
        loss = loss + ALIGNMENT_WEIGHT * self._alignment_loss(image_BTC, labels)
        guidance, hits = self.guides(core.language_model, outputs.hidden_states, position_ids, prefix, **guides)
        loss = loss + guidance
        return {"loss": loss, **hits, **self._exact_match(logits, answer_ids, masked_BQR, family)}

    def _mask(self, prefix: int, question_lengths: torch.Tensor) -> torch.Tensor:
        """Which key each query sees, bool (B, 1, L, L)."""
        device = question_lengths.device
        block = QUESTION_LENGTH + 2 * ANSWER_LENGTH
        offset = torch.arange(self.num_questions * block, device=device)
        owner = F.pad(offset // block + 1, (prefix, 0))
        part = F.pad(
            (offset % block - QUESTION_LENGTH).div(ANSWER_LENGTH, rounding_mode="floor").clamp_min(-1) + 2, (prefix, 0)
        )
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

    @staticmethod
    def _answer_loss(logits, answer_ids, copies_BQ2R, eos_token_id) -> torch.Tensor:
        targets = answer_ids[:, :, None].expand_as(copies_BQ2R)
        losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        weights = torch.where(targets == eos_token_id, PADDING_WEIGHT, 1.0) * copies_BQ2R
        return (losses * weights.flatten()).sum() / weights.sum()

    def _alignment_loss(self, image_BTC: torch.Tensor, labels_BTL: torch.Tensor) -> torch.Tensor:
        tokens_BTC = self.model.model.language_model.norm(image_BTC)
        return alignment_loss(F.linear(tokens_BTC, self.model.lm_head.weight[self.word_ids]).float(), labels_BTL)

    @staticmethod
    def _exact_match(logits, answer_ids, masked_BQR, family) -> dict[str, torch.Tensor]:
        right_BQ = (logits[:, :, 0].detach().argmax(-1) == answer_ids).all(-1).float()
        blank_BQ = masked_BQR.all(-1)
        scores = {}
        for number, name in enumerate(FAMILIES):
            chosen = blank_BQ & (family == number)[:, None]
            scores[f"exact_{name}"] = (right_BQ * chosen).sum() / chosen.sum()
        return scores


def _draw_masks(answer_ids: torch.Tensor) -> torch.Tensor:
    """LLaDA's forward process (t uniform, each token masked with probability t) with a share of full masks."""
    rate_BQ1 = torch.rand(*answer_ids.shape[:2], 1, device=answer_ids.device)
    full_BQ1 = torch.rand_like(rate_BQ1) < FULLY_MASKED_SHARE
    return (torch.rand(answer_ids.shape, device=answer_ids.device) < rate_BQ1) | full_BQ1
