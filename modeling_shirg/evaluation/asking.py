"""Asks a system the rows of a task in batches, and logs every answer with its scores and its cost."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from modeling_shirg.evaluation.answer_log import MEMORY_FILE, AnswerLog, Place, read_answers
from modeling_shirg.evaluation.costs import peak_memory
from modeling_shirg.evaluation.tasks import TASKS, Sample, TaskRows
from modeling_shirg.running.ask import ask
from modeling_shirg.running.files import write_json
from modeling_shirg.running.load import Loaded
from modeling_shirg.training.data.bad_rows import BadRow


class Asked(NamedTuple):
    """A loaded system with its arguments of `generate` and the number of questions in a batch."""

    loaded: Loaded
    generation: dict[str, Any]
    batch: int


class Share(NamedTuple):
    """The rows of this process: every `world`-th, from `rank`."""

    rank: int = 0
    world: int = 1


def generation_of(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`: the task's length and one step per token, unless `given` says otherwise."""
    generation = {"max_new_tokens": TASKS[task].length} | {k: v for k, v in given.items() if v is not None}
    if "step_ratio" not in generation:
        generation.setdefault("steps", generation["max_new_tokens"])
    return generation


def ask_rows(root: Path, place: Place, asked: Asked, rows: TaskRows, share: Share) -> None:
    """Answer those of this process's rows that have no answer yet, `asked.batch` at a time.

    Batches consist of the same rows however often the run is continued. An unreadable row is logged with the reason
    under `bad`. The first process also measures the memory of one batch.

    Raises:
        RuntimeError, ValueError: from the model, with a note that names the rows.
    """
    done = {record["row"] for record in read_answers(root, place)}
    mine = list(range(len(rows)))[share.rank :: share.world]
    name = " ".join(part for part in place if part != "none")
    bar = tqdm(total=len(mine), initial=sum(row in done for row in mine), desc=name, disable=share.rank > 0)
    with AnswerLog(root, place, share.rank) as log, bar:
        for start in range(0, len(mine), asked.batch):
            batch = [row for row in mine[start : start + asked.batch] if row not in done]
            records, samples = [], []
            for row in batch:
                try:
                    samples.append(rows.sample(row, place.control))
                except BadRow as error:
                    records.append({"row": row, "bad": str(error)})
            if samples:
                records += _answered(place, asked, rows, samples)
                memory = place.folder(root) / MEMORY_FILE
                if share.rank == 0 and not memory.exists():
                    write_json(memory, _memory(asked, samples))
            log.append(records)
            bar.update(len(batch))


def _answered(place: Place, asked: Asked, rows: TaskRows, samples: list[Sample]) -> list[dict]:
    start = time.perf_counter()
    try:
        answers = ask(asked.loaded, [sample.chat() for sample in samples], **asked.generation)
    except (RuntimeError, ValueError) as error:
        error.add_note(f"while {place.system} answered {place.task}, rows {[sample.row for sample in samples]}")
        raise
    held = answers.outputs.prefix_bytes
    batch = {
        "size": len(samples),
        "seconds": time.perf_counter() - start,
        "prefix_bytes": None if held is None else sum(held),
    }
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


def _memory(asked: Asked, samples: list[Sample]) -> dict:
    model, chats = asked.loaded.model, [sample.chat() for sample in samples]
    measured = peak_memory(model, lambda: ask(asked.loaded, chats, **asked.generation))
    return {**measured, "memory_batch_size": len(samples), "memory_device": model.device.type}
