"""Asks a system the rows of a task in batches, and logs every answer with its scores and its cost."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from modeling_shirg.evaluation.answer_log import (
    MEMORY_FILE,
    ROWS_FILE,
    AnswerLog,
    Place,
    check_settings,
    read_answers,
)
from modeling_shirg.evaluation.costs import peak_memory
from modeling_shirg.evaluation.tasks import TASKS, Sample, TaskRows
from modeling_shirg.running.ask import Answers, ask
from modeling_shirg.running.files import write_json
from modeling_shirg.running.load import Loaded
from modeling_shirg.training.reading import BadRow


class Share(NamedTuple):
    """The rows of this process: every `world`-th, from `rank`."""

    rank: int
    world: int

    @classmethod
    def of_process(cls) -> "Share":
        """By the environment of torchrun and accelerate launch."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def device(self, device: str) -> str:
        """The accelerator of this process among several, where `device` is "auto"."""
        if device != "auto" or self.world == 1 or not torch.accelerator.is_available():
            return device
        return f"{torch.accelerator.current_accelerator().type}:{os.environ.get('LOCAL_RANK', 0)}"


def open_tasks(
    root: Path, tasks: Sequence[str], places: Mapping[str, str], split: str | None, limit: int | None, scale: float
) -> dict[str, TaskRows]:
    """The rows of every task, checked against the rows of the answers in `root`; other arguments: `TaskRows`."""
    opened = {task: TaskRows(task, places.get(task), split, limit, scale) for task in dict.fromkeys(tasks)}
    for task, rows in opened.items():
        folder = root / "answers" / task
        check_settings(folder / ROWS_FILE, {"data": places.get(task), "rows": len(rows)}, folder)
    return opened


def generation_of(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`: the task's length and one step per token, unless `given` says otherwise."""
    generation = {"max_new_tokens": TASKS[task].length} | {k: v for k, v in given.items() if v is not None}
    if "step_ratio" not in generation:
        generation.setdefault("steps", generation["max_new_tokens"])
    return generation


def ask_rows(
    root: Path, place: Place, loaded: Loaded, generation: dict[str, Any], batch_size: int, rows: TaskRows, share: Share
) -> None:
    """Answer those of this process's rows that have no answer yet, `batch_size` at a time.

    Batches consist of the same rows however often the run is continued. An unreadable row is logged with the reason
    under `bad`. The first process also measures the memory of one batch. Errors of the model get a note with the rows.
    """
    done = {record["row"] for record in read_answers(root, place)}
    mine = list(range(len(rows)))[share.rank :: share.world]
    name, memory = " ".join(part for part in place if part != "none"), place.folder(root) / MEMORY_FILE
    bar = tqdm(total=len(mine), initial=sum(row in done for row in mine), desc=name, disable=share.rank > 0)
    with AnswerLog(root, place, share.rank) as log, bar:
        for start in range(0, len(mine), batch_size):
            batch = [row for row in mine[start : start + batch_size] if row not in done]
            records, samples = [], []
            for row in batch:
                try:
                    samples.append(rows.sample(row, place.control))
                except BadRow as error:
                    records.append({"row": row, "bad": str(error)})
            answer = partial(ask, loaded, [sample.chat for sample in samples], **generation)
            try:
                records += _answered(place, answer, rows, samples) if samples else []
                if samples and share.rank == 0 and not memory.exists():
                    facts = {"memory_batch_size": len(samples), "memory_device": loaded.model.device.type}
                    write_json(memory, peak_memory(loaded.model, answer) | facts)
            except (RuntimeError, ValueError) as error:
                error.add_note(f"while {place.system} answered {place.task}, rows {batch}")
                raise
            log.append(records)
            bar.update(len(batch))


def _answered(place: Place, answer: Callable[[], Answers], rows: TaskRows, samples: list[Sample]) -> list[dict]:
    start, answers = time.perf_counter(), answer()
    seconds, held = time.perf_counter() - start, answers.outputs.prefix_bytes
    batch = {"size": len(samples), "seconds": seconds, "prefix_bytes": None if held is None else sum(held)}
    return [
        {
            **place._asdict(),
            "row": sample.row,
            "question_id": sample.question_id,
            "question": sample.question,
            "answers": sample.golds,
            "prediction": text,
            "scores": {name: score(text, sample.golds) for name, score in rows.task.scores.items()},
            **sample.facts,
            "image_tokens": tokens,
            "forwards": answers.outputs.forwards,
            "batch": batch,
        }
        for sample, text, tokens in zip(samples, answers.texts, answers.num_image_tokens, strict=True)
    ]
