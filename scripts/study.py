"""Compare systems on one base: zero-shot, and adapted with as many samples each; the same command goes on.

    shirg study --base runs/tiny --out runs/study                  # plan.yaml with an accelerator, or the CPU's
    shirg study --base runs/tiny --out runs/study --config my-study.yaml
    shirg study --base runs/tiny --out runs/study --ignore_gate    # adapt although the base reads too little
    shirg report runs/study                                        # pages and slides, also while it runs

The config lists groups of systems, the recipe of the adaptations, and a grid over the score weights, which is searched
on validation rows (modeling_shirg/evaluation/study/config.py). Every entry is a folder that `shirg evaluate` filled,
on the base's weights or on those of an adapter by `shirg train`. Finished entries are skipped, even without their
adapter; a killed one continues.

When all are finished, all systems are asked some rows once more in one run, for seconds that can be compared.

The base must read the largest signs of every family: where it does not, nothing is adapted, and the report begins with
that. What the config leaves out of plan.yaml is written into study.json.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_PLAN, _CPU_PLAN = "plan.yaml", "cpu.yaml"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="shirg study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, help="folder or Hub id of the checkpoint that all start from")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the study")
    parser.add_argument("--config", type=Path, metavar="FILE", help="what is run; by default as the machine allows")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--ignore_gate", action="store_true", help="adapt whatever the base reads")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Run what is not finished: the gate's system, the other systems, the grid, the adaptations; then the tables."""
    from modeling_shirg.evaluation.answer_log import write_json
    from modeling_shirg.evaluation.study.config import config_of, read_content
    from modeling_shirg.evaluation.study.cuts import cuts
    from modeling_shirg.evaluation.study.tables import BASE_FILE, STUDY_FILE

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("shirg study runs in one process: start it without torchrun or accelerate launch.")
    name = args.config or _default_config()
    with _packaged(name) as file, _packaged(Path(_PLAN)) as plan_file:
        content, plan = read_content(file), config_of(read_content(plan_file))
    config = config_of(content)
    with _alone(args.out):
        study = _Study(args, config)
        facts = study.facts() | {"config_file": str(name), "config": content, "cuts": cuts(plan, config)}
        study.check_systems()
        study.check_unchanged()
        write_json(args.out / BASE_FILE, {"fingerprint": facts["base"]["fingerprint"]})
        write_json(args.out / STUDY_FILE, facts)
        _run(study, facts, args.ignore_gate)


def _run(study: "_Study", facts: dict[str, Any], ignore_gate: bool) -> None:
    from modeling_shirg.evaluation.answer_log import write_json
    from modeling_shirg.evaluation.study.tables import STUDY_FILE, chosen_point, write_study_results

    config, file = study.config, study.run / STUDY_FILE
    first, *others = config.zero_shot()
    study.evaluate(first, controls=("blank",))
    facts["gate"] = study.gate()
    write_json(file, facts)
    print("\n".join(_gate_lines(facts["gate"])))
    for entry in (*others, *config.grid_points()):
        study.evaluate(entry)
    chosen = chosen_point(study.run, config)
    if chosen is not None:
        study.evaluate(chosen)
    stopped = not facts["gate"]["passes"] and not ignore_gate
    for entry in () if stopped else config.adapted():
        study.evaluate(entry)
    study.time([*config.zero_shot(), *([] if chosen is None else [chosen])])
    facts["status"] = "stopped at the gate" if stopped and config.adapted() else "finished"
    write_json(file, facts)
    write_study_results(study.run, facts, config)
    print(f"{study.run}: {facts['status']}. Pages and slides: shirg report {study.run}")


