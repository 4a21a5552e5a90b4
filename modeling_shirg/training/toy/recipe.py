"""Train the base of the checkpoint that this package ships, on images that it renders.

    python -m modeling_shirg.training.toy.recipe --output_dir runs/tiny    # hours on 2 CPU cores; resumes
    python -m modeling_shirg.training.toy.recipe --output_dir runs/tiny --export hub_card/shirg-lavida-tiny-base

Four stages, each with a folder of its own under `output_dir`. A finished stage is skipped, an unfinished one resumes
from its last checkpoint, and one that was made with other settings is an error.

  see       vision tower, pooling head and projector, dense targets on rendered scenes (dense.py)
  sharpen   the same with a warm restart and a smaller batch, on the scenes that follow; small glyphs come late
  read      projector and language model behind a frozen tower, LaViDa's five views, several questions packed behind
            one image (packed.py, guides.py); logs the exact match of each batch before it learns from it
  practise  the same on the images that follow, more grids to count in, a warm restart at half the learning rate

`shirg study` adapts this base to every system, bundle.py puts what it made for `shirg` into the package.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from transformers import HfArgumentParser, PreTrainedTokenizerBase, Trainer, TrainingArguments

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from configuration_shirg.processing_shirg_lavida import CHAT_TEMPLATE
from modeling_shirg import ShirgGenerationConfig, ShirgLavidaForConditionalGeneration
from modeling_shirg.running.files import write_json
from modeling_shirg.scenes import FAMILIES, scene
from modeling_shirg.scenes.drawing import CHARACTERS, COLORS, SHAPES
from modeling_shirg.training.run_folder import last_complete_checkpoint
from modeling_shirg.training.toy.dense import DensePretrainingModel, ViewDataset
from modeling_shirg.training.toy.packed import PackedAnswerModel
from modeling_shirg.training.toy.questions import ANSWER_LENGTH, QuestionDataset
from modeling_shirg.training.toy.tokenizer import load_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

READ_PRESET, EXPORT_PRESET = "lavida-980", "shirg"
STAGE_FILE, WEIGHTS_FILE, TRAINING_FILE = "stage.json", "model.safetensors", "training.json"
_FOVEA = "foveal_position_embedding.weight"


class Stage(NamedTuple):
    """One pass over images that no stage before has seen.

    Args:
        previous: the stage whose weights it starts from; `None` is random weights.
        batch_size: views of `see` and `sharpen`, images of the others.
        learning_rate: the largest, of a cosine schedule.
        draws: what `QuestionDataset` takes; empty for the stages of the vision tower.
    """

    previous: str | None
    batch_size: int
    learning_rate: float
    draws: dict[str, Any] = {}


STAGES = {
    "see": Stage(None, 64, 1e-3),
    "sharpen": Stage("see", 32, 7e-4),
    "read": Stage("sharpen", 24, 1e-3, {"num_questions": 4}),
    "practise": Stage("read", 24, 5e-4, {"num_questions": 4, "counting_share": 0.6}),
}


@dataclass
class ScriptArguments:
    """What to train and where."""

    output_dir: str = field(metadata={"help": "Folder of the stages' checkpoints."})
    export: str | None = field(default=None, metadata={"help": "Write the finished Hub folder here."})
    see_images: int = field(default=120_000, metadata={"help": "Rendered scenes of stage `see`."})
    sharpen_images: int = field(default=60_000, metadata={"help": "Rendered scenes of stage `sharpen`."})
    read_images: int = field(default=60_000, metadata={"help": "Images (4 questions each) of stage `read`."})
    practise_images: int = field(default=24_000, metadata={"help": "Images of stage `practise`."})
    num_workers: int = field(default=1, metadata={"help": "Processes that render images."})
    save_steps: int = field(default=200, metadata={"help": "Steps between two checkpoints of a stage."})
    seed: int = field(default=0, metadata={"help": "Seed of the initial weights, and of what is masked."})


# Words that questions about charts, forms and photographs use; they only shape the tokenizer.
QUESTION_WORDS = (
    "What is the value of the largest bar? How many objects are there? Which row has the highest total? "
    "What is the name on this form? What is the date of the invoice? Where is the red circle? Is there a square? "
    "Describe the image in detail. Answer the question using a single word or phrase. Answer the question with a "
    "single word. What does the line show in the chart? What color is the shape on the left? Which character is in "
    "the top right corner? What number is written next to the label? Read the code in the middle of the map. "
    "Who, when, why, yes, no, none, one, two, three, between, difference, maximum, minimum, average, percent, "
    "above, below, left, right, top, bottom, center, small, large, first, second, third, last, between, key, title."
)
_SYSTEM_PROMPT = CHAT_TEMPLATE.partition("system<|end_header_id|>\\n\\n")[2].partition("<|eot_id|>")[0]


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the bundled checkpoint; the same ids every time."""
    scenes = [scene(family, "train", index) for family in FAMILIES for index in range(20)]
    questions = [question.text for drawn in scenes for question in drawn.questions]
    words = [*COLORS, *SHAPES, *CHARACTERS, "system", "user", "assistant", "\n\n"]
    return train_tokenizer([_SYSTEM_PROMPT, QUESTION_WORDS, *questions, *words], vocab_size=768)


