"""Asks a system the rows of a task in batches, and logs every answer with its scores and its cost."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from modeling_shirg.evaluation.answer_log import MEMORY_FILE, AnswerLog, Place, read_answers, write_json
from modeling_shirg.evaluation.side_by_side import System, answer, peak_memory
from modeling_shirg.evaluation.tasks import Sample, TaskRows
from modeling_shirg.running.timing import STAGES, StageClock
from modeling_shirg.training.data.bad_rows import BadRow


class Share(NamedTuple):
    """Which rows are this process's: every `world`-th, from `rank`."""

    rank: int
    world: int


def ask_rows(root: Path, place: Place, system: System, rows: TaskRows, share: Share) -> None:
    """Answer what of this process's rows is not answered yet, `system.batch` at a time.

    Batches consist of the same rows however often the run is continued. A row that cannot be read is logged with the
    reason under `bad`. The first process also measures the memory of one batch, where nobody has.

    Raises:
        RuntimeError, ValueError: what answering raised, with a note of which rows were asked.
    """
    done = {record["row"] for record in read_answers(root, place)}
    mine = list(range(len(rows)))[share.rank :: share.world]
    name = " ".join(part for part in place if part != "none")
    bar = tqdm(total=len(mine), initial=sum(row in done for row in mine), desc=name, disable=share.rank > 0)
    with AnswerLog(root, place, share.rank) as log, bar:
        for start in range(0, len(mine), system.batch):
            batch = [row for row in mine[start : start + system.batch] if row not in done]
            samples, bad = _read(rows, batch, place.control)
            answers = [*bad, *_answered(place, system, rows, samples)]
            memory = place.folder(root) / MEMORY_FILE
            if samples and share.rank == 0 and not memory.exists():
                write_json(memory, _memory(system, samples))
            log.append(answers)
            bar.update(len(batch))


def _read(rows: TaskRows, batch: list[int], control: str) -> tuple[list[Sample], list[dict]]:
    samples, bad = [], []
    for row in batch:
        try:
            samples.append(rows.sample(row, control))
        except BadRow as error:
            bad.append({"row": row, "bad": str(error)})
    return samples, bad


def _answered(place: Place, system: System, rows: TaskRows, samples: list[Sample]) -> Iterator[dict]:
    """The records of one batch."""
    if not samples:
        return
    try:
        given = answer(system, [sample.chat() for sample in samples], StageClock())
    except (RuntimeError, ValueError) as error:
        error.add_note(f"while {place.system} answered {place.task}, rows {[sample.row for sample in samples]}")
        raise
    seconds = {stage: given.clock.seconds[stage] for stage in STAGES}
    batch = {"size": len(samples), "seconds": seconds, "prefix_bytes": given.facts.get("prefix_bytes")}
    for sample, text, tokens in zip(samples, given.texts, given.image_tokens, strict=True):
        yield {
            **place._asdict(),
            "row": sample.row,
            "question_id": sample.question_id,
            "question": sample.question,
            "answers": sample.golds,
            "prediction": text,
            "scores": {name: score(text, sample.golds) for name, score in rows.task.scores.items()},
            **sample.facts,
            "image_tokens": tokens,
            "forwards": given.facts["forwards"],
            "batch": batch,
        }


def _memory(system: System, samples: list[Sample]) -> dict:
    chats = [sample.chat() for sample in samples]
    measured = peak_memory(system.model, lambda: answer(system, chats, StageClock()))
    return {**measured, "memory_batch_size": len(samples), "memory_device": system.model.device.type}