class _Study:
    """A study that is run: its folder, its base, what it asks, and the rows, which are drawn once."""

    def __init__(self, args: argparse.Namespace, config: Any):
        self.run, self.config, self.device = args.out, config, args.device
        self.given = args.base
        self.base = str(Path(args.base).resolve()) if Path(args.base).exists() else args.base
        self._opened: dict[str, dict[str, Any]] = {"test": {}, "validation": {}}

    def check_systems(self) -> None:
        """Raises a `ValueError` if a system or a recipe is none, before hours are spent on the others."""
        from modeling_shirg.training.footprints import named_footprint

        from .bench_rows import parse_row
        from .loading import load

        config = load(self.base, device="cpu").model.config
        for entry in (*self.config.zero_shot(), *self.config.grid_points()):
            row = parse_row(entry.variant.system)
            config.with_preset(row.preset, **row.options)
        for entry in self.config.adapted():
            recipe = self._recipe(entry)
            named_footprint(recipe.get("footprint", "shirg-extra"), recipe.get("rank"), recipe.get("alpha"))
            self._train_arguments(entry)

    def check_unchanged(self) -> None:
        """Raises a `ValueError` if other questions were asked or adapters trained, before anything is written."""
        from modeling_shirg.evaluation.study.tables import ENTRIES
        from modeling_shirg.training.run_folder import is_finished, run_settings

        for entry in (*self.config.zero_shot(), *self.config.grid_points()):
            self._written(entry)
        for entry in self.config.adapted():
            before, now = self._written(entry), self._training_settings(entry)
            _check_same(self.run / ENTRIES / entry.name, before.get("training_settings", now), now)
            if before.get("status") != "finished":
                is_finished(self._adapter(entry), run_settings(*self._train_arguments(entry)))  # or begun with others

    def _written(self, entry: Any) -> dict[str, Any]:
        """What was written of an entry, nothing if it is new; raises a `ValueError` if it asked something else."""
        from modeling_shirg.evaluation.study.tables import ENTRIES, entry_facts

        before, facts = entry_facts(self.run, entry), self._asked(entry)
        if before:
            _check_same(self.run / ENTRIES / entry.name, {name: before.get(name) for name in facts}, facts)
        return before

    def facts(self) -> dict[str, Any]:
        """Facts of the study; of one that goes on, with the gate that it had.

        Raises:
            ValueError: the folder holds a study of another base.
        """
        import torch

        from modeling_shirg.evaluation.answer_log import check_settings, read_json
        from modeling_shirg.evaluation.side_by_side import machine
        from modeling_shirg.evaluation.study.tables import BASE_FILE, STUDY_FILE
        from modeling_shirg.fingerprint_shirg import fingerprint

        from .loading import load, resolve_device

        digest = fingerprint(load(self.base, device="cpu").model)
        if (self.run / BASE_FILE).exists():
            check_settings(self.run / BASE_FILE, {"fingerprint": digest})
        file = self.run / STUDY_FILE
        before = read_json(file) if file.exists() else {}
        return {
            "status": "running",
            "base": {"name": self.given, "fingerprint": digest},
            "gate": before.get("gate"),
            "machine": machine(resolve_device(self.device), torch.float32),
        }

    def evaluate(self, entry: Any, controls: tuple[str, ...] = ()) -> None:
        """Ask one entry's questions, of the base or of the entry's adapter, unless it is finished."""
        from modeling_shirg.evaluation.answer_log import write_json
        from modeling_shirg.evaluation.study.tables import ENTRIES, ENTRY_FILE

        from . import evaluate

        folder, before = self.run / ENTRIES / entry.name, self._written(entry)
        if before.get("status") == "finished":
            print(f"{entry.name}: finished before, skipped")
            return
        model, facts = self.base, self._asked(entry)
        if entry.seed is not None:
            model = str(self._adapt(entry))
            facts |= {"training_settings": self._training_settings(entry), "training": self._training(entry)}
        print(f"{entry.name}: asking", flush=True)
        write_json(folder / ENTRY_FILE, {**facts, "status": "running", "seconds": before.get("seconds", 0.0)})
        start = time.monotonic()
        systems, tasks, limit = [entry.variant.system], facts["tasks"], facts["limit"]
        words = self._evaluate_words(model, systems, tasks, limit, entry.split, folder)
        words += ["--control", *controls] if controls else []
        evaluate.main(evaluate.parse_args(words), self._opened[entry.split])
        seconds = before.get("seconds", 0.0) + time.monotonic() - start
        write_json(folder / ENTRY_FILE, {**facts, "status": "finished", "seconds": round(seconds, 1)})

    def time(self, entries: list[Any]) -> None:
        """Ask the systems of the entries once more, in one run on the base's weights, so that seconds can be compared.

        A run that was killed, that lacks a system, or that asked otherwise is begun anew.
        """
        from modeling_shirg.evaluation.study.tables import TIMING, timing

        from . import evaluate

        config, done = self.config, timing(self.run)
        systems = list(dict.fromkeys(entry.variant.system for entry in entries))
        asked = {"limit": min(config.timed_rows, config.limit or config.timed_rows), "batch_size": config.batch_size}
        if set(systems) <= set(done.get("systems", [])) and asked.items() <= done["settings"].items():
            print("timing: finished before, skipped")
            return
        print("timing: asking", flush=True)
        folder, new = self.run / TIMING, self.run / f"{TIMING}.unfinished"
        shutil.rmtree(new, ignore_errors=True)
        words = self._evaluate_words(self.base, systems, config.tasks, asked["limit"], "test", new)
        evaluate.main(evaluate.parse_args([*words, "--max_bad_share", "0.99"]))
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)

    def gate(self) -> dict[str, Any]:
        """Whether the base reads what it must."""
        from modeling_shirg.evaluation.answer_log import read_json
        from modeling_shirg.evaluation.results import RESULTS_FILE
        from modeling_shirg.evaluation.study.gate import gate_verdict
        from modeling_shirg.evaluation.study.tables import ENTRIES

        file = self.run / ENTRIES / self.config.zero_shot()[0].name / RESULTS_FILE
        return gate_verdict(self.config.gate, read_json(file))

    def _adapt(self, entry: Any) -> Path:
        """The adapter of an entry, trained now unless it was; entries that answer differently share it."""
        from . import train

        folder = self._adapter(entry)
        print(f"{folder.name}: training", flush=True)
        train.main(self._train_arguments(entry))
        return folder

    def _training_settings(self, entry: Any) -> dict[str, Any]:
        """What decides the weights of an entry's adapter, but for the base, which is the same for all."""
        from modeling_shirg.training.run_folder import run_settings

        settings = run_settings(*self._train_arguments(entry))
        return {name: value for name, value in settings.items() if name != "model"}

    def _training(self, entry: Any) -> dict[str, Any]:
        """What the training of an entry's adapter was; raises a `ValueError` if an entry was asked of another one."""
        from modeling_shirg.evaluation.study.tables import ENTRIES, entry_facts
        from modeling_shirg.training.run_folder import read_facts

        folder = self._adapter(entry)
        run = read_facts(folder)
        told = {"steps": run["steps"], "samples": run["steps"] * run["effective_batch"]}
        told |= {name: run[name] for name in ("metrics", "footprint", "trainable")}
        same = [other for other in self.config.adapted() if self._adapter(other) == folder]
        others = [other for other in same if entry_facts(self.run, other).get("training", told) != told]
        if others:
            folders = " and ".join(str(self.run / ENTRIES / other.name) for other in others)
            raise ValueError(
                f"{folder} was trained again and did not end as before: {folders} had another one. Remove them, so "
                "that they are asked again."
            )
        return told

    def _recipe(self, entry: Any) -> dict[str, Any]:
        """Arguments of `shirg train` for the adapter of an entry."""
        return {**self.config.train, **entry.variant.train}

    def _adapter(self, entry: Any) -> Path:
        """The folder of an entry's adapter; how `generate` is called does not change what is trained."""
        from modeling_shirg.evaluation.study.tables import ADAPTERS

        from .bench_rows import parse_row

        row = parse_row(entry.variant.system)
        options = ",".join(_option_words(row.options))
        system = f"{row.preset}:{options}" if options else row.preset
        return self.run / ADAPTERS / replace(entry, variant=replace(entry.variant, system=system)).name

    def _train_arguments(self, entry: Any) -> tuple:
        """Arguments of `shirg train`; what its parser refuses is a `ValueError` here."""
        import yaml

        from . import train

        with TemporaryDirectory() as folder:
            file = Path(folder, "recipe.yaml")
            file.write_text(yaml.safe_dump(self._recipe(entry)))
            try:
                return train.parse_args([str(file), *self._train_words(entry)])
            except SystemExit:
                raise ValueError(f"The recipe of {entry.title} is refused by shirg train; see above.") from None

    def _train_words(self, entry: Any) -> list[str]:
        from .bench_rows import parse_row

        row = parse_row(entry.variant.system)
        options = ["--option", *_option_words(row.options)] if row.options else []
        words = ["--model", self.base, "--prune_method", row.preset, *options]
        on_cpu = ["--use_cpu", "true"] if self.device == "cpu" else []
        seed, folder = str(entry.seed), str(self._adapter(entry))
        return [*words, "--seed", seed, "--output_dir", folder, "--early_stopping_patience", "0", *on_cpu]

    def _evaluate_words(
        self, model: str, systems: Sequence[str], tasks: Sequence[str], limit: int | None, split: str, folder: Path
    ) -> list[str]:
        words = ["--model", model, "--systems", *systems, "--tasks", *tasks, "--split", split, "--no_curves"]
        words += ["--batch_size", str(self.config.batch_size), "--device", self.device, "--out", str(folder)]
        return words if limit is None else [*words, "--limit", str(limit)]

    def _asked(self, entry: Any) -> dict[str, Any]:
        """What an entry asks, and of which adapter."""
        questions = self.config if entry.split == "test" else self.config.grid
        facts = {"system": entry.variant.system, "label": entry.variant.label, "arm": entry.arm, "split": entry.split}
        facts |= {"tasks": list(questions.tasks), "limit": questions.limit}
        if entry.seed is None:
            return facts
        return facts | {"seed": entry.seed, "adapter": os.path.relpath(self._adapter(entry), self.run)}


