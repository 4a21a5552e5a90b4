"""What a run of `shirg train` is made of: the model with its adapter, and what makes its batches."""

from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from configuration_shirg.geometry_shirg import grid_side
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.load import load, parse_options
from modeling_shirg.training.alignment import AlignmentTrainer, ShirgLavidaForAlignment
from modeling_shirg.training.arguments import DataArguments, ModelArguments
from modeling_shirg.training.collator import RowCollator
from modeling_shirg.training.draws import RowDraws
from modeling_shirg.training.encoder import RowEncoder
from modeling_shirg.training.footprints import Footprint, apply_footprint, load_adapter, named_footprint
from modeling_shirg.training.mixture import load_rows
from modeling_shirg.training.run_folder import base_commit
from modeling_shirg.training.trainer import ShirgTrainer
from modeling_shirg.training.trainer_arguments import ShirgTrainingArguments


@dataclass
class RunParts:
    """The parts of a run; `base_config` is the stored config of the base model."""

    model: PeftModel
    base_config: ShirgLavidaConfig
    processor: ShirgLavidaProcessor
    footprint: Footprint
    collator: RowCollator

    @classmethod
    def build(cls, model_args: ModelArguments, data_args: DataArguments, args: ShirgTrainingArguments) -> "RunParts":
        """Load the base, and put the adapter on it.

        Raises:
            ValueError: arguments contradict each other or the base.
        """
        footprint = named_footprint(model_args.footprint, model_args.rank, model_args.alpha)
        _check_alignment(footprint, args)
        options, source = parse_options(model_args.option), model_args.model
        given = (source, model_args.prune_method, "cpu", model_args.dtype, None, options, model_args.revision)
        loaded = load(*given)
        if loaded.model._hf_peft_config_loaded:
            raise ValueError(
                f"--model {source} is an adapter: give its base as --model, and it as --adapter to train on from it."
            )
        if args.stage == "align":
            loaded = loaded.as_class(ShirgLavidaForAlignment)
        config = loaded.model.config
        _check_draws(config, args)
        model = apply_footprint(loaded.model, footprint, args.seed)
        model.peft_config[model.active_adapter].revision = base_commit(config.name_or_path, model_args.revision)
        if model_args.adapter is not None:
            load_adapter(model, model_args.adapter)
        draws = RowDraws(
            args.seed,
            token_dropout=0.1 * config.selects if args.token_dropout is None else args.token_dropout,
            gumbel=args.train_selection == "gumbel",
            budgets=tuple(args.budgets),
            fovea_sizes=tuple(args.fovea_sizes),
            augment=data_args.augment,
        )
        length = args.answer_length or loaded.model.generation_config.max_new_tokens
        limit = config.text_config.max_position_embeddings
        encoder = RowEncoder(loaded.processor, length, limit, max(args.budgets, default=None))
        base_config = ShirgLavidaConfig.from_pretrained(config.name_or_path, revision=model_args.revision)
        collator = RowCollator(encoder, draws, args.effective_batch_size)
        return cls(model, base_config, loaded.processor, footprint, collator)

    def load_rows(self, data_args: DataArguments, args: ShirgTrainingArguments) -> tuple:
        """Training and validation rows; the main process checks the rows first, the others read what it found."""
        with args.main_process_first(desc="checking the rows"):
            rows, validation = load_rows(data_args, args.seed, self.collator.encoder)
        if validation is None and args.then_evaluate:
            raise ValueError("then_evaluate answers the validation rows: give --validation_rows or --validation_data.")
        return rows, validation

    def trainer(
        self, args: ShirgTrainingArguments, rows: Any, validation: Any, callbacks: list[TrainerCallback]
    ) -> ShirgTrainer:
        """The trainer of the run's stage."""
        kind = AlignmentTrainer if args.stage == "align" else ShirgTrainer
        trainer = kind(self.model, args, rows, self.collator, validation, callbacks)
        if args.then_evaluate and trainer.is_fsdp_enabled:
            raise ValueError("then_evaluate needs the whole model on one device, FSDP shards it: leave one out.")
        return trainer


def _check_alignment(footprint: Footprint, args: ShirgTrainingArguments) -> None:
    if args.stage == "align" and args.train_batch_size < 2:
        raise ValueError(
            "stage='align' tells the rows of one forward apart: per_device_train_batch_size must be at least 2, got "
            f"{args.per_device_train_batch_size}."
        )
    if args.stage == "align" and footprint.language:
        raise ValueError(
            f"stage='align' does not run the language model, which footprint={footprint.name!r} would train: take "
            "shirg-extra."
        )


def _check_draws(config: ShirgLavidaConfig, args: ShirgTrainingArguments) -> None:
    """Raises a `ValueError` if a step may draw more tokens than there are, or a fovea whose attention is unknown."""
    if config.selects:
        for size in args.fovea_sizes or [config.fovea_size]:
            for budget in args.budgets or [config.selection_budget]:
                config.check_budget(budget, size)
    method = METHODS.get(config.selection_method)
    if method is not None and method.reads_mean:
        for size in args.fovea_sizes:
            config.attention_mean(grid_side(size, config.vision_config.patch_size))
