"""What stage `read` is asked: images of the four families, several questions behind each, and where answers are found.

Shape suffixes: S question tokens, R answer tokens, T image tokens, K = 1 + T, L words (`WORDS`), M marks of a scene.
"""

from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from PIL import Image

from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg.running.ask import conversation
from modeling_shirg.scenes import Question, scene
from modeling_shirg.training.toy.dense import WORDS, owned_marks, token_boxes, token_labels

QUESTION_LENGTH = 20
ANSWER_LENGTH = 8
_FAMILY_SHARES = {"document": 0.3, "chart": 0.3, "entity_grid": 0.25, "guard": 0.15}


@dataclass
class QuestionBatches:
    """Draws batches from numbers of training scenes: images of the four families with tokenised questions.

    Args:
        processor: the model's processor.
        view_grid: tokens per side of a pooled view.
        num_questions: questions per image, kinds of question in turn; a scene that asks fewer repeats them.
        counting_share: share of the grids that are drawn to be counted in; by default as the family draws them.
    """

    processor: ShirgLavidaProcessor
    view_grid: int
    num_questions: int
    counting_share: float | None = None
    prompts: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)

    def __call__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """The batch of `PackedAnswerModel.forward`."""
        rows = [self._row(index) for index in indices]
        pixels_V3PP = np.concatenate([row.pop("pixel_values") for row in rows])
        batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
        return batch | {"pixel_values": torch.from_numpy(pixels_V3PP)}

    def _row(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([4, index])
        family = str(rng.choice(list(_FAMILY_SHARES), p=list(_FAMILY_SHARES.values())))
        fixed = {}
        if family == "entity_grid" and self.counting_share is not None:
            fixed["counting"] = bool(rng.random() < self.counting_share)
        drawn = scene(family, "train", index, **fixed)
        features = self.processor.image_processor([drawn.image], return_tensors="np")
        boxes_M4 = np.array([mark.box for mark in drawn.marks], np.float32)
        boxes_T4 = token_boxes(features["view_boxes"][0], self.view_grid)
        owned_TM = owned_marks(boxes_M4, boxes_T4)
        order = np.resize(kinds_in_turn(drawn.questions, rng), self.num_questions)
        centres_TM = base_centres(boxes_M4, boxes_T4, self.view_grid**2)
        asked = [self.asked(drawn.questions[number], owned_TM, centres_TM) for number in order]
        return {
            "pixel_values": features["pixel_values"],
            "labels": token_labels(drawn.marks, owned_TM),
            "names": token_names(drawn.questions, owned_TM),
            "name_looks": name_looks(drawn.questions, owned_TM),
            "places": (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2 / np.array(drawn.image.size, np.float32),
            "prefix_ids": np.array(self._prompt(drawn.questions[order[0]].text)[0]),
            **{key: np.stack([each[key] for each in asked]) for key in asked[0]},
        }

    def asked(self, question: Question, owned_TM: np.ndarray, centres_TM: np.ndarray) -> dict[str, np.ndarray]:
        """One question as arrays: its ids, which of them is its name, and the image tokens to look at.

        `owned_TM` says which marks lie on each token, `centres_TM` which have their centre there.
        """
        tokenizer = self.processor.tokenizer
        ids = self._prompt(question.text)[1]
        looks_S, names_L = np.zeros(QUESTION_LENGTH, bool), np.zeros(len(WORDS), bool)
        if question.name is not None:
            written = [tokenizer(form).input_ids for form in (question.name, f" {question.name}")]
            looks_S[max(place for place, token in enumerate(ids) if [token] in written)] = True
            names_L[WORDS.index(question.name)] = True
        looks_RT = np.zeros((ANSWER_LENGTH, len(owned_TM)), bool)
        for number, marks in enumerate(question.answer_marks):
            looks_RT[number] = owned_TM[:, list(marks)].any(1)
        # As much at each counted thing's centre as at the prompt's first token, whose share then tells their number.
        counts_K = np.zeros(1 + len(centres_TM), np.float32)
        if question.kind == "count":
            counts_K[0] = 1
            counts_K[1:] = centres_TM[:, list(question.answer_marks[0])].any(1)
        answer = [*tokenizer(question.answer).input_ids, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
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
            "count_looks": counts_K / max(1.0, counts_K.sum()),
        }

    def _prompt(self, question: str) -> tuple[list[int], list[int]]:
        """Ids of the chat prompt before and after its image; families repeat their questions, so it is kept."""
        if question not in self.prompts:
            asked, options = conversation(Image.new("RGB", (1, 1)), question), {"tokenize": True, "return_dict": True}
            ids = self.processor.apply_chat_template(asked, add_generation_prompt=True, **options)["input_ids"][0]
            start = ids.index(self.processor.image_token_id)
            stop = start + self.processor.num_image_tokens
            assert len(ids) - stop <= QUESTION_LENGTH, question
            self.prompts[question] = ids[:start], ids[stop:]
        return self.prompts[question]


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
            names_TL[:, WORDS.index(question.name)] |= _answered(question, owned_TM)
    return names_TL


def name_looks(questions: list[Question], owned_TM: np.ndarray) -> np.ndarray:
    """(T, T): true where token i holds a question's answer and token j the mark by which the question names it."""
    looks_TT = np.zeros((len(owned_TM), len(owned_TM)), bool)
    for question in questions:
        looks_TT |= _answered(question, owned_TM)[:, None] & owned_TM[:, list(question.name_marks)].any(1)
    return looks_TT


def _answered(question: Question, owned_TM: np.ndarray) -> np.ndarray:
    """Image tokens that hold a part of the answer, bool (T,)."""
    return owned_TM[:, [mark for marks in question.answer_marks for mark in marks]].any(1)


def base_centres(boxes_M4: np.ndarray, boxes_T4: np.ndarray, base_tokens: int) -> np.ndarray:
    """Of each mark the token of the first view, which has `base_tokens`, on which its centre lies; bool (T, M)."""
    x_M, y_M = (boxes_M4[:, :2] + boxes_M4[:, 2:]).T / 2
    left, top, right, bottom = boxes_T4[:, :, None].transpose(1, 0, 2)
    centres_TM = (left <= x_M) & (x_M < right) & (top <= y_M) & (y_M < bottom)
    centres_TM[base_tokens:] = False
    return centres_TM
