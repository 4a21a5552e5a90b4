"""log.jsonl: every log entry of a run as one line, the same whether the run was stopped or not, and its curves."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import is_matplotlib_available

from modeling_shirg.running.files import write_lines

LOG_FILE = "log.jsonl"
CURVE_FILE = "loss.png"


class RunLog(TrainerCallback):
    """Appends to log.jsonl what the Trainer logs, with `step` and the `seconds` that training has taken so far.

    On a restart, lines of steps after the checkpoint are taken off: those steps come again.
    """

    def __init__(self, folder: Path):
        self.file = folder / LOG_FILE
        self.started = time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        kept = [entry for entry in read_log(self.file) if entry["step"] <= state.global_step and state.global_step]
        self.started = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)
        write_lines(self.file, kept)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        entry = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 3), **logs}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_log(file: Path) -> list[dict[str, Any]]:
    """The entries of a log; a last line that was cut off by a crash is none."""
    entries = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def check_can_draw() -> None:
    """Raises a `ValueError` if there is nothing to draw curves with."""
    if not is_matplotlib_available():
        raise ValueError(
            "loss.png is drawn by matplotlib, which is missing: pip install 'shirg-lavida[eval]', or do without it by "
            "--loss_curve false."
        )


def draw_losses(folder: Path) -> Path:
    """Draw the losses in the folder's log over steps; returns the picture's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_log(folder / LOG_FILE)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="mean loss of an answer token", title=folder.resolve().name)
    for name, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(folder / CURVE_FILE, dpi=120)
    return folder / CURVE_FILE