def tiny_config(tokenizer: PreTrainedTokenizerBase) -> ShirgLavidaConfig:
    """Toy geometry, a few million parameters."""
    ids = tokenizer.get_vocab()
    return ShirgLavidaConfig.from_preset(
        "shirg",
        geometry="toy",
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
        },
        text_config={
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 2048,
        },
        image_token_id=ids["<image>"],
        mask_token_id=ids["<|mdm_mask|>"],
        infill_token_id=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class StageTrainer(Trainer):
    """Trainer that logs the mean of every scalar that a stage's model returns; NaN means nothing to measure."""

    def __init__(self, *args, **kwargs):
        self.stage_values: dict[str, list[torch.Tensor]] = {}
        super().__init__(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **kwargs):
        """The model's own loss."""
        outputs = model(**inputs)
        for name, value in outputs.items():
            self.stage_values.setdefault(name, []).append(value.detach())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Add the means since the last log."""
        means = {name: round(torch.stack(values).nanmean().item(), 4) for name, values in self.stage_values.items()}
        self.stage_values = {}
        super().log({**logs, **means}, *args, **kwargs)


def train_stage(root: Path, name: str, args: ScriptArguments) -> None:
    """Train stage `name` in its folder under `root`, unless it is finished.

    Settings are what decides the weights, those of the stages before included; workers and checkpoints may change.

    Raises:
        ValueError: the stage before is not finished, or this one was begun with other settings.
    """
    folder, stage, number = root / name, STAGES[name], list(STAGES).index(name)
    counts = [getattr(args, f"{each}_images") for each in STAGES]
    images = range(sum(counts[:number]), sum(counts[: number + 1]))
    own = {"images": len(images), "batch_size": stage.batch_size, "learning_rate": stage.learning_rate, **stage.draws}
    inherited = {} if stage.previous is None else finished_settings(root / stage.previous)
    settings = inherited | {"seed": args.seed} | {f"{name}_{key}": value for key, value in own.items()}
    if not _begin(folder, settings):
        logger.info("Stage %s: finished before, skipped", name)
        return
    if stage.previous is None:
        tokenizer = tiny_tokenizer()
        config, weights = tiny_config(tokenizer), None
    else:
        config, tokenizer, weights = read_stage(root / stage.previous)
    config = config.with_preset(READ_PRESET) if stage.draws else config
    # Before training: calls with padding leave their mark on what a tokenizer saves.
    config.to_json_file(folder / "config.json")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(args.seed)
    model, dataset = (_answers if stage.draws else _views)(config, tokenizer, weights, images, stage)
    _run(folder, model, dataset, args, stage)
    write_json(folder / STAGE_FILE, {"finished": True, "settings": settings})


def _begin(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the stage has to be trained."""
    file = folder / STAGE_FILE
    if not file.exists():
        write_json(file, {"finished": False, "settings": settings})
        return True
    record = json.loads(file.read_text())
    for name in record["settings"] | settings:
        old, new = record["settings"].get(name), settings.get(name)
        if old != new:
            raise ValueError(
                f"{folder} was made with {name}={old!r}, this run asks for {name}={new!r}. Choose another output_dir, "
                f"or go back to {name}={old!r}."
            )
    return not record["finished"]


def finished_settings(folder: Path) -> dict[str, Any]:
    """What decided the weights of the finished stage `folder`; a `ValueError` if it is not finished."""
    file = folder / STAGE_FILE
    record = json.loads(file.read_text()) if file.exists() else {"finished": False}
    if not record["finished"]:
        raise ValueError(f"{folder} is not a finished stage: train it first, with the same output_dir.")
    return record["settings"]


