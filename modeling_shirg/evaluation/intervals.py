"""Exact match of generated answers on rendered scenes, beside what no model and no image would get."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from PIL import Image
from tqdm.auto import tqdm

from modeling_shirg.scenes import Question, scene
from modeling_shirg.scenes.benchmark import blank_image


@dataclass(frozen=True)
class Figure:
    """Exact match on one kind of question, each as a share of `count` held-out questions.

    Attributes:
        family: the scenes' family.
        kind: what has to be done, `Question.kind`.
        count: number of questions, one per image.
        accuracy: of the model.
        low, high: 95% Wilson interval of `accuracy`.
        no_image: of the model when the image is replaced by a grey one of the same size.
        majority: of always giving the most frequent answer of these very questions.
    """

    family: str
    kind: str
    count: int
    accuracy: float
    low: float
    high: float
    no_image: float
    majority: float


def measure(model, processor, family: str, split: str, num_images: int, batch_size: int = 32) -> list[Figure]:
    """One figure per kind of question of `family`, from `num_images` scenes of `split` with one question each.

    The kinds take turns.
    """
    rows = list(_rows(family, split, num_images))
    answers = [question.answer for _, question in rows]
    seen = _answers(model, processor, [(image, question.text) for image, question in rows], batch_size)
    blank = [(blank_image(image), question.text) for image, question in rows]
    unseen = _answers(model, processor, blank, batch_size)
    figures = []
    kinds = [question.kind for _, question in rows]
    for kind in sorted(set(kinds)):
        chosen = [i for i, other in enumerate(kinds) if other == kind]
        right = sum(seen[i] == answers[i] for i in chosen)
        low, high = wilson_interval(right, len(chosen))
        figures.append(
            Figure(
                family=family,
                kind=kind,
                count=len(chosen),
                accuracy=right / len(chosen),
                low=low,
                high=high,
                no_image=sum(unseen[i] == answers[i] for i in chosen) / len(chosen),
                majority=Counter(answers[i] for i in chosen).most_common(1)[0][1] / len(chosen),
            )
        )
    return figures


def wilson_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share, 95% by default."""
    share = right / count
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, center - reach), min(1.0, center + reach)


def _rows(family: str, split: str, num_images: int) -> Iterator[tuple[Image.Image, Question]]:
    for index in range(num_images):
        drawn = scene(family, split, index)
        kinds = list(dict.fromkeys(question.kind for question in drawn.questions))
        kind = kinds[index % len(kinds)]
        yield drawn.image, next(question for question in drawn.questions if question.kind == kind)


@torch.no_grad()
def _answers(model, processor, asked: list[tuple[Image.Image, str]], batch_size: int) -> list[str]:
    answers = []
    for start in tqdm(range(0, len(asked), batch_size), desc="asking"):
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in asked[start : start + batch_size]
        ]
        inputs = processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        sequences = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        answers += processor.post_process_image_text_to_text(sequences)
    return answers
