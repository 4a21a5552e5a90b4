"""Answers to rows of a data set in training's form, and how many are right: exact match, beside its baselines."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from modeling_shirg.evaluation.intervals import wilson_interval


def references(rows: Dataset) -> list[tuple[str, str]]:
    """Source and last answer of every row."""
    items = (rows[place] for place in range(len(rows)))
    return [(item["source"], text_of(item["messages"][-1]).strip()) for item in items]


@torch.no_grad()
def answer_rows(model: Any, processor: Any, rows: Dataset, batch_size: int) -> list[str]:
    """The model's last answer to every row, given all turns before it.

    Args:
        model: generates as its generation config says.
        processor: the model's.
        rows: items with `images` and `messages`; the last turn is the answer.
        batch_size: rows that are answered together.
    """
    answers = []
    for start in tqdm(range(0, len(rows), batch_size), desc="answering"):
        items = [rows[place] for place in range(start, min(start + batch_size, len(rows)))]
        prompts = [
            processor.apply_chat_template(item["messages"][:-1], tokenize=False, add_generation_prompt=True)
            for item in items
        ]
        inputs = processor(
            images=[item["images"] for item in items],
            text=prompts,
            add_special_tokens=False,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        sequences = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        answers += processor.post_process_image_text_to_text(sequences)
    return answers


def exact_match_facts(expected: Sequence[tuple[str, str]], given: Sequence[str], base: Sequence[str]) -> list[dict]:
    """Exact match of each source.

    Args:
        expected: what `references` returned.
        given: the model's answers.
        base: those of the model before it was trained.

    Returns:
        One dict per source: `task`, `metric`, `value`, its 95% interval `low` to `high`, `n`, and as shares of the
        same questions `baseline`, the model before training, and `majority`, the most frequent answer to all of them.
    """
    facts = []
    for task in sorted({source for source, _ in expected}):
        places = [place for place, (source, _) in enumerate(expected) if source == task]
        answers = [expected[place][1] for place in places]
        right = sum(given[place] == answer for place, answer in zip(places, answers, strict=True))
        low, high = wilson_interval(right, len(places))
        facts.append(
            {
                "task": task,
                "metric": "exact_match",
                "value": right / len(places),
                "n": len(places),
                "low": low,
                "high": high,
                "baseline": sum(base[p] == answer for p, answer in zip(places, answers, strict=True)) / len(places),
                "majority": Counter(answers).most_common(1)[0][1] / len(places),
            }
        )
    return facts


def text_of(message: dict) -> str:
    """The text of a turn."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
