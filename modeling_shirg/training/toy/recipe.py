"""The recipe of the bundled checkpoint: sizes, stages and what is written at the end."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.utils import logging

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
from modeling_shirg.training.toy.stage import (
    WEIGHTS_FILE,
    close_stage,
    finished_settings,
    open_stage,
    read_stage,
    save_start,
    stage_settings,
)
from modeling_shirg.training.toy.tokenizer import train_tokenizer

logger = logging.get_logger(__name__)

READ_PRESET, EXPORT_PRESET = "lavida-980", "shirg"
TRAINING_FILE = "training.json"
_FOVEA = "foveal_position_embedding.weight"

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


def train_see(folder: Path, args) -> None:
    """Stage `see`: vision tower and projector, from random weights or from the stage of another training."""
    images = range(args.see_images)
    train_vision(folder, args, previous=None, images=images, batch_size=64, learning_rate=1e-3, start=args.start)


def train_sharpen(folder: Path, see_folder: Path, args) -> None:
    """Stage `sharpen`: the same on the pages that follow, warm restart, half the batch; small glyphs come late."""
    images = range(args.see_images, args.see_images + args.sharpen_images)
    train_vision(folder, args, previous=see_folder, images=images, batch_size=32, learning_rate=7e-4)


def train_vision(
    folder: Path,
    args,
    previous: Path | None,
    images: range,
    batch_size: int,
    learning_rate: float,
    start: str | None = None,
) -> None:
    """A stage of the vision tower, unless `folder` holds it finished.

    It starts from the stage `previous`; without one, from random weights, or from the weights of the folder `start`.
    """
    optimisation = {"batch_size": batch_size, "learning_rate": learning_rate}
    origin = {"start": _sha256(Path(start))} if start else {}
    if open_stage(folder, stage_settings(folder, previous, args.seed, images=len(images), **optimisation, **origin)):
        return
    if previous is None:
        tokenizer = tiny_tokenizer()
        config, weights = tiny_config(tokenizer), None
    else:
        config, tokenizer, weights = read_stage(previous)
    save_start(folder, config, tokenizer)
    torch.manual_seed(args.seed)
    model = DensePretrainingModel(config, tokenizer)
    # On a CPU the backward of scaled_dot_product_attention takes half of a step; plain products do not.
    model.vision_tower.vision_model.set_attn_implementation("eager")
    if weights is not None:
        model.load_state_dict(weights)
    if start:
        model.load_state_dict(load_file(Path(start) / WEIGHTS_FILE))
    dataset = ViewDataset(config, tokenizer, "train", images, batch_size)
    _run(folder, model, dataset, args, **optimisation)


def train_read(folder: Path, tower_folder: Path, args) -> None:
    """Stage `read`: projector and language model on LaViDa's five views, several questions behind one image."""
    seen = args.see_images + args.sharpen_images
    train_answers(folder, args, tower_folder, range(seen, seen + args.read_images), 1e-3, start_from_tower)


def train_practise(folder: Path, read_folder: Path, args) -> None:
    """Stage `practise`: the same on the images that follow, more grids to count in, half the learning rate."""
    seen = args.see_images + args.sharpen_images + args.read_images
    images = range(seen, seen + args.practise_images)
    draws = {"counting_share": 0.6}
    train_answers(folder, args, read_folder, images, 5e-4, PackedAnswerModel.load_state_dict, draws)


def train_answers(
    folder: Path,
    args,
    previous: Path,
    images: range,
    learning_rate: float,
    load_start: Callable[[PackedAnswerModel, dict[str, torch.Tensor]], object],
    draws: dict[str, float] | None = None,
    num_questions: int = 4,
    batch_size: int = 24,
) -> None:
    """A stage of the language model, unless `folder` holds it finished.

    `load_start` puts the weights of the stage `previous` where they belong; `draws` is for `QuestionDataset`.
    """
    draws = draws or {}
    optimisation = {"batch_size": batch_size, "learning_rate": learning_rate}
    form = {"images": len(images), "num_questions": num_questions, **draws}
    settings = stage_settings(folder, previous, args.seed, **form, **optimisation)
    if open_stage(folder, settings):
        return
    config, tokenizer, weights = read_stage(previous)
    config = config.with_preset(READ_PRESET)
    save_start(folder, config, tokenizer)
    torch.manual_seed(args.seed)
    packed = PackedAnswerModel(ShirgLavidaForConditionalGeneration(config), tokenizer, num_questions)
    load_start(packed, weights)
    processor = ShirgLavidaProcessor.from_config(config, tokenizer)
    dataset = QuestionDataset(processor, config.view_grid, "train", images, num_questions, **draws)
    _run(folder, packed, dataset, args, **optimisation)


def start_from_tower(packed: PackedAnswerModel, weights: dict[str, torch.Tensor]) -> None:
    """Tower and projector are those of a stage of the vision tower."""
    tower = _named_below(weights, "vision_tower.")
    # These views have no fovea.
    tower.pop(_FOVEA)
    packed.model.model.vision_tower.load_state_dict(tower)
    packed.model.model.multi_modal_projector.load_state_dict(_named_below(weights, "projector."))
    packed.start_reading(weights["read_head.weight"] * weights["read_norm.weight"])


def _named_below(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The weights whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _sha256(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / WEIGHTS_FILE).read_bytes()).hexdigest()


def export(folder: Path, tower_folder: Path, out: Path) -> None:
    """Write the finished stage `folder` as a Hub repository: weights, config, generation config, processor, code, and
    in training.json the settings of all stages.

    The foveal positions, which the views of stage `read` have no use for, are those of the tower's last stage. Weights
    are stored in bfloat16, to be small, and load in float32, as the config says.
    """
    config, tokenizer, weights = read_stage(folder)
    config = config.with_preset(EXPORT_PRESET)
    model = ShirgLavidaForConditionalGeneration(config)
    fovea = _named_below(read_stage(tower_folder)[2], "vision_tower.")[_FOVEA]
    model.load_state_dict({**_named_below(weights, "model."), f"model.vision_tower.{_FOVEA}": fovea})
    processor = ShirgLavidaProcessor.from_config(config, tokenizer)
    model.generation_config = ShirgGenerationConfig(
        max_new_tokens=ANSWER_LENGTH,
        suppress_tokens=[model.config.mask_token_id, model.config.image_token_id],
        mask_token_id=model.config.mask_token_id,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(out, state_dict={name: value.bfloat16() for name, value in model.state_dict().items()})
    processor.save_pretrained(out)
    write_json(out / TRAINING_FILE, finished_settings(folder))


def _run(folder: Path, model: nn.Module, dataset: Dataset, args, batch_size: int, learning_rate: float) -> None:
    """One pass over `dataset` with the Trainer, resumed if a checkpoint is there; `folder` ends up finished."""
    training_args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=learning_rate,
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
    if args.compile:
        model.compile(dynamic=False)
    if training_args.train_batch_size != batch_size:
        raise ValueError(
            f"A batch of {batch_size} would be {training_args.train_batch_size} rows on {training_args.n_gpu} GPUs: "
            "show one alone, with CUDA_VISIBLE_DEVICES=0."
        )
    trainer = StageTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        data_collator=dataset.collate,
    )
    checkpoint = last_complete_checkpoint(folder)
    logger.info("Stage %s: %d images, %s", folder.name, len(dataset), checkpoint or "from the start")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder))
    close_stage(folder)
