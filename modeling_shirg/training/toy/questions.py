"""What stage `read` is asked: images of the four families, several questions behind each, and where answers are found.

Shape suffixes: Q questions, S question tokens, R answer tokens, T image tokens, L words (`WORDS`), M marks of a scene.
"""

from itertools import zip_longest

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg.scenes import FAMILIES, Question, scene
from modeling_shirg.training.toy.dense import WORDS, mark_shares, owned_marks, token_labels

QUESTION_LENGTH = 20
ANSWER_LENGTH = 8
_FAMILY_SHARES = {"document": 0.3, "chart": 0.3, "entity_grid": 0.25, "guard": 0.15}


class QuestionDataset(Dataset):
    """Images of the four families with `num_questions` tokenised questions each.

    Args:
        processor: the model's processor.
        view_grid: tokens per side of a pooled view.
        indices: scene numbers, in the order in which they are shown.
        num_questions: questions per image, kinds of question in turn; a scene that asks fewer repeats them.
        counting_share: share of the grids that are drawn to be counted in; by default as the family draws them.
    """

    def __init__(
        self,
        processor: ShirgLavidaProcessor,
        view_grid: int,
        split: str,
        indices: range,
        num_questions: int,
        counting_share: float | None = None,
    ):
        self.processor, self.view_grid, self.split, self.indices = processor, view_grid, split, indices
        self.num_questions, self.counting_share = num_questions, counting_share
        self.end_of_turn = processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")
        self.blank = Image.new("RGB", (1, 1))
        self.prompts: dict[str, tuple[list[int], list[int]]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict:
        index = self.indices[item]
        rng = np.random.default_rng([4, index])
        family = str(rng.choice(list(_FAMILY_SHARES), p=list(_FAMILY_SHARES.values())))
        fixed = {}
        if family == "entity_grid" and self.counting_share is not None:
            fixed["counting"] = bool(rng.random() < self.counting_share)
        drawn = scene(family, self.split, index, **fixed)
        features = self.processor.image_processor([drawn.image], return_tensors="np")
        boxes_M4 = np.array([mark.box for mark in drawn.marks], np.float32)
        boxes_T4 = token_boxes(features["view_boxes"][0], self.view_grid)
        owned_TM = owned_marks(mark_shares(boxes_M4, boxes_T4))
        order = np.resize(kinds_in_turn(drawn.questions, rng), self.num_questions)
        centres_TM = base_centres(boxes_M4, boxes_T4, self.view_grid**2)
        asked = [self._asked(drawn.questions[number], owned_TM, centres_TM) for number in order]
        return {
            "pixel_values": features["pixel_values"],
            "labels": token_labels(drawn.marks, owned_TM),
            "names": token_names(drawn.questions, owned_TM),
            "name_looks": name_looks(drawn.questions, owned_TM),
            "places": (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2 / np.array(drawn.image.size, np.float32),
            "family": list(FAMILIES).index(family),
            "prefix_ids": np.array(self._prompt(drawn.questions[order[0]].text)[0]),
            **{key: np.stack([each[key] for each in asked]) for key in asked[0]},
        }

    def _asked(self, question: Question, owned_TM: np.ndarray, centres_TM: np.ndarray) -> dict[str, np.ndarray]:
        """One question as arrays: its ids, which of them is its name, and the image tokens to look at."""
        tokenizer = self.processor.tokenizer
        ids = self._prompt(question.text)[1]
        looks_S, names_L = np.zeros(QUESTION_LENGTH, bool), np.zeros(len(WORDS), bool)
        if question.name is not None:
            looks_S[self._place_of(question.name, ids)] = True
            names_L[WORDS.index(question.name)] = True
        looks_RT = np.zeros((ANSWER_LENGTH, len(owned_TM)), bool)
        for number, marks in enumerate(question.answer_marks):
            looks_RT[number] = owned_TM[:, list(marks)].any(1)
        answer = [*tokenizer(question.answer).input_ids, self.end_of_turn]
        assert len(answer) <= ANSWER_LENGTH, question.answer
        padding = [tokenizer.pad_token_id] * max(QUESTION_LENGTH - len(ids), ANSWER_LENGTH - len(answer))
        return {
            "question_ids": np.array((ids + padding)[:QUESTION_LENGTH]),
            "question_lengths": np.array(len(ids)),
            "answer_ids": np.array((answer + padding)[:ANSWER_LENGTH]),
            "question_looks": looks_S,
            "question_names": names_L,
            "answer_reads": np.arange(ANSWER_LENGTH) < len(question.answer_marks),
            "answer_looks": looks_RT,
            "count_looks": self._count_looks(question, centres_TM),
        }

    @staticmethod
    def _count_looks(question: Question, centres_TM: np.ndarray) -> np.ndarray:
        """How much to look at the prompt's first token and at each image token, to count, (1 + T,): as much at each
        thing's centre as at that first token, so that the first token's share tells their number."""
        looks_K = np.zeros(1 + len(centres_TM), np.float32)
        if question.kind == "count":
            looks_K[0] = 1
            looks_K[1:] = centres_TM[:, list(question.answer_marks[0])].any(1)
        return looks_K / max(1.0, looks_K.sum())

    def _place_of(self, word: str, ids: list[int]) -> int:
        """Where the last token of `ids` is that is `word`, with or without a space before it."""
        written = [self.processor.tokenizer(form).input_ids for form in (word, f" {word}")]
        return max(place for place, token in enumerate(ids) if [token] in written)

    def _prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Ids of the chat prompt before and after its image; families repeat their questions, so it is kept."""
        if question not in self.prompts:
            content = [{"type": "image", "image": self.blank}, {"type": "text", "text": question}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
            )
            ids = inputs["input_ids"][0]
            start = ids.index(self.processor.image_token_id)
            stop = start + self.processor.num_image_tokens
            assert len(ids) - stop <= QUESTION_LENGTH, question
            self.prompts[question] = ids[:start], ids[stop:]
        return self.prompts[question]

    def collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Fixed-shape tensors."""
        arrays = [key for key in rows[0] if key != "pixel_values"]
        batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in arrays}
        batch["pixel_values"] = torch.from_numpy(np.concatenate([row["pixel_values"] for row in rows]))
        return batch


def kinds_in_turn(questions: list[Question], rng: np.random.Generator) -> list[int]:
    """An order of the questions in which kinds take turns: a grid counts once, but asks what is in each cell."""
    left: dict[str, list[int]] = {}
    for number in rng.permutation(len(questions)):
        left.setdefault(questions[number].kind, []).append(int(number))
    rounds = zip_longest(*left.values())
    return [number for each in rounds for number in each if number is not None]


def token_names(questions: list[Question], owned_TM: np.ndarray) -> np.ndarray:
    """Which of `WORDS` name, in some question, what lies on each image token; bool (T, L)."""
    names_TL = np.zeros((len(owned_TM), len(WORDS)), bool)
    for question in questions:
        if question.name is not None:
            marks = [mark for marks in question.answer_marks for mark in marks]
            names_TL[:, WORDS.index(question.name)] |= owned_TM[:, marks].any(1)
    return names_TL


def name_looks(questions: list[Question], owned_TM: np.ndarray) -> np.ndarray:
    """(T, T): true where token i holds a question's answer and token j the mark by which the question names it."""
    looks_TT = np.zeros((len(owned_TM), len(owned_TM)), bool)
    for question in questions:
        named_T = owned_TM[:, [mark for marks in question.answer_marks for mark in marks]].any(1)
        looks_TT |= named_T[:, None] & owned_TM[:, list(question.name_marks)].any(1)
    return looks_TT


def base_centres(boxes_M4: np.ndarray, boxes_T4: np.ndarray, base_tokens: int) -> np.ndarray:
    """Of each mark the token of the first view, which has `base_tokens`, on which its centre lies; bool (T, M)."""
    x_M, y_M = (boxes_M4[:, :2] + boxes_M4[:, 2:]).T / 2
    left, top, right, bottom = boxes_T4[:, :, None].transpose(1, 0, 2)
    centres_TM = (left <= x_M) & (x_M < right) & (top <= y_M) & (y_M < bottom)
    centres_TM[base_tokens:] = False
    return centres_TM


def token_boxes(view_boxes_V4: np.ndarray, view_grid: int) -> np.ndarray:
    """Boxes (T, 4) of the square parts of the views that pooled tokens stand for, in the unit of the views' boxes."""
    top, left = np.divmod(np.arange(view_grid * view_grid), view_grid)
    parts_T4 = np.stack([left, top, left + 1, top + 1], 1) / view_grid
    origins_V4 = np.tile(view_boxes_V4[:, :2], 2)
    extents_V4 = np.tile(view_boxes_V4[:, 2:] - view_boxes_V4[:, :2], 2)
    return (origins_V4[:, None] + parts_T4 * extents_V4[:, None]).reshape(-1, 4).astype(np.float32)