def _default_config() -> Path:
    import torch

    return Path(_PLAN if torch.accelerator.is_available() else _CPU_PLAN)


@contextlib.contextmanager
def _packaged(name: Path) -> Iterator[Path]:
    """A config file: one of the package's by its name alone, or any other."""
    if name.exists() or len(name.parts) > 1:
        if not name.is_file():
            raise ValueError(f"--config {name}: there is no such file.")
        yield name
        return
    with as_file(files("shirg_scripts") / "configs" / "study" / str(name)) as file:
        if not file.is_file():
            raise ValueError(f"--config {name}: there is no such file, here or among the package's configs.")
        yield file


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other studies out of the folder while this one runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another study is running in {folder}: wait for it, or take another --out.") from None
        yield


def _option_words(options: dict[str, Any]) -> list[str]:
    """Fields of a config as `--option` takes them."""
    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return [f"{name}={value}" for name, value in written.items()]


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises a `ValueError` if what was made with `before` would now be made with something else."""
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{folder} was made with {name}={before.get(name)!r}, the config asks for {now.get(name)!r}. "
                "Take another --out, or remove that folder."
            )


def _gate_lines(gate: dict[str, Any]) -> list[str]:
    lines = [f"The gate, {gate['system']} on the base: {'passes' if gate['passes'] else 'DOES NOT PASS'}"]
    for row in gate["families"]:
        size = f"{row['glyph_px']} px" if row["glyph_px"] else "all"
        lines.append(
            f"  {row['task']:<12} {size:<6} {row['value']:6.1%} ({row['low']:.1%} to {row['high']:.1%}), majority "
            f"{row['majority']:.1%}, no image {row['blank']:.1%}: {'passes' if row['passes'] else 'does not pass'}"
        )
    return lines


if __name__ == "__main__":
    main(parse_args())
