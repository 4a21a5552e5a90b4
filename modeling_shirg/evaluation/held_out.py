"""Exact match on held-out rows in training's form: a data set before and after training, or rendered scenes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from modeling_shirg.evaluation.intervals import wilson_interval
from modeling_shirg.running.ask import ask, conversation
from modeling_shirg.running.load import Loaded
from modeling_shirg.scenes import scene
from modeling_shirg.scenes.benchmark import blank_image

Rows = Dataset | Sequence[dict[str, Any]]


def scene_rows(family: str, split: str, num_images: int, blank: bool = False) -> list[dict[str, Any]]:
    """`num_images` scenes with one question each, kinds in turn; the kind of question is the row's `source`."""
    rows = []
    for index in range(num_images):
        drawn = scene(family, split, index)
        kinds = list(dict.fromkeys(question.kind for question in drawn.questions))
        question = next(question for question in drawn.questions if question.kind == kinds[index % len(kinds)])
        image = blank_image(drawn.image) if blank else drawn.image
        answer = {"role": "assistant", "content": question.answer}
        rows.append({"source": question.kind, "messages": [*conversation(image, question.text), answer]})
    return rows


def answer_rows(model: Any, processor: Any, rows: Rows, batch_size: int) -> list[str]:
    """The model's last answer to every row, given all turns before it, by its own generation config.

    `rows` are items with `messages`, and with `images` if the image blocks have none; the last turn is the answer.
    """
    texts, loaded = [], Loaded(model, processor, "held-out rows")
    for start in tqdm(range(0, len(rows), batch_size), desc="answering"):
        items = [rows[number] for number in range(start, min(start + batch_size, len(rows)))]
        texts += ask(loaded, [_prompt(item) for item in items]).texts
    return texts


def adapted_facts(model: PeftModel, processor: Any, rows: Rows, batch_size: int) -> list[dict[str, Any]]:
    """Exact match of each source, of an adapter and of its base."""
    with model.disable_adapter():
        base = answer_rows(model, processor, rows, batch_size)
    return exact_match_facts(rows, answer_rows(model, processor, rows, batch_size), base)


def exact_match_words(row: dict[str, Any]) -> str:
    """One of `adapted_facts` as a sentence."""
    return (
        f"{row['task']}: exact match {row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%}) of {row['n']} "
        f"held-out rows, {row['baseline']:.1%} before training, {row['majority']:.1%} by the most frequent answer"
    )


def exact_match_facts(rows: Rows, given: Sequence[str], base: Sequence[str]) -> list[dict[str, Any]]:
    """Exact match of each source: `task`, `metric`, `value`, its 95% interval `low` to `high`, `n`, and as shares of
    the same questions `baseline`, the right ones in `base`, and `majority`, the most frequent answer.

    `base` are answers of the model before training, or to blank images.
    """
    by_source: dict[str, list[tuple[str, str, str]]] = {}
    for number, (answer, other) in enumerate(zip(given, base, strict=True)):
        item = rows[number]
        by_source.setdefault(item["source"], []).append((_text(item["messages"][-1]).strip(), answer, other))
    facts = []
    for source, answers in sorted(by_source.items()):
        right, too = (sum(answer[column] == answer[0] for answer in answers) for column in (1, 2))
        low, high = wilson_interval(right, len(answers))
        majority = Counter(gold for gold, _, _ in answers).most_common(1)[0][1] / len(answers)
        fact = {"task": source, "metric": "exact_match", "value": right / len(answers), "n": len(answers)}
        facts.append({**fact, "low": low, "high": high, "baseline": too / len(answers), "majority": majority})
    return facts


def _prompt(item: dict[str, Any]) -> list[dict]:
    """The turns before the last, with the item's images in their blocks."""
    images, turns = iter(item.get("images", ())), []
    for turn in item["messages"][:-1]:
        content = turn["content"]
        if not isinstance(content, str):
            content = [{"image": next(images), **b} if b == {"type": "image"} else b for b in content]
        turns.append({**turn, "content": content})
    return turns


def _text(message: dict) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
