"""Exact match on held-out rows: a data set in training's form before and after training, and rendered scenes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from modeling_shirg.evaluation.intervals import wilson_interval
from modeling_shirg.running.ask import ask, conversation
from modeling_shirg.running.load import Loaded
from modeling_shirg.scenes import Question, scene
from modeling_shirg.scenes.benchmark import blank_image


@dataclass(frozen=True)
class SceneMatch:
    """Exact match on one kind of question of a family of scenes, as shares of `count` held-out questions.

    Attributes:
        family, kind, count: of the questions.
        accuracy, low, high: of the model, with the 95% Wilson interval.
        no_image: of the model on grey images of the same size.
        majority: share of the most frequent answer of these questions.
    """

    family: str
    kind: str
    count: int
    accuracy: float
    low: float
    high: float
    no_image: float
    majority: float


def scene_matches(loaded: Loaded, family: str, split: str, num_images: int, batch_size: int = 32) -> list[SceneMatch]:
    """One `SceneMatch` per kind of question, from `num_images` scenes with one question each; kinds take turns."""
    rows = list(_scene_questions(family, split, num_images))

    def answers(look: Callable[[Image.Image], Image.Image]) -> list[str]:
        return _answers(loaded, lambda n: conversation(look(rows[n][0]), rows[n][1].text), len(rows), batch_size)

    seen, blank = answers(lambda image: image), answers(blank_image)
    matches = []
    for kind in sorted({question.kind for _, question in rows}):
        chosen = [number for number, (_, question) in enumerate(rows) if question.kind == kind]
        golds = [rows[number][1].answer for number in chosen]
        value, low, high, no_image = _shares(golds, [seen[n] for n in chosen], [blank[n] for n in chosen])
        matches.append(SceneMatch(family, kind, len(chosen), value, low, high, no_image, _majority(golds)))
    return matches


def _scene_questions(family: str, split: str, num_images: int) -> Iterator[tuple[Image.Image, Question]]:
    for index in range(num_images):
        drawn = scene(family, split, index)
        kinds = list(dict.fromkeys(question.kind for question in drawn.questions))
        kind = kinds[index % len(kinds)]
        yield drawn.image, next(question for question in drawn.questions if question.kind == kind)


def answer_rows(loaded: Loaded, rows: Dataset, batch_size: int) -> list[str]:
    """The model's last answer to every row, given all turns before it.

    Args:
        loaded: the model, which generates as its generation config says, and its processor.
        rows: items with `images` and `messages`; the last turn is the answer.
        batch_size: rows that are answered together.
    """
    return _answers(loaded, lambda number: _prompt(rows[number]), len(rows), batch_size)


def _prompt(item: dict) -> list[dict]:
    """The turns before the last, with the images in their blocks."""
    images = iter(item["images"])
    turns = []
    for turn in item["messages"][:-1]:
        content = turn["content"]
        if not isinstance(content, str):
            content = [block | {"image": next(images)} if block["type"] == "image" else block for block in content]
        turns.append({**turn, "content": content})
    return turns


def exact_match_facts(rows: Dataset, given: Sequence[str], base: Sequence[str]) -> list[dict]:
    """Exact match of each source.

    Args:
        rows: as for `answer_rows`.
        given: the model's answers.
        base: answers of the model before it was trained.

    Returns:
        One dict per source: `task`, `metric`, `value`, its 95% interval `low` to `high`, `n`, and as shares of the
        same questions `baseline`, the model before training, and `majority`, the most frequent answer.
    """
    items = [rows[number] for number in range(len(rows))]
    facts = []
    for task in sorted({item["source"] for item in items}):
        chosen = [number for number, item in enumerate(items) if item["source"] == task]
        golds = [_text(items[number]["messages"][-1]).strip() for number in chosen]
        value, low, high, before = _shares(golds, [given[n] for n in chosen], [base[n] for n in chosen])
        fact = {"task": task, "metric": "exact_match", "value": value, "n": len(chosen), "low": low, "high": high}
        facts.append({**fact, "baseline": before, "majority": _majority(golds)})
    return facts


def _text(message: dict) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


def _shares(golds: list[str], given: list[str], other: list[str]) -> tuple[float, float, float, float]:
    """Share of right answers with its interval, and the share of right answers among the other ones."""
    right, too = (sum(answer == gold for answer, gold in zip(a, golds, strict=True)) for a in (given, other))
    return right / len(golds), *wilson_interval(right, len(golds)), too / len(golds)


def _majority(golds: list[str]) -> float:
    return Counter(golds).most_common(1)[0][1] / len(golds)


def _answers(loaded: Loaded, chat_of: Callable[[int], list[dict]], count: int, batch_size: int) -> list[str]:
    texts = []
    for start in tqdm(range(0, count, batch_size), desc="answering"):
        texts += ask(loaded, [chat_of(number) for number in range(start, min(start + batch_size, count))]).texts
    return texts
