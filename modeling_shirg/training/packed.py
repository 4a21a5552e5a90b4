"""Stages 1 and 2: the language model learns to read image tokens, several questions behind one encoded image.

A row is `[prefix with image | question 1 | answer 1, masked | answer 1, complement | question 2 | ...]`. A question
sees the prefix and itself, an answer sees the prefix, its question and itself, and both copies of an answer share
their positions: what each answer is computed from is exactly the prefix-cached forward of inference, but the image is
encoded once. With `joint=True` there is one question and the prefix sees it, as at inference, and selection is
question-aware.

Shape suffixes: B rows, Q questions, S question tokens, R answer tokens, P prefix tokens, L = P + Q (S + 2 R), C width.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from modeling_shirg.evaluation.synthetic import COLORS, FAMILIES, scene
from modeling_shirg.training.dense import MARKS, patch_owners, patch_targets

QUESTION_LENGTH = 16
ANSWER_LENGTH = 8
PADDING_WEIGHT = 0.05  # end-of-text tokens fill every short answer; at full weight they would be most of the loss
FULLY_MASKED_SHARE = 0.4
ALIGNMENT_WEIGHT = 0.3
POINTER_WEIGHT = 0.3
POINTER_LAYER = (
    2  # its first head learns where to look; the layers before bring the question, the ones after the answer
)


class Prompt(NamedTuple):
    """Ids of a chat prompt before and after its image, and 1 at the ids of `after` that are the question."""

    before: list[int]
    after: list[int]
    is_question: list[int]


class QuestionDataset(Dataset):
    """Images of the question families with `num_questions` tokenised questions each.

    Args:
        processor: the model's processor.
        split: `"train"`, `"validation"` or `"test"`.
        indices: scene numbers, in the order in which they are shown.
        num_questions: questions per image; a family that asks fewer repeats them.
        warm_up: share of the images, from the start, that come from the first family alone.
    """

    def __init__(self, processor, split: str, indices: range, num_questions: int, warm_up: float):
        self.processor = processor
        self.split = split
        self.indices = indices
        self.num_questions = num_questions
        self.warm_up = warm_up
        self.end_of_turn = processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
        self.blank = Image.new("RGB", (1, 1))
        self.prompts: dict[str, Prompt] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict:
        index = self.indices[item]
        rng = np.random.default_rng([4, index])
        early = item < self.warm_up * len(self)
        family = FAMILIES[0] if early else FAMILIES[int(rng.choice(len(FAMILIES), p=[0.65, 0.35]))]
        row = scene(family, self.split, index)
        features = self.processor.image_processor([row.image], return_tensors="np")
        owners = patch_owners(row.marks, features["patch_boxes"][0], *row.image.size)
        labels, colors = patch_targets(row.marks, owners)
        order = np.resize(rng.permutation(len(row.questions)), self.num_questions)
        return {
            "pixel_values": features["pixel_values"],
            "fovea_pixel_values": features["fovea_pixel_values"],
            "labels": labels,
            "asked": np.stack([owners == row.asked_marks[i] for i in order]),
            "colors": colors,
            "family": FAMILIES.index(family),
            "prompts": [self._prompt(row.questions[i][0]) for i in order],
            "answers": [self._answer_ids(row.questions[i][1]) for i in order],
        }

    def _prompt(self, question: str) -> Prompt:
        """The chat prompt of `question` as the processor writes it; families repeat their questions, so it is kept."""
        if question not in self.prompts:
            content = [{"type": "image", "image": self.blank}, {"type": "text", "text": question}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
            )
            ids, is_question = inputs["input_ids"][0], inputs["question_mask"][0]
            start = ids.index(self.processor.image_token_id)
            stop = start + self.processor.num_image_tokens
            if len(ids) - stop > QUESTION_LENGTH:
                raise ValueError(f"{question!r} takes {len(ids) - stop} tokens, more than {QUESTION_LENGTH}.")
            self.prompts[question] = Prompt(ids[:start], ids[stop:], is_question[stop:])
        return self.prompts[question]

    def _answer_ids(self, answer: str) -> list[int]:
        ids = [*self.processor.tokenizer(answer).input_ids, self.end_of_turn]
        return ids + [self.processor.tokenizer.pad_token_id] * (ANSWER_LENGTH - len(ids))

    def collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Fixed-shape tensors; questions are padded with their own length remembered."""
        shape = (len(rows), self.num_questions, QUESTION_LENGTH)
        question_ids = torch.full(shape, self.processor.tokenizer.pad_token_id)
        question_mask = torch.zeros(shape, dtype=torch.long)
        for i, row in enumerate(rows):
            for j, prompt in enumerate(row["prompts"]):
                question_ids[i, j, : len(prompt.after)] = torch.tensor(prompt.after)
                question_mask[i, j, : len(prompt.after)] = torch.tensor(prompt.is_question)
        stacked = {
            key: torch.from_numpy(np.stack([row[key] for row in rows]))
            for key in ("labels", "colors", "family", "asked")
        }
        views = {
            key: torch.from_numpy(np.concatenate([row[key] for row in rows]))
            for key in ("pixel_values", "fovea_pixel_values")
        }
        return {
            **views,
            **stacked,
            "prefix_ids": torch.tensor([row["prompts"][0].before for row in rows]),
            "question_ids": question_ids,
            "question_mask": question_mask,
            "question_lengths": torch.tensor([[len(prompt.after) for prompt in row["prompts"]] for row in rows]),
            "answer_ids": torch.tensor([row["answers"] for row in rows]),
        }