def read_stage(folder: Path) -> tuple[ShirgLavidaConfig, PreTrainedTokenizerBase, dict[str, torch.Tensor]]:
    """Config, tokenizer and weights of a finished stage."""
    config = ShirgLavidaConfig.from_json_file(folder / "config.json")
    return config, load_tokenizer(folder / "tokenizer.json"), load_file(folder / WEIGHTS_FILE)


def _views(config, tokenizer, weights, images: range, stage: Stage) -> tuple[nn.Module, Dataset]:
    model = DensePretrainingModel(config, tokenizer)
    # On a CPU the backward of scaled_dot_product_attention takes half of a step; plain products do not.
    model.vision_tower.vision_model.set_attn_implementation("eager")
    if weights is not None:
        model.load_state_dict(weights)
    return model, ViewDataset(config, tokenizer, "train", images, stage.batch_size)


def _answers(config, tokenizer, weights, images: range, stage: Stage) -> tuple[nn.Module, Dataset]:
    model = ShirgLavidaForConditionalGeneration(config)
    packed = PackedAnswerModel(model, tokenizer, stage.draws["num_questions"])
    tower = _named_below(weights, "vision_tower.")
    if tower:  # of a stage of the vision tower
        tower.pop(_FOVEA)  # these views have no fovea
        model.model.vision_tower.load_state_dict(tower)
        model.model.multi_modal_projector.load_state_dict(_named_below(weights, "projector."))
        packed.start_reading(weights["read_head.weight"] * weights["read_norm.weight"])
    else:
        packed.load_state_dict(weights)
    processor = ShirgLavidaProcessor.from_config(config, tokenizer)
    return packed, QuestionDataset(processor, config.view_grid, "train", images, **stage.draws)


def _named_below(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The weights whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def export(folder: Path, tower_folder: Path, out: Path) -> None:
    """Write the finished stage `folder` as a Hub repository, and in training.json the settings of all stages.

    The foveal positions, which LaViDa's views have no use for, are those of the tower's last stage. Weights are stored
    in bfloat16, to be small, and load in float32, as the config says.
    """
    config, tokenizer, weights = read_stage(folder)
    config = config.with_preset(EXPORT_PRESET)
    model = ShirgLavidaForConditionalGeneration(config)
    fovea = _named_below(read_stage(tower_folder)[2], "vision_tower.")[_FOVEA]
    model.load_state_dict({**_named_below(weights, "model."), f"model.vision_tower.{_FOVEA}": fovea})
    ids = {name: getattr(config, name) for name in ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")}
    never = [config.mask_token_id, config.image_token_id]
    model.generation_config = ShirgGenerationConfig(max_new_tokens=ANSWER_LENGTH, suppress_tokens=never, **ids)
    model.save_pretrained(out, state_dict={name: value.bfloat16() for name, value in model.state_dict().items()})
    ShirgLavidaProcessor.from_config(config, tokenizer).save_pretrained(out)
    write_json(out / TRAINING_FILE, finished_settings(folder))


def _run(folder: Path, model: nn.Module, dataset: Dataset, args: ScriptArguments, stage: Stage) -> None:
    """One pass over `dataset` with the Trainer, resumed if a checkpoint is there."""
    training_args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=stage.batch_size,
        num_train_epochs=1,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.01,
        max_grad_norm=1.0,
        adam_beta2=0.98,
        logging_steps=25,
        save_steps=args.save_steps,
        save_total_limit=1,
        train_sampling_strategy="sequential",
        dataloader_num_workers=args.num_workers,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        seed=args.seed,
        disable_tqdm=True,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        optim="adamw_torch_fused",
    )
    trainer = StageTrainer(model=model, args=training_args, train_dataset=dataset, data_collator=dataset.collate)
    checkpoint = last_complete_checkpoint(folder)
    logger.info("Stage %s: %d images, %s", folder.name, len(dataset), checkpoint or "from the start")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder))


def main(argv: list[str] | None = None) -> None:
    """Train the stages that are not finished, then export if asked to."""
    args = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(args=argv)[0]
    torch.set_flush_denormal(True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in STAGES:
        train_stage(Path(args.output_dir), name, args)
    if args.export:
        export(Path(args.output_dir, "practise"), Path(args.output_dir, "sharpen"), Path(args.export))


if __name__ == "__main__":
    main()
