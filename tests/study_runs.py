"""Folders of evaluations and studies with answers that were made up, so that no model has to run."""

import json
from pathlib import Path

import numpy as np
import yaml

from modeling_shirg.evaluation.answer_log import ROWS_FILE, SETTINGS_FILE, AnswerLog, Place, write_json
from modeling_shirg.evaluation.results import RESULTS_FILE, Plan, tabulate, write_results
from modeling_shirg.evaluation.study.config import Entry, StudyConfig, config_of
from modeling_shirg.evaluation.study.cuts import cuts
from modeling_shirg.evaluation.study.gate import gate_verdict
from modeling_shirg.evaluation.study.tables import ENTRIES, ENTRY_FILE, STUDY_FILE, TIMING, chosen_point
from modeling_shirg.evaluation.tasks import TASKS
from modeling_shirg.evaluation.timing import STAGES

ROWS, SIZES = 80, (8.0, 11.0, 15.0, 21.0, 29.0)
MACHINE = {
    "cpu": "a processor",
    "cores": 2,
    "threads": 1,
    "gpu": None,
    "load_average": 0.5,
    "torch": "2",
    "transformers": "5",
    "date": "2026-01-01",
}
# Of each system its image tokens, and the sizes at which it reads half of the signs inside and outside the fovea.
SYSTEMS = {
    "lavida-980": (245, 15, 15),
    "lavida-full": (845, 9, 9),
    "shirg": (245, 9, 20),
    "shirg-salient": (245, 10, 12),
    "random": (245, 13, 20),
    "uniform": (245, 12, 20),
    "pool": (245, 14, 20),
}
STUDY = """
tasks: [chart, guard]
limit: 80
gate: {system: lavida-980, at_least: 0.5}
train: {data: ["synthetic:chart,rows=8"], max_steps: 2, effective_batch_size: 4}
groups:
  - name: systems
    baseline: lavida-980
    systems:
      - {system: lavida-980, adapt: [0, 1]}
      - {system: shirg, adapt: [0, 1]}
      - lavida-full
      - shirg-salient
      - uniform
  - name: ablations of shirg
    baseline: shirg
    systems: [shirg, "shirg:diversity_weight=0"]
grid: {system: shirg, tasks: [chart], limit: 20, values: {attention_weight: [0.0, 0.5]}}
"""


def _facts(task: str, row: int) -> dict:
    """Where the row's evidence is; of every cell of size and place equally many."""
    if task == "guard":
        return {"kind": "color", "cell_glyph_px": None, "in_fovea": True, "eccentricity": 0.1, "cell_place": ""}
    place = row // len(SIZES) % 4
    return {
        "kind": "read_value",
        "cell_glyph_px": SIZES[row % len(SIZES)],
        "cell_place": str(place),
        "in_fovea": place < 2,
        "eccentricity": (place + 0.5) / 4,
    }


def record(place: Place, row: int, number: int) -> dict:
    """A made-up answer of a system; `number` seeds the luck of this run."""
    tokens, inside, outside = SYSTEMS.get(place.system.partition(":")[0], SYSTEMS["shirg"])
    facts = _facts(place.task, row)
    size = facts["cell_glyph_px"]
    chance = 0.97 if size is None else 1 / (1 + np.exp(-(size - (inside if facts["in_fovea"] else outside)) / 2))
    if place.control == "blank":
        chance = 0.02
    luck = np.random.default_rng([row, number, *place.task.encode(), *place.system.encode()]).random()
    right, gold = float(luck < chance), f"{row % 7}"
    return {
        **place._asdict(),
        "row": row,
        "question_id": str(row),
        "question": "What is it | there?",
        "answers": [gold],
        "prediction": gold if right else "<b>none</b>",
        "scores": {name: right for name in TASKS[place.task].scores},
        **facts,
        "image_tokens": tokens,
        "forwards": 16,
        "batch": {"size": 4, "seconds": {stage: 1e-4 * tokens for stage in STAGES}, "prefix_bytes": 8000 * tokens},
    }


def write_evaluation(
    root: Path, systems: list[str], tasks: list[str], controls: tuple[str, ...] = (), number: int = 0, rows: int = ROWS
) -> Path:
    """What `shirg evaluate` would have left."""
    names = ["none", *controls]
    for task in tasks:
        write_json(root / "answers" / task / ROWS_FILE, {"data": None, "rows": rows})
        for system in systems:
            for control in names:
                place = Place(task, system, control)
                with AnswerLog(root, place, 0) as log:
                    log.append([record(place, row, number) for row in range(rows)])
            memory = {"weight_bytes": 13_000_000, "activation_bytes": 200_000 * SYSTEMS["shirg"][0]}
            memory |= {"peak_memory_bytes": sum(memory.values()), "memory_batch_size": 4, "memory_device": "cpu"}
            write_json(Place(task, system, "none").folder(root) / "memory.json", memory)
    settings = {"model": "/nowhere/checkpoint", "revision": None, "dtype": "auto", "split": None, "limit": rows}
    settings |= {"batch_size": 4, "max_new_tokens": None, "steps": None, "prefix_kv": None, "prefix_dtype": None}
    write_json(root / SETTINGS_FILE, settings)
    plan = Plan(dict.fromkeys(tasks, rows), systems, names, systems[0], 0, 0.0)
    head = {"settings": settings, "machine": MACHINE, "baseline": systems[0], "systems": systems}
    write_results(root, {**head, **tabulate(root, plan)})
    return root


def write_entry(run: Path, config: StudyConfig, entry: Entry) -> None:
    """A finished entry."""
    tasks = list(config.tasks if entry.split == "test" else config.grid.tasks)
    controls = ("blank",) if entry.name == config.zero_shot()[0].name else ()
    root = run / ENTRIES / entry.name
    write_evaluation(root, [entry.variant.system], tasks, controls, number=entry.seed or 0)
    training = {} if entry.seed is None else {"training": {"samples": config.samples}}
    facts = {"system": entry.variant.system, "arm": entry.arm, "status": "finished", "seconds": 1.5, **training}
    write_json(root / ENTRY_FILE, facts)


def write_study(run: Path, left_out: tuple[str, ...] = (), text: str = STUDY) -> StudyConfig:
    """A study whose entries are finished, but those of these titles."""
    content = yaml.safe_load(text)
    config = config_of(content)
    for entry in (*config.zero_shot(), *config.grid_points(), *config.adapted()):
        if entry.title not in left_out:
            write_entry(run, config, entry)
    timed = [entry.variant.system for entry in config.zero_shot()]
    if chosen := chosen_point(run, config):
        write_entry(run, config, chosen)
        timed.append(chosen.variant.system)
    write_evaluation(run / TIMING, list(dict.fromkeys(timed)), list(config.tasks), rows=12)
    gate = gate_verdict(config.gate, _results(run, config.zero_shot()[0]))
    wider = config_of({**content, "limit": None, "tasks": [*content["tasks"], "entity_grid"]})
    facts = {"status": "finished", "base": {"name": "/nowhere/checkpoint", "fingerprint": "f"}, "config": content}
    write_json(run / STUDY_FILE, {**facts, "cuts": cuts(wider, config), "gate": gate, "machine": MACHINE})
    return config


def _results(run: Path, entry: Entry) -> dict:
    return json.loads((run / ENTRIES / entry.name / RESULTS_FILE).read_text())
