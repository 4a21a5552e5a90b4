"""Fine-tune a LoRA footprint on image-question data; the same command continues a run that was stopped.

    shirg train scripts/configs/tiny.yaml --output_dir runs/tiny-lora    # minutes on 2 CPU cores, no download
    shirg train --model my-lavida --data chartqa docvqa --validation_rows 500 --output_dir runs/charts
    shirg train scripts/configs/shirg-extra.yaml --model my-lavida --output_dir runs/plan --check_gradients
    accelerate launch --config_file scripts/configs/accelerate/ddp.yaml -m shirg_scripts.cli train ...
    torchrun --nproc_per_node 8 -m shirg_scripts.cli train ...

Arguments are flags, or one YAML or JSON file with flags behind it that win. `shirg plan` says how much memory a run
takes before it is started.
"""

import contextlib
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def parse_args(argv: list[str] | None = None) -> tuple:
    """Read the command line: arguments of the model, of the data, and of training."""
    import argparse

    from modeling_shirg.training.arguments import ModelArguments, ShirgTrainingArguments, parse_arguments
    from modeling_shirg.training.mixture import DataArguments

    return parse_arguments(
        sys.argv[1:] if argv is None else argv,
        (ModelArguments, DataArguments, ShirgTrainingArguments),
        _without_validation_rows,
        prog="shirg train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _without_validation_rows(values: dict[str, Any]) -> None:
    """Where no rows are validated on, nothing is asked of validations and of how they fit the checkpoints."""
    if not values["validation_data"] and not values["validation_rows"]:
        values["eval_strategy"] = "no"


def main(arguments: tuple) -> None:
    """Open the run, train it to its end, save and report; or only check its gradients."""
    from accelerate import PartialState

    _run(*arguments)
    PartialState().destroy_process_group()  # left behind, it can keep a process from ending


def _run(model_args, data_args, args) -> None:
    from modeling_shirg.training.footprints import check_trainable, trainable_counts
    from modeling_shirg.training.run_folder import is_finished, run_settings
    from modeling_shirg.training.run_log import check_can_draw

    if args.loss_curve:
        check_can_draw()
    say = print if args.process_index == 0 else lambda *values: None
    folder = Path(args.output_dir)
    with contextlib.ExitStack() as stack:
        if args.check_gradients:
            from modeling_shirg.training.gradient_check import STEPS

            args.only_check(stack.enter_context(tempfile.TemporaryDirectory()), STEPS)
        else:
            settings = run_settings(model_args, data_args, args)
            if is_finished(folder, settings):
                return say(f"{folder} is finished: nothing to do. Choose another output_dir for another run.")
        parts = _parts(model_args, args)
        check_trainable(parts.model)
        say(f"Footprint {parts.footprint.name}, rank {parts.footprint.rank}, alpha {parts.footprint.alpha}:")
        say(trainable_counts(parts.model).table())
        rows, validation = _rows(data_args, args, parts)
        if args.check_gradients:
            _check_gradients(parts, args, rows, say)
        else:
            _train(folder, settings, parts, args, rows, validation, say)


@dataclass
class _Parts:
    """What a run is made of."""

    model: Any
    base_config: Any
    processor: Any
    footprint: Any
    collator: Any
    validation_collator: Any


def _parts(model_args, args) -> _Parts:
    """The model with its adapter, and what makes batches for it."""
    from configuration_shirg import ShirgLavidaConfig
    from modeling_shirg import ShirgLavidaForConditionalGeneration
    from modeling_shirg.running.load import load, parse_options
    from modeling_shirg.training.alignment import ShirgLavidaForAlignment
    from modeling_shirg.training.collator import RowCollator
    from modeling_shirg.training.draws import RowDraws
    from modeling_shirg.training.footprints import apply_footprint, load_adapter, named_footprint
    from modeling_shirg.training.run_facts import base_commit

    if args.stage == "align" and args.train_batch_size < 2:
        raise ValueError(
            "stage='align' tells the rows of one forward apart: per_device_train_batch_size must be at least 2, got "
            f"{args.per_device_train_batch_size}."
        )
    footprint = named_footprint(model_args.footprint, model_args.rank, model_args.alpha)
    if args.stage == "align" and footprint.language:
        raise ValueError(
            f"stage='align' does not run the language model, which footprint={footprint.name!r} would train: take "
            "shirg-extra."
        )
    loaded = load(
        model_args.model,
        model_args.prune_method,
        "cpu",
        model_args.dtype,
        options=parse_options(model_args.option),
        revision=model_args.revision,
        model_class=ShirgLavidaForAlignment if args.stage == "align" else ShirgLavidaForConditionalGeneration,
    )
    if loaded.model._hf_peft_config_loaded:
        raise ValueError(
            f"--model {model_args.model} is an adapter: give its base as --model, and it as --adapter to train on "
            "from it."
        )
    config = loaded.model.config
    model = apply_footprint(loaded.model, footprint, args.seed)
    model.peft_config[model.active_adapter].revision = base_commit(config.name_or_path, model_args.revision)
    if model_args.adapter is not None:
        load_adapter(model, model_args.adapter)
    common = {
        "answer_length": args.answer_length or loaded.model.generation_config.max_new_tokens,
        "max_length": config.text_config.max_position_embeddings,
    }
    dropout = args.token_dropout
    if dropout is None:
        dropout = 0.1 if config.selects else 0.0
    draws = RowDraws(args.seed)
    collator = RowCollator(
        loaded.processor,
        draws,
        **common,
        token_dropout=dropout,
        gumbel=args.train_selection == "gumbel",
        budgets=args.budgets,
        fovea_sizes=args.fovea_sizes,
        step_rows=args.effective_batch_size,
    )
    _check_draws(config, args)
    return _Parts(
        model,
        ShirgLavidaConfig.from_pretrained(config.name_or_path, revision=model_args.revision),
        loaded.processor,
        footprint,
        collator,
        RowCollator(loaded.processor, draws, **common),
    )


def _check_draws(config, args) -> None:
    """Raises a `ValueError` if a step may draw more tokens than there are, or a fovea whose attention is unknown."""
    from configuration_shirg.geometry_shirg import grid_side
    from modeling_shirg.published_selections_shirg import METHODS

    if config.selects:
        for size in args.fovea_sizes or [config.fovea_size]:
            for budget in args.budgets or [config.selection_budget]:
                config.check_budget(budget, size)
    method = METHODS.get(config.selection_method)
    if method is not None and method.reads_mean:
        for size in args.fovea_sizes:
            config.attention_mean(grid_side(size, config.vision_config.patch_size))


def _rows(data_args, args, parts: _Parts) -> tuple:
    """Training and validation rows; the main process checks them first, the others read what it found."""
    from modeling_shirg.training.mixture import load_rows

    parts.collator.augment = data_args.augment
    with args.main_process_first(desc="checking the rows"):
        rows = load_rows(data_args, "train", args.seed, parts.collator.encoder)
        validation = None
        if not args.check_gradients:
            validation = load_rows(data_args, "validation", args.seed, parts.validation_collator.encoder)
    return rows, validation


def _trainer(parts: _Parts, args, rows, validation, callbacks: list):
    from modeling_shirg.training.alignment import AlignmentTrainer
    from modeling_shirg.training.trainer import ShirgTrainer

    kind = AlignmentTrainer if args.stage == "align" else ShirgTrainer
    return kind(parts.model, args, rows, parts.collator, validation, parts.validation_collator, callbacks)


def _check_gradients(parts: _Parts, args, rows, say) -> None:
    """Two steps, and what every tensor received in each of them."""
    from modeling_shirg.training.gradient_check import GradientCheck

    check = GradientCheck()
    _trainer(parts, args, rows, None, [check]).train()
    _meet(args)
    say(check.report())
    check.verify()
    say("Every tensor of the footprint received a gradient, and no other did.")


def _train(folder: Path, settings: dict[str, Any], parts: _Parts, args, rows, validation, say) -> None:
    from modeling_shirg.running.files import write_json, write_lines
    from modeling_shirg.training.run_facts import closing_facts, starting_facts
    from modeling_shirg.training.run_folder import ARGUMENTS_FILE, RUN_FILE, SKIPPED_FILE
    from modeling_shirg.training.run_log import LOG_FILE, RunLog, draw_losses
    from modeling_shirg.training.toy.stage import last_complete_checkpoint

    if validation is None and args.then_evaluate:
        raise ValueError("then_evaluate answers the validation rows: give --validation_rows or --validation_data.")
    with args.main_process_first(local=False, desc="looking for a checkpoint"):
        checkpoint = last_complete_checkpoint(folder)
    say(f"Run {folder}: {'from the start' if checkpoint is None else f'continued from {checkpoint}'}")
    trainer = _trainer(parts, args, rows, validation, [RunLog(folder)])
    if args.then_evaluate and trainer.is_fsdp_enabled:
        raise ValueError("then_evaluate needs the whole model on one device, FSDP shards it: leave one of them out.")
    report = rows.report()
    facts = starting_facts(
        parts.model, parts.base_config, parts.footprint, report["sources"], args, shlex.join(sys.argv)
    )
    if trainer.is_world_process_zero():
        write_json(folder / ARGUMENTS_FILE, settings)
        write_json(folder / RUN_FILE, facts)
        write_lines(folder / SKIPPED_FILE, report["skipped"])
        parts.processor.save_pretrained(folder)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(folder)
    _meet(args)
    if trainer.is_world_process_zero():
        # PEFT's, with nothing filled in; the card is written by `shirg push`.
        (folder / "README.md").unlink(missing_ok=True)
        report = rows.report()  # of a stream, what was skipped is known now
        write_lines(folder / SKIPPED_FILE, report["skipped"])
        facts |= closing_facts(trainer.state, folder / LOG_FILE) | {"data": report["sources"]}
        if args.loss_curve:
            say(f"Loss curve: {draw_losses(folder)}")
        if args.then_evaluate:
            facts["evaluation"] = _evaluate(parts, args, validation, say)
        write_json(folder / RUN_FILE, facts | {"status": "finished"})
    say(f"Finished: the adapter of step {facts.get('metrics', {}).get('best_step')} is in {folder}")


def _meet(args) -> None:
    """
    The last the processes do together.

    A group that is destroyed while one of its threads still frees a tensor waits for that thread with Python's lock
    held, and the thread waits for the lock. After a barrier, which has no tensors, no thread frees one.
    """
    args.distributed_state.wait_for_everyone()


def _evaluate(parts: _Parts, args, validation, say) -> list[dict[str, Any]]:
    """Exact match on the validation rows, of the base model and of the trained one."""
    from modeling_shirg.evaluation.held_out import answer_rows, exact_match_facts, references

    model = parts.model.eval()
    expected = references(validation)
    with model.disable_adapter():
        base = answer_rows(model, parts.processor, validation, args.eval_batch_size)
    facts = exact_match_facts(expected, answer_rows(model, parts.processor, validation, args.eval_batch_size), base)
    for row in facts:
        say(
            f"{row['task']}: exact match {row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%}) of {row['n']} "
            f"held-out rows, {row['baseline']:.1%} before training, {row['majority']:.1%} by the most frequent answer"
        )
    return facts


if __name__ == "__main__":
    main(parse_args())