class PackedAnswerModel(nn.Module):
    """The whole model under the packed masked-diffusion loss; the vision tower is frozen."""

    def __init__(self, model: nn.Module, tokenizer, num_questions: int, joint: bool):
        super().__init__()
        if joint and num_questions != 1:
            raise ValueError(f"joint=True reads one question per image, got num_questions={num_questions}.")
        self.model = model
        self.num_questions = num_questions
        self.joint = joint
        model.model.vision_tower.requires_grad_(False)
        single = [tokenizer(word, add_special_tokens=False).input_ids for word in (*MARKS, *COLORS)]
        long = [word for word, ids in zip((*MARKS, *COLORS), single, strict=True) if len(ids) != 1]
        if long:
            raise ValueError(f"The tokenizer splits {long}; alignment needs one token per mark and colour.")
        names = torch.tensor([ids[0] for ids in single])
        self.register_buffer("mark_ids", F.pad(names[: len(MARKS)], (1, 0)), persistent=False)
        self.register_buffer("color_ids", F.pad(names[len(MARKS) :], (1, 0)), persistent=False)

    def forward(
        self,
        pixel_values: torch.Tensor,
        fovea_pixel_values: torch.Tensor,
        prefix_ids: torch.Tensor,
        question_ids: torch.Tensor,
        question_mask: torch.Tensor,
        question_lengths: torch.Tensor,
        answer_ids: torch.Tensor,
        labels: torch.Tensor,
        colors: torch.Tensor,
        family: torch.Tensor,
        asked: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Loss, and per family the share of fully masked answers that one forward gets right."""
        core, config = self.model.model, self.model.config
        embed = core.get_input_embeddings()
        masked_BQR = _draw_masks(answer_ids)
        copies_BQ2R = torch.stack([masked_BQR, ~masked_BQR], dim=2)
        noisy_BQ2R = torch.where(copies_BQ2R, config.mask_token_id, answer_ids[:, :, None])
        images = self._images(pixel_values, fovea_pixel_values, question_ids, question_mask)
        prefix_BPC = torch.cat([embed(prefix_ids), torch.stack(images.image_tokens)], dim=1)
        tail_BQT = torch.cat([question_ids, noisy_BQ2R.flatten(2)], dim=2)
        position_ids = self._positions(prefix_BPC.shape[1], question_lengths)
        outputs = core.language_model(
            inputs_embeds=torch.cat([prefix_BPC, embed(tail_BQT.flatten(1))], dim=1),
            attention_mask=self._mask(prefix_BPC.shape[1], question_lengths),
            position_ids=position_ids,
            is_causal=False,
            output_hidden_states=True,
        )
        tail_BQTC = outputs.last_hidden_state[:, prefix_BPC.shape[1] :].unflatten(1, (self.num_questions, -1))
        logits = self.model.lm_head(tail_BQTC[:, :, QUESTION_LENGTH:]).unflatten(2, (2, ANSWER_LENGTH))
        loss = self._answer_loss(logits, answer_ids, copies_BQ2R, config.eos_token_id)
        loss = loss + ALIGNMENT_WEIGHT * self._alignment_loss(images, labels, colors)
        pointer = self._pointer_loss(outputs.hidden_states[POINTER_LAYER], position_ids, images, asked)
        loss = loss + POINTER_WEIGHT * pointer
        return {"loss": loss, "pointer": pointer, **self._exact_match(logits, answer_ids, masked_BQR, family)}

    def _images(self, pixel_values, fovea_pixel_values, question_ids, question_mask):
        if not self.joint:
            return self.model.model.get_image_features(pixel_values, fovea_pixel_values)
        embeds = self.model.model.get_input_embeddings()(question_ids[:, 0])
        return self.model.model.get_image_features(pixel_values, fovea_pixel_values, embeds, question_mask[:, 0])

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
        if self.joint:
            sees = sees | ((owner[:, None] == 0) & (part == 1))
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

    def _alignment_loss(self, images, labels: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
        """Kept foveal tokens on a mark should already read as the mark's and the colour's words under the head."""
        kept_IK = images.kept_indices
        marks_IK = labels[:, -(self.model.config.fovea_grid**2) :].gather(1, kept_IK)
        colors_IK = colors[:, -(self.model.config.fovea_grid**2) :].gather(1, kept_IK)
        tokens = self.model.model.language_model.norm(torch.stack(images.image_tokens)[:, -kept_IK.shape[1] :])
        log_probs = self.model.lm_head(tokens).log_softmax(-1)
        on_mark = (marks_IK > 0).float()
        score = log_probs.gather(-1, self.mark_ids[marks_IK][..., None]) + log_probs.gather(
            -1, self.color_ids[colors_IK][..., None]
        )
        return -(0.5 * score.squeeze(-1) * on_mark).sum() / on_mark.sum().clamp_min(1.0)

    def _pointer_loss(
        self, hidden_BLC: torch.Tensor, position_ids: torch.Tensor, images, asked: torch.Tensor
    ) -> torch.Tensor:
        """One attention head of the first answer token should look at the kept patches of the mark asked about.

        `asked` is bool (B, Q, N), true at the patches of that mark. Rows whose mark lost all its patches do not count.
        """
        layer = self.model.model.language_model.layers[POINTER_LAYER]
        width = layer.self_attn.head_dim
        kept_IK = images.kept_indices
        prefix = hidden_BLC.shape[1] - self.num_questions * (QUESTION_LENGTH + 2 * ANSWER_LENGTH)
        rows = (
            prefix
            + QUESTION_LENGTH
            + torch.arange(self.num_questions, device=hidden_BLC.device) * (QUESTION_LENGTH + 2 * ANSWER_LENGTH)
        )
        normed_BLC = layer.input_layernorm(hidden_BLC)
        query_B1QK = layer.self_attn.q_proj(normed_BLC[:, rows])[:, None, :, :width]
        key_B1PK = layer.self_attn.k_proj(normed_BLC[:, :prefix])[:, None, :, :width]
        cos, sin = self.model.model.language_model.rotary_emb(hidden_BLC, position_ids)
        query_B1QK, _ = apply_rotary_pos_emb(query_B1QK, query_B1QK, cos[:, rows], sin[:, rows])
        key_B1PK, _ = apply_rotary_pos_emb(key_B1PK, key_B1PK, cos[:, :prefix], sin[:, :prefix])
        log_attention_BQP = (query_B1QK @ key_B1PK.transpose(-1, -2))[:, 0].mul(width**-0.5).log_softmax(-1)
        fovea_BQN = asked[:, :, -(self.model.config.fovea_grid**2) :]
        targets_BQK = fovea_BQN.gather(2, kept_IK[:, None].expand(-1, self.num_questions, -1))
        hits_BQK = log_attention_BQP[:, :, -kept_IK.shape[1] :].masked_fill(~targets_BQK, -torch.inf)
        answerable_BQ = targets_BQK.any(-1)
        mass_BQ = torch.where(answerable_BQ, hits_BQK.masked_fill(~answerable_BQ[..., None], 0.0).logsumexp(-1), 0.0)
        return -mass_BQ.sum() / answerable_BQ.sum().clamp_min(1)

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
    """LLaDA's forward process with a share of fully masked answers.

    For the others t is uniform and each token is masked with probability t.
    """
    rate_BQ1 = torch.rand(*answer_ids.shape[:2], 1, device=answer_ids.device)
    full_BQ1 = torch.rand_like(rate_BQ1) < FULLY_MASKED_SHARE
    return (torch.rand(answer_ids.shape, device=answer_ids.device) < rate_BQ1) | full_BQ1
