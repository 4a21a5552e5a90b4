"""The recipe of `shirg train`: its arguments, what each part of it changes, what it says when something is wrong."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors import safe_open
from torch import nn

from configuration_shirg import PRESETS
from modeling_shirg.training.alignment import contrastive_losses, same_text
from modeling_shirg.training.arguments import DataArguments, ModelArguments
from modeling_shirg.training.footprints import apply_footprint, named_footprint
from modeling_shirg.training.gradient_check import GradientCheck
from modeling_shirg.training.run_folder import is_finished, last_complete_checkpoint, run_settings
from modeling_shirg.training.trainer import ShirgTrainer, optimizer_groups
from modeling_shirg.training.trainer_arguments import ShirgTrainingArguments, parse_arguments
from shirg_scripts import cli
from tiny_model import tiny_config, tiny_model
from training_run import facts, losses, output_of, run, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def _arguments(*words: str) -> ShirgTrainingArguments:
    return parse_arguments(["--output_dir", "unused", "--use_cpu", *words], [ShirgTrainingArguments])[0]


def _refused(**arguments) -> str:
    """What a command that ends with status 2 wrote."""
    status, said = output_of(**arguments)
    assert status == 2 and "Traceback" not in said, said
    return said


# Arguments


def test_the_defaults_are_the_recipe():
    args = _arguments()
    assert (args.learning_rate, args.weight_decay, args.warmup_steps) == (1.8e-5, 1e-4, 500)
    assert args.lr_scheduler_type == "cosine" and args.activation_checkpointing and args.load_best_model_at_end
    assert args.effective_batch_size == args.gradient_accumulation_steps * args.per_device_train_batch_size == 128
    assert not args.bf16 and args.early_stopping_patience == 5 and not args.logging_nan_inf_filter
    args = _arguments("--eval_strategy", "no")
    assert not args.load_best_model_at_end and args.early_stopping_patience == 0


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_arguments_come_from_a_file_and_flags_win(tmp_path, name):
    values = {"seed": 7, "learning_rate": "2e-4", "use_cpu": True, "output_dir": "x", "option": ["text_weight=0"]}
    (tmp_path / name).write_text(json.dumps(values))  # which is YAML too
    words = [str(tmp_path / name), "--seed", "8", "--effective_batch_size", "4"]
    model, args = parse_arguments(words, [ModelArguments, ShirgTrainingArguments])
    assert (args.seed, args.learning_rate, args.effective_batch_size) == (8, 2e-4, 4)
    assert model.option == ["text_weight=0"] and args.bf16 is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--effective_batch_size 10 --per_device_train_batch_size 4", "=10 .*=4"),
        ("--effective_batch_size 4 --gradient_accumulation_steps 2", "effective batch"),
        ("--save_steps 400 --logging_steps 30", "save_steps=400 .*logging_steps=30"),
        ("--token_dropout 1", "token_dropout"),
        ("--group_learning_rates head=1", "'head=1' .*projector, vision"),
        ("--learning_rate 0", "above 0"),
        ("--learning_rate inf", "finite, got .*inf"),
        ("--group_learning_rates projector=nan", "finite, got .*nan"),
        ("--align_temperature 0", "align_temperature"),
        ("--early_stopping_patience -1", "early_stopping_patience"),
    ],
)
def test_arguments_that_do_not_fit_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        _arguments(*words.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [("learning_rat: 1", "'learning_rate'"), ("- 1", "got list"), ("a: [", "be read")],
)
def test_a_file_of_arguments_that_is_wrong_is_an_error(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(tmp_path / "run.yaml")], [ShirgTrainingArguments])


def test_module_groups_have_their_learning_rates_and_biases_no_decay():
    model = apply_footprint(tiny_model(tiny_config("shirg-fixed")), named_footprint("shirg-fixed", rank=4), 0)
    args = _arguments("--group_learning_rates", "projector=2e-4", "positions=1e-3")
    biases = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    decayed = [name for name, _ in model.named_parameters() if name not in biases]
    groups = optimizer_groups(model, decayed, args)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in of) == parameter.requires_grad
        if parameter.requires_grad:
            expected = 2e-4 if "projector" in name else 1e-3 if "position" in name else 1.8e-5
            assert of[id(parameter)]["lr"] == expected, name
            assert of[id(parameter)]["weight_decay"] == (0.0 if name in biases else 1e-4), name


# What a run does


def test_half_of_the_activations_are_bfloat16_and_what_is_trained_is_not(base, tmp_path):
    folder = run(model=base, output_dir=tmp_path / "half", dtype="bfloat16", bf16=True, max_steps=2)
    assert facts(folder)["machine"]["bf16"] and all(loss < 10 for loss in losses(folder).values())
    with safe_open(folder / "adapter_model.safetensors", "pt") as adapter:
        assert {adapter.get_tensor(name).dtype for name in adapter.keys()} == {torch.float32}


STILL = {"learning_rate": 1e-12, "max_steps": 2, "token_dropout": 0.0}
PARTS = [
    {"token_dropout": 0.5},
    {"fovea_sizes": [336]},
    {"budgets": [100]},
    {"train_selection": "gumbel"},
    {"augment": True},
]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_each_part_of_the_recipe_reaches_the_loss_and_not_the_validation(base, plain, tmp_path, part):
    folder = run(model=base, output_dir=tmp_path / "run", **STILL | part)
    assert losses(folder)[1] != pytest.approx(losses(plain)[1], rel=1e-6)
    assert losses(folder, "eval_loss") == pytest.approx(losses(plain, "eval_loss"), rel=1e-6)


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    """Two steps that change nothing, without any part of the recipe."""
    return run(model=base, output_dir=tmp_path_factory.mktemp("runs") / "plain", **STILL)


def test_early_stopping_ends_a_run_that_gets_no_better(base, tmp_path):
    arguments = {"learning_rate": 1e-12, "warmup_steps": 0, "max_steps": 40, "early_stopping_patience": 2}
    folder = run(model=base, output_dir=tmp_path / "run", **arguments)
    assert facts(folder)["steps"] < 20 and facts(folder)["status"] == "finished"


def test_without_validation_the_last_weights_are_kept(base, tmp_path):
    without = {"validation_rows": 0, "save_steps": 1, "eval_steps": None}
    folder = run(model=base, output_dir=tmp_path / "run", max_steps=2, **without)
    assert facts(folder)["metrics"] == {"best_step": 2, "eval_loss": None, "train_loss": losses(folder)[2]}
    kinds = {"", ".json", ".jsonl", ".safetensors", ".py", ".jinja", ".bin"}
    assert (folder / "adapter_model.safetensors").exists() and {file.suffix for file in folder.iterdir()} <= kinds


def test_inverse_t_weighs_rows_alike_and_accumulates_to_the_same_mean(base, tmp_path):
    weighted = {"option": ["loss_weighting=inverse_t"], "max_steps": 2, "eval_steps": 2}
    together = run(model=base, output_dir=tmp_path / "a", per_device_train_batch_size=4, **weighted)
    one = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    apart = run(model=base, output_dir=tmp_path / "b", **one, **weighted)
    assert losses(apart) == pytest.approx(losses(together), rel=1e-5)
    assert losses(apart, "eval_loss") == pytest.approx(losses(together, "eval_loss"), rel=1e-5)


def test_the_alignment_stage_learns_and_the_diffusion_stage_starts_from_it(base, tmp_path):
    align = {"stage": "align", "per_device_train_batch_size": 4, "data": ["synthetic:chart,rows=24"]}
    first = run(model=base, output_dir=tmp_path / "align", max_steps=6, eval_steps=6, save_steps=6, **align)
    assert facts(first)["stage"] == "align" and losses(first, "eval_loss")[6] > 0
    then = run(model=base, output_dir=tmp_path / "then", adapter=first, max_steps=2, learning_rate=1e-12)
    fresh = run(model=base, output_dir=tmp_path / "fresh", max_steps=2, learning_rate=1e-12)
    assert losses(then)[1] != losses(fresh)[1]
    assert "two footprints never mix" in _refused(model=base, output_dir=tmp_path / "other", adapter=first, rank=8)
    assert "is an adapter: give its base as --model" in _refused(model=first, output_dir=tmp_path / "other")


def test_contrastive_losses_are_those_of_the_formula():
    torch.manual_seed(0)
    images, texts = torch.randn(4, 8), torch.randn(4, 8)
    cosines = nn.functional.normalize(images, dim=-1) @ nn.functional.normalize(texts, dim=-1).T
    none = torch.eye(4, dtype=torch.bool)
    forward = -(cosines / 0.07).log_softmax(1).diagonal()
    backward = -(cosines / 0.07).log_softmax(0).diagonal()
    assert torch.allclose(contrastive_losses(images, texts, none, 0.07), (forward + backward) / 2)
    labels = torch.tensor([[-100, 3, 4], [3, 4, 0], [3, 5, 0], [-100, 4, 3]])
    same = same_text(labels, (labels != -100) & (labels != 0))
    assert same.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    masked = (cosines / 0.07).masked_fill(same & ~none, -torch.inf)
    expected = -(masked.log_softmax(1).diagonal() + masked.log_softmax(0).diagonal()) / 2
    assert torch.allclose(contrastive_losses(images, texts, same, 0.07), expected)


# Gradients


def test_check_gradients_lists_the_footprint_and_leaves_nothing_behind(base, tmp_path):
    status, said = output_of(model=base, output_dir=tmp_path / "run", check_gradients=True)
    assert status == 0, said
    assert "Every tensor of the footprint received a gradient, and no other did." in said
    assert said.count("  trained  ") == 2 * 14 + 1 and "OUTSIDE" not in said
    assert not (tmp_path / "run").exists()


def test_a_gradient_outside_the_footprint_and_a_missing_one_fail_the_check():
    model = apply_footprint(tiny_model(tiny_config()), named_footprint("shirg-base", rank=2), 0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(check: GradientCheck) -> None:
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        check.on_pre_optimizer_step(None, None, None, model=model)

    whole, zero, outside = (GradientCheck() for _ in range(3))
    step(whole)
    whole.verify()
    trained.pop().grad.zero_()
    step(zero)
    with pytest.raises(ValueError, match="1 tensors of the footprint received no gradient, or only zeros"):
        zero.verify()
    trained.append(model.base_model.model.lm_head.weight.requires_grad_(True))
    step(outside)
    with pytest.raises(ValueError, match="1 tensors outside the footprint received gradients: .*lm_head.weight"):
        outside.verify()
    assert "OUTSIDE" in outside.report()


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"footprint": "shirg-extr"}, "Did you mean 'shirg-extra'?"),
        ({"footprint": "shirg-fixed"}, "trains the coordinate embedding, which preset 'shirg' does not have"),
        ({"data": ["synthetic:guard,rows=3"]}, "There are 3 training rows, one optimizer step takes effective_batch"),
        ({"data": None}, "Say what to read"),
        ({"then_evaluate": True, "validation_rows": 0}, "then_evaluate answers the validation rows"),
        ({"prune_method": "lavida-980", "budgets": [9]}, "need a preset that selects tokens"),
        ({"budgets": [100, 5000]}, "selection_budget=5000 must be between 1 and the 256 tokens"),
        ({"budgets": [200], "fovea_sizes": [224, 168]}, "selection_budget=200 must be between 1 and the 144 tokens"),
        ({"option": ["text_config=1"]}, "text_config"),
        ({"adapter": "nowhere/at-all"}, "nowhere/at-all"),
        ({"stage": "align", "footprint": "shirg-extra-language"}, "stage='align' does not run the language model"),
        ({"stage": "align", "per_device_train_batch_size": 1}, "per_device_train_batch_size must be at least 2"),
    ],
)
def test_what_cannot_be_trained_is_said_before_training(base, tmp_path, arguments, message):
    assert message in _refused(model=base, output_dir=tmp_path / "run", **arguments)
    assert not list(tmp_path.glob("run/*")), "the folder is free for the next start"


def test_a_loss_that_is_not_a_number_stops_the_run_and_the_last_checkpoint_stays(base, tmp_path, monkeypatch):
    whole = run(model=base, output_dir=tmp_path / "whole", max_steps=4)
    good, folder = ShirgTrainer.compute_loss, tmp_path / "run"

    def bad(self, *args, **kwargs):
        loss = good(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 and self.model.training else loss

    with monkeypatch.context() as patched:
        patched.setattr(ShirgTrainer, "compute_loss", bad)
        assert "Step 4: the gradient is nan" in _refused(model=base, output_dir=folder, max_steps=4)
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2")
    words = f"push {folder} me/it --merge --checkpoint checkpoint-2 --dry_run {tmp_path / 'out'}"
    assert cli.main(words.split()) == 0
    assert "the weights of step 2** (`checkpoint-2`) **of a run that" in (tmp_path / "out" / "README.md").read_text()
    run(model=base, output_dir=folder, max_steps=4)
    assert losses(folder) == losses(whole) and losses(folder, "eval_loss") == losses(whole, "eval_loss")


def test_a_run_is_not_continued_with_other_settings(base, tmp_path):
    same = {"model": base, "output_dir": tmp_path / "run", "max_steps": 2}
    folder = run(**same)
    status, said = output_of(**same, dataloader_num_workers=1)
    assert status == 0 and "is finished: nothing to do" in said
    assert "learning_rate=0.01, this one asks for learning_rate=1.0" in _refused(**same, learning_rate=1.0)
    assert "validation_rows=5" in _refused(**same, validation_rows=0)
    (folder / "arguments.json").unlink()
    assert "holds no arguments.json" in _refused(**same)


def _settings(*words: str) -> dict:
    common = ["--output_dir", "unused", "--use_cpu", "--save_steps", "200", *words]
    data = [] if "--data_config" in words else ["--data", "synthetic:entity_grid"]
    return run_settings(*parse_arguments([*common, *data], [ModelArguments, DataArguments, ShirgTrainingArguments]))


@pytest.mark.parametrize(
    ("common", "name", "before", "after"),
    [
        ("--stage align", "per_device_train_batch_size", "4", "8"),
        ("--stage align", "per_device_eval_batch_size", "4", "8"),
        ("--validation_rows 9", "eval_strategy", "steps", "no"),
        ("--validation_rows 9", "load_best_model_at_end", "true", "false"),
        ("--validation_rows 9", "save_steps", "400", "200"),
    ],
)
def test_what_changes_the_trajectory_is_named(tmp_path, common, name, before, after):
    first, second = (_settings(*common.split(), f"--{name}", value) for value in (before, after))
    (tmp_path / "arguments.json").write_text(json.dumps(first))
    assert not is_finished(tmp_path, first)
    with pytest.raises(ValueError, match=f"(?i){name}.*='?{before}.*{name}.*='?{after}"):
        is_finished(tmp_path, second)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("--per_device_train_batch_size 4", "--per_device_train_batch_size 8 --dataloader_num_workers 0"),
        ("--eval_strategy no --save_steps 400", "--eval_strategy no --save_steps 200"),
        ("--num_proc 2 --logging_steps 20", "--disable_tqdm true --report_to none"),
    ],
)
def test_how_it_is_computed_may_change(tmp_path, before, after):
    (tmp_path / "arguments.json").write_text(json.dumps(_settings(*before.split())))
    assert not is_finished(tmp_path, _settings(*after.split()))


def test_the_content_of_a_mixture_file_counts_and_not_its_name(tmp_path):
    (tmp_path / "one.yaml").write_text("data: [synthetic:guard, {source: synthetic, path: entity_grid, rows: 40}]")
    settings = _settings("--data_config", str(tmp_path / "one.yaml"))
    (tmp_path / "arguments.json").write_text(json.dumps(settings))
    (tmp_path / "one.yaml").rename(tmp_path / "two.yaml")
    assert not is_finished(tmp_path, _settings("--data_config", str(tmp_path / "two.yaml")))
    (tmp_path / "one.yaml").write_text("data: [synthetic:guard, {source: synthetic, path: entity_grid, rows: 50}]")
    with pytest.raises(ValueError, match=r"data_config=.*'rows': 40.*data_config=.*'rows': 50"):
        is_finished(tmp_path, _settings("--data_config", str(tmp_path / "one.yaml")))


# Configs

CONFIGS = Path(str(files("shirg_scripts"))) / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"), key=lambda file: file.name)


@pytest.mark.parametrize("file", [each for each in RECIPES if "mixture" not in each.name], ids=lambda file: file.stem)
def test_a_recipe_states_its_epochs_and_its_effective_batch_and_names_what_exists(file):
    kinds = [ModelArguments, DataArguments, ShirgTrainingArguments]
    model, data, args = parse_arguments([str(file), "--output_dir", "unused", "--use_cpu"], kinds)
    stated = file.read_text()
    named_footprint(model.footprint, model.rank, model.alpha)
    assert model.prune_method in (None, *PRESETS)
    assert data.data or (CONFIGS / Path(data.data_config).name).exists()
    assert f"scripts/configs/{file.name}" in stated
    if file.stem != "tiny":
        assert args.effective_batch_size == 128 and "effective_batch_size: 128" in stated
        assert "num_train_epochs:" in stated


@pytest.mark.parametrize("file", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_understands_its_configs(file):
    config = load_config_from_file(str(file))
    assert config.main_training_function == "main" and file.name in file.read_text()
    if config.distributed_type == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "LlamaDecoderLayer,SiglipEncoderLayer"
