"""Fine-tune a LoRA footprint on image-question data; the same command continues a run that was stopped.

    shirg train scripts/configs/tiny.yaml --output_dir runs/tiny-lora    # minutes on 2 CPU cores, no download
    shirg train --model my-lavida --data chartqa docvqa --validation_rows 500 --output_dir runs/charts
    accelerate launch --config_file scripts/configs/accelerate/ddp.yaml -m shirg_scripts.cli train ...

Arguments are flags, or one YAML or JSON file with flags behind it that win; --help_all shows transformers' too.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from .argument_types import checkpoint, light_module, preset_name
from .arguments import CommandParser, add_dataclasses

_USAGE = "shirg train [FILE.yaml] [--output_dir RUN] [--ARGUMENT VALUE ...] [--help] [--help_all]"


def parse_args(argv: list[str] | None = None) -> tuple:
    """Read the command line: arguments of the model, of the data, and of training."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & {*argv}:
        parser = CommandParser("shirg train", __doc__, _USAGE)
        add_dataclasses(parser, light_module("modeling_shirg.training.arguments"))
        parser.parse_args(["--help"])
    from modeling_shirg.training.arguments import DataArguments, ModelArguments
    from modeling_shirg.training.trainer_arguments import ShirgTrainingArguments, parse_arguments

    model_args, data_args, args = parse_arguments(
        ["--help" if word == "--help_all" else word for word in argv],
        (ModelArguments, DataArguments, ShirgTrainingArguments),
        prog="shirg train",
        usage=_USAGE,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for check, value in ((checkpoint, model_args.model), (preset_name, model_args.prune_method)):
        if value is not None:
            check(value)
    return model_args, data_args, args


def main(arguments: tuple) -> None:
    """Open the run, train it to its end, save and report; or only check its gradients."""
    from accelerate import PartialState

    with tempfile.TemporaryDirectory() as scratch:
        _run(*arguments, scratch)
    PartialState().destroy_process_group()  # left behind, it can keep a process from ending


def _run(model_args, data_args, args, scratch: str) -> None:
    from modeling_shirg.training.footprints import check_trainable, trainable_counts
    from modeling_shirg.training.gradient_check import STEPS, GradientCheck
    from modeling_shirg.training.run_folder import is_finished, run_settings
    from modeling_shirg.training.run_parts import RunParts

    say = print if args.process_index == 0 else lambda *values: None
    folder = Path(args.output_dir)
    if args.check_gradients:
        args.only_check(scratch, STEPS)
    else:
        settings = run_settings(model_args, data_args, args)
        if is_finished(folder, settings):
            return say(f"{folder} is finished: nothing to do. Choose another output_dir for another run.")
    parts = RunParts.build(model_args, data_args, args)
    check_trainable(parts.model)
    say(f"Footprint {parts.footprint.name}, rank {parts.footprint.rank}, alpha {parts.footprint.alpha}:")
    say(trainable_counts(parts.model).table())
    rows, validation = parts.load_rows(data_args, args)
    if not args.check_gradients:
        return _train(folder, settings, parts, args, rows, validation, say)
    check = GradientCheck()
    parts.trainer(args, rows, None, [check]).train()
    args.distributed_state.wait_for_everyone()
    say(check.report())
    check.verify()
    say("Every tensor of the footprint received a gradient, and no other did.")


def _train(folder: Path, settings: dict[str, Any], parts, args, rows, validation, say) -> None:
    from modeling_shirg.evaluation.held_out import adapted_facts, exact_match_words
    from modeling_shirg.running.files import write_json, write_lines
    from modeling_shirg.training import run_folder

    with args.main_process_first(local=False, desc="looking for a checkpoint"):
        checkpoint = run_folder.last_complete_checkpoint(folder)
    say(f"Run {folder}: {'from the start' if checkpoint is None else f'continued from {checkpoint}'}")
    trainer = parts.trainer(args, rows, validation, [run_folder.RunLog(folder)])
    report = rows.report()
    facts = run_folder.starting_facts(parts.model, parts.base_config, parts.footprint, args)
    facts |= {"data": report["sources"], "command": shlex.join(sys.argv)}
    if trainer.is_world_process_zero():
        write_json(folder / run_folder.ARGUMENTS_FILE, settings)
        write_json(folder / run_folder.RUN_FILE, facts)
        write_lines(folder / run_folder.SKIPPED_FILE, report["skipped"])
        parts.processor.save_pretrained(folder)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(folder)
    # Works around a deadlock in gloo: a group that is destroyed waits for threads that still free tensors.
    args.distributed_state.wait_for_everyone()
    if trainer.is_world_process_zero():
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty one; `shirg push` writes the card
        facts |= run_folder.closing_facts(trainer.state)
        if args.loss_curve:
            say(f"Loss curve: {run_folder.draw_losses(folder, trainer.state.log_history)}")
        if args.then_evaluate:
            model = parts.model.eval()
            facts["evaluation"] = adapted_facts(model, parts.processor, validation, args.eval_batch_size)
            for row in facts["evaluation"]:
                say(exact_match_words(row))
        write_json(folder / run_folder.RUN_FILE, facts | {"status": "finished"})
    say(f"Finished: the adapter of step {facts.get('metrics', {}).get('best_step')} is in {folder}")
