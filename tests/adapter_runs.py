"""Run folders as `shirg train` leaves them, made in a second: a tiny base, and adapters with random weights on it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.adapters_shirg import geometry_facts, system_overrides
from modeling_shirg.publishing.checkpoint import base_fingerprint
from tiny_model import QUESTIONS, chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

PROJECTOR = r"model\.multi_modal_projector\.linear_[12]"
WITH_ATTENTION = PROJECTOR + r"|model\.vision_tower\.vision_model\.encoder\.layers\.[01]\.self_attn\.[qk]_proj"
POSITIONS, COORDINATES = "foveal_position_embedding", "coordinate_embedding"


@dataclass(frozen=True)
class Run:
    """A run folder, and what its model answers as it was saved: prompt logits for `QUESTIONS[0]` on one image."""

    folder: Path
    logits: torch.Tensor

    @property
    def report(self) -> dict:
        """Its run.json."""
        return json.loads((self.folder / "run.json").read_text())


def save_base(folder: Path, seed: int = 0) -> Path:
    """A tiny model under preset `shirg` and its processor."""
    config = tiny_config()
    tiny_model(config, seed).save_pretrained(folder)
    tiny_processor(config).save_pretrained(folder)
    return folder


def save_run(
    folder: Path, base: Path, targets: str, saved: list[str] | None, name_or_path: str | None = None, **system
) -> Run:
    """A finished run on `base` under `system`, whose adapter has weights far from zero."""
    stored = tiny_config()
    model = ShirgLavidaForConditionalGeneration.from_pretrained(base, **system)
    torch.manual_seed(len(folder.name))
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=saved))
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(torch.randn_like(weight) * 0.3)
    adapted.eval().save_pretrained(folder)
    tiny_processor(model.config).save_pretrained(folder)
    report = {
        "status": "finished",
        "base_model": {
            "name_or_path": name_or_path or str(base.resolve()),
            "revision": None,
            "fingerprint": base_fingerprint(base),
        },
        "prune_method": model.config.prune_method,
        "config_overrides": system_overrides(model.config, stored),
        "config": geometry_facts(model.config),
        "footprint": {"name": folder.name, "rank": 4, "alpha": 8.0},
        "trainable": {
            "total": sum(weight.numel() for weight in trained.values()),
            "share": 0.0125,
            "modules": {"model.multi_modal_projector.linear_1": 1250, "model.multi_modal_projector.linear_2": 1251},
        },
        "data": [
            {
                "name": "rows:/data/ada/charts.jsonl",
                "source": "/data/ada/charts.jsonl",
                "weight": 0.75,
                "rows": 4321,
                "skipped": 17,
            },
        ],
        "metrics": {"best_step": 180, "eval_loss": 1.2345, "train_loss": 1.3456},
        "evaluation": [
            {"task": "charts", "metric": "exact_match", "value": 0.625, "n": 808, "low": 0.591, "high": 0.658},
            {
                **{"task": "ChartQA", "metric": "relaxed_accuracy", "value": 0.375, "n": 2500},
                **{"low": 0.356, "high": 0.394, "dataset_id": "lmms-lab/ChartQA"},
            },
        ],
        "steps": 240,
        "epochs": 1.5,
        "effective_batch": 16,
        "seconds": 93.5,
        "seed": 7,
        "versions": {"torch": "2.13.0"},
        "machine": {"device": "cpu", "processes": 2},
        "command": (
            f"/home/ada/.venv/bin/shirg train --model {base.resolve()} --hub_token hf_verysecret --token=hf_very "
            f"hf_verysecret --output_dir {folder.resolve()}"
        ),
    }
    (folder / "run.json").write_text(json.dumps(report))
    return Run(folder, prompt_logits(adapted))


def change_report(run: Run, into: Path, **fields) -> Path:
    """A copy of a run folder whose run.json says something else."""
    copied = copy_folder(run.folder, into)
    (copied / "run.json").write_text(json.dumps({**run.report, **fields}))
    return copied


def copy_folder(folder: Path, into: Path) -> Path:
    """A copy of a folder of files."""
    into.mkdir(parents=True)
    for path in folder.iterdir():
        (into / path.name).write_bytes(path.read_bytes())
    return into


@torch.no_grad()
def prompt_logits(model) -> torch.Tensor:
    """Logits of `QUESTIONS[0]` about one image, under the model's own system."""
    return model(**encode(tiny_processor(model.config), chat(QUESTIONS[0], noise_image(5)))).logits
