"""The recipe of the bundled checkpoint: sizes, stages and what is written at the end."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.utils import logging

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaImageProcessor, ShirgLavidaProcessor
from configuration_shirg.processing_shirg_lavida import SYSTEM_PROMPT
from modeling_shirg import ShirgGenerationConfig, ShirgLavidaForConditionalGeneration
from modeling_shirg.evaluation.synthetic import CHARACTERS, COLORS, FAMILIES, SHAPES, scene
from modeling_shirg.training.dense import DensePretrainingModel, PageDataset
from modeling_shirg.training.packed import ANSWER_LENGTH, PackedAnswerModel, QuestionDataset
from modeling_shirg.training.stage import (
    close_stage,
    last_complete_checkpoint,
    open_stage,
    read_stage,
    save_start,
    stage_settings,
)
from modeling_shirg.training.tokenizer import train_tokenizer

logger = logging.get_logger(__name__)

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


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the bundled checkpoint; the same ids every time."""
    questions = [text for family in FAMILIES for i in range(20) for text, _ in scene(family, "train", i).questions]
    words = [*COLORS, *SHAPES, *CHARACTERS, "system", "user", "assistant", "\n\n"]
    return train_tokenizer([SYSTEM_PROMPT, QUESTION_WORDS, *questions, *words], vocab_size=768)


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
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
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
    """Trainer that logs the mean of every scalar a stage's model returns beside its loss.

    NaN means nothing to measure.
    """

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
    """Stage `see`: the vision tower, from random weights."""
    train_vision(folder, args, previous=None, images=range(args.see_images), batch_size=64, learning_rate=1e-3)


def train_sharpen(folder: Path, see_folder: Path, args) -> None:
    """Stage `sharpen`: the same on new pages with a warm restart and half the batch; small glyphs come late."""
    images = range(args.see_images, args.see_images + args.sharpen_images)
    train_vision(folder, args, previous=see_folder, images=images, batch_size=32, learning_rate=7e-4)


def train_vision(
    folder: Path, args, previous: Path | None, images: range, batch_size: int, learning_rate: float
) -> None:
    """A stage of the vision tower, unless `folder` holds it finished; without `previous`, from random weights."""
    optimisation = {"batch_size": batch_size, "learning_rate": learning_rate}
    if open_stage(folder, stage_settings(folder, previous, args.seed, images=len(images), **optimisation)):
        return
    if previous is None:
        tokenizer = tiny_tokenizer()
        config, weights = tiny_config(tokenizer), None
    else:
        config, tokenizer, weights = read_stage(previous)
    save_start(folder, config, tokenizer)
    torch.manual_seed(args.seed)
    model = DensePretrainingModel(config, tokenizer)
    if weights is not None:
        model.load_state_dict(weights)
    dataset = PageDataset(ShirgLavidaImageProcessor.from_config(config), tokenizer, "train", images, batch_size)
    _run(folder, model, dataset, args, **optimisation)


def train_read(folder: Path, sharpen_folder: Path, args) -> None:
    """Stage `read`: projector and language model, six questions packed behind one image, text-free selection."""
    images = range(args.read_images)
    train_answers(folder, args, sharpen_folder, images, num_questions=6, joint=False, learning_rate=1.5e-3)


def train_answer(folder: Path, read_folder: Path, args) -> None:
    """Stage `answer`: one question per image, in the exact form of inference, on images that `read` did not see."""
    images = range(args.read_images, args.read_images + args.answer_images)
    train_answers(folder, args, read_folder, images, num_questions=1, joint=True, learning_rate=5e-4)


def train_answers(
    folder: Path,
    args,
    previous: Path,
    images: range,
    num_questions: int,
    joint: bool,
    learning_rate: float,
    batch_size: int = 32,
) -> None:
    """A stage of the language model, unless `folder` holds it finished."""
    optimisation = {"batch_size": batch_size, "learning_rate": learning_rate}
    form = {"num_questions": num_questions, "joint": joint}
    settings = stage_settings(folder, previous, args.seed, images=len(images), **form, **optimisation)
    if open_stage(folder, settings):
        return
    torch.manual_seed(args.seed)
    model, processor = load_stage(previous)
    save_start(folder, model.config, processor.tokenizer)
    packed = PackedAnswerModel(model, processor.tokenizer, **form)
    dataset = QuestionDataset(processor, "train", images, num_questions, warm_up=0.0 if joint else 0.35)
    _run(folder, packed, dataset, args, **optimisation)


def load_stage(folder: Path) -> tuple[ShirgLavidaForConditionalGeneration, ShirgLavidaProcessor]:
    """The model as the finished stage `folder` left it, and its processor.

    What that stage did not train is freshly initialised.
    """
    config, tokenizer, weights = read_stage(folder)
    model = ShirgLavidaForConditionalGeneration(config)
    if any(name.startswith("vision_tower.") for name in weights):
        prefix = "vision_tower."
        target = model.model.vision_tower
    else:
        prefix, target = "model.", model
    target.load_state_dict({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)})
    return model, ShirgLavidaProcessor.from_config(config, tokenizer)


def export(folder: Path, out: Path) -> None:
    """Write the finished stage `folder` as a Hub repository: weights, config, generation config, processor, code."""
    model, processor = load_stage(folder)
    model.generation_config = ShirgGenerationConfig(
        max_new_tokens=ANSWER_LENGTH,
        suppress_tokens=[model.config.mask_token_id, model.config.image_token_id],
        mask_token_id=model.config.mask_token_id,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(out)
    processor.save_pretrained(out)


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
    )
    if args.compile:
        model.compile(dynamic=False)
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
