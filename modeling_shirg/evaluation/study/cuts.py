"""What a study leaves out of the plan: the difference of two configs, in sentences."""

from typing import Any

from modeling_shirg.evaluation.study.config import Arm, StudyConfig

# Of a recipe: how rather than what is computed, and the number of samples, which has a line of its own.
_NOT_TOLD = (
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "activation_checkpointing",
    "dataloader_num_workers",
    "logging_steps",
    "use_cpu",
)


def cuts(plan: StudyConfig, config: StudyConfig) -> list[str]:
    """What `plan` asks for and `config` does not; nothing where they are the same."""
    lines = []
    if plan.limit != config.limit and config.limit is not None:
        lines.append(f"Rows: the first {config.limit} of each task instead of {plan.limit or 'all'}.")
    lines += _lacking("Tasks that are not asked", plan.tasks, config.tasks)
    lines += _lacking("Systems that are not asked", _systems(plan, "zero-shot"), _systems(config, "zero-shot"))
    lines += _lacking("Not adapted", _systems(plan, "adapted"), _systems(config, "adapted"))
    lines += _lacking("Seeds of adaptation that are left out", plan.seeds(), config.seeds())
    if config.seeds() and plan.samples != config.samples:
        lines.append(f"Samples of each adaptation: {config.samples:,} instead of {plan.samples:,}.")
    return lines + _recipe_changes(plan, config) + _grid_cuts(plan, config)


def _recipe_changes(plan: StudyConfig, config: StudyConfig) -> list[str]:
    """What else of the recipe is not the plan's."""
    if not config.seeds():
        return []
    names = [name for name in plan.train | config.train if name not in _NOT_TOLD]
    changed = [
        f"{name} {config.train.get(name, 'by default')} instead of {plan.train.get(name, 'the default')}"
        for name in names
        if plan.train.get(name) != config.train.get(name)
    ]
    return [f"Recipe of the adaptations: {'; '.join(changed)}."] if changed else []


def _grid_cuts(plan: StudyConfig, config: StudyConfig) -> list[str]:
    if plan.grid is None or plan.grid == config.grid:
        return []
    if config.grid is None:
        return ["No grid over the score weights."]
    points, limits = ([len(each.grid.systems()) for each in (config, plan)], [config.grid.limit, plan.grid.limit])
    return [
        f"Grid over the score weights: {points[0]} points instead of {points[1]}, {limits[0] or 'all'} rows of each "
        f"task instead of {limits[1] or 'all'}."
    ]


def _lacking(what: str, planned: Any, kept: Any) -> list[str]:
    left_out = [str(each) for each in planned if each not in kept]
    return [f"{what}: {'; '.join(left_out)}."] if left_out else []


def _systems(config: StudyConfig, arm: Arm) -> list[str]:
    variants = [variant for group in config.groups for variant in group.of(arm)]
    return list(dict.fromkeys(each.label if arm == "adapted" else each.system for each in variants))
