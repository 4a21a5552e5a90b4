"""Train the base of the checkpoint that this package ships, on images that it renders.

    python -m modeling_shirg.training.toy.recipe --output_dir runs/tiny    # hours on 2 CPU cores; resumes
    python -m modeling_shirg.training.toy.recipe --output_dir runs/tiny --export hub_card/shirg-lavida-tiny-base

Four stages, each with a folder of its own under `output_dir`. A finished stage is skipped, an unfinished one resumes
from its last checkpoint; `output_dir`/training.json keeps the settings, and other settings are an error.

  see       vision tower, pooling head and projector, dense targets on rendered scenes (dense.py)
  sharpen   the same with a warm restart and a smaller batch, on the scenes that follow; small glyphs come late
  read      projector and language model behind a frozen tower, LaViDa's five views, several questions packed behind
            one image (packed.py); logs the exact match of each batch before it learns from it
  practise  the same on the images that follow, more grids to count in, a warm restart at half the learning rate

`shirg study` adapts this base to every system, bundle.py puts what it made for `shirg` into the package.
"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import HfArgumentParser, PreTrainedTokenizerBase, Trainer, TrainingArguments

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from configuration_shirg.processing_shirg_lavida import CHAT_TEMPLATE
from modeling_shirg import ShirgGenerationConfig, ShirgLavidaForConditionalGeneration
from modeling_shirg.running.files import draft_of, write_json
from modeling_shirg.scenes import FAMILIES, scene
from modeling_shirg.scenes.drawing import CHARACTERS, COLORS, SHAPES
from modeling_shirg.training.run_folder import last_complete_checkpoint
from modeling_shirg.training.toy.dense import DensePretrainingModel, ViewBatches
from modeling_shirg.training.toy.packed import PackedAnswerModel
from modeling_shirg.training.toy.questions import ANSWER_LENGTH, QuestionBatches
from modeling_shirg.training.toy.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)

WEIGHTS_FILE, TRAINING_FILE = "model.safetensors", "training.json"
_FOVEA = "foveal_position_embedding.weight"


class Stage(NamedTuple):
    """One pass over images that no stage before has seen; it starts from the weights of the stage before.

    `learning_rate` is the largest of a cosine schedule, `draws` go to `QuestionBatches`; a stage of the vision tower
    has none.
    """

    batch_size: int
    learning_rate: float
    draws: dict[str, Any] = {}


STAGES = {
    "see": Stage(64, 1e-3),
    "sharpen": Stage(32, 7e-4),
    "read": Stage(24, 1e-3, {"num_questions": 4}),
    "practise": Stage(24, 5e-4, {"num_questions": 4, "counting_share": 0.6}),
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
    ids, heads = tokenizer.get_vocab(), {"num_attention_heads": 4}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    return ShirgLavidaConfig.from_preset(
        "shirg",
        geometry="toy",
        vision_config={"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 5, **heads},
        text_config={"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, **heads, **sizes},
        image_token_id=ids["<image>"],
        mask_token_id=ids["<|mdm_mask|>"],
        infill_token_id=None,
        **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


def check_settings(root: Path, args: ScriptArguments) -> None:
    """Write what decides the weights to `root`; a `ValueError` if stages there were made with other settings."""
    settings = {"seed": args.seed}
    for name, stage in STAGES.items():
        own = {"images": getattr(args, f"{name}_images"), **stage.draws}
        own |= {"batch_size": stage.batch_size, "learning_rate": stage.learning_rate}
        settings |= {f"{name}_{key}": value for key, value in own.items()}
    file = root / TRAINING_FILE
    begun = json.loads(file.read_text()) if file.exists() else settings
    for name, value in settings.items():
        if value != (old := begun.get(name)):
            raise ValueError(
                f"{root} was begun with {name}={old!r}, this run asks for {name}={value!r}. Choose another "
                f"output_dir, or go back to {name}={old!r}."
            )
    write_json(file, settings)


def train_stage(root: Path, name: str, args: ScriptArguments) -> None:
    """One pass over the images of stage `name` in its folder under `root`, resumed if a checkpoint is there."""
    folder, stage, number = root / name, STAGES[name], list(STAGES).index(name)
    if (folder / WEIGHTS_FILE).exists():
        logger.info("Stage %s: finished before, skipped", name)
        return
    counts = [getattr(args, f"{each}_images") for each in STAGES]
    images = range(sum(counts[:number]), sum(counts[: number + 1]))
    tokenizer = tiny_tokenizer()
    weights = load_file(root / list(STAGES)[number - 1] / WEIGHTS_FILE) if number else None
    torch.manual_seed(args.seed)
    model, batches = (_answers if stage.draws else _views)(tiny_config(tokenizer), tokenizer, weights, stage)
    training_args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=stage.batch_size,
        num_train_epochs=1,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.01,
        adam_beta2=0.98,
        logging_steps=25,
        save_steps=args.save_steps,
        save_total_limit=1,
        train_sampling_strategy="sequential",
        dataloader_num_workers=args.num_workers,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        report_to="none",
        seed=args.seed,
        disable_tqdm=True,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=training_args, train_dataset=images, data_collator=batches)
    checkpoint = last_complete_checkpoint(folder)
    logger.info("Stage %s: %d images, %s", name, len(images), checkpoint or "from the start")
    trainer.train(resume_from_checkpoint=checkpoint)
    with draft_of(folder / WEIGHTS_FILE) as draft:
        save_file(model.state_dict(), draft)


def _views(config, tokenizer, weights, stage: Stage) -> tuple[nn.Module, Callable]:
    model = DensePretrainingModel(config, tokenizer)
    # On a CPU the backward of scaled_dot_product_attention takes half of a step; plain products do not.
    model.vision_tower.vision_model.set_attn_implementation("eager")
    if weights is not None:
        model.load_state_dict(weights)
    return model, ViewBatches(config, tokenizer)


def _answers(config, tokenizer, weights, stage: Stage) -> tuple[nn.Module, Callable]:
    config = config.with_preset("lavida-980")
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
    return packed, QuestionBatches(processor, config.view_grid, **stage.draws)


def _named_below(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The weights whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def export(root: Path, out: Path) -> None:
    """Write the last stage as a Hub repository, and in training.json the settings of all stages.

    The foveal positions are those of the tower's last stage. Weights are stored in bfloat16 and load in float32.
    """
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer)
    model = ShirgLavidaForConditionalGeneration(config)
    tower, weights = (load_file(root / name / WEIGHTS_FILE) for name in ("sharpen", "practise"))
    fovea = {f"model.vision_tower.{_FOVEA}": tower[f"vision_tower.{_FOVEA}"]}
    model.load_state_dict(_named_below(weights, "model.") | fovea)
    ids = {name: getattr(config, name) for name in ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")}
    never = [config.mask_token_id, config.image_token_id]
    model.generation_config = ShirgGenerationConfig(max_new_tokens=ANSWER_LENGTH, suppress_tokens=never, **ids)
    model.save_pretrained(out, state_dict={name: value.bfloat16() for name, value in model.state_dict().items()})
    ShirgLavidaProcessor.from_config(config, tokenizer).save_pretrained(out)
    shutil.copy(root / TRAINING_FILE, out)


def main(argv: list[str] | None = None) -> None:
    """Train the stages that are not finished, then export if asked to."""
    args = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(args=argv)[0]
    torch.set_flush_denormal(True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    root = Path(args.output_dir)
    check_settings(root, args)
    for name in STAGES:
        train_stage(root, name, args)
    if args.export:
        export(root, Path(args.export))


if __name__ == "__main__":
    main()
