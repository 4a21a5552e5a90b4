"""What `shirg bench` measured, as tables in Markdown: on standard output, and in the page of speed."""

from collections.abc import Iterable, Sequence
from typing import Any

from modeling_shirg.running.timing import STAGES

_MEGABYTE = 1e6
_CLOCK_NAMES = {"wall": "time on the wall", "processor": "time on the processor"}


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, padded to be read as it is; all columns but the first are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(row, widths) for row in (cells[0], rule, *cells[1:]))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |"


def render(result: dict[str, Any]) -> str:
    """Everything that one run measured, the machine first."""
    parts = [machine_line(result)]
    if result["measured"] == "selection":
        parts += [selection_table(result), full_size_line(result["full_size"])]
    elif result["measured"] == "curve":
        parts += [curve_table(result["curve"])]
    else:
        parts += [
            stage_table(result),
            fact_table(result),
            first_line(result),
            saving_lines(result),
            share_lines(result),
        ]
        if result["limits"]:
            parts += [limit_table(result["limits"]), operator_lines(result["limits"])]
    return "\n\n".join(part for part in parts if part)


def machine_line(result: dict[str, Any]) -> str:
    """What ran, how, on what, when."""
    machine, settings = result["machine"], result["settings"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    parts = [
        f"Profile {settings['profile']}: {settings['weights']}, {settings['parameters']:,} parameters",
        f"vocabulary {settings['text']['vocab_size']:,}",
        machine["dtype"],
        f"a picture of {' x '.join(map(str, settings['image_size']))}",
        f"{settings['max_new_tokens']} tokens in {settings['steps']} steps",
        f"batch {settings['batch']}",
        f"{settings['repeats']} repeats in turn after {settings['warmup']} warm-up rounds that do not count",
        _CLOCK_NAMES[settings["clock"]],
        where,
        f"torch {machine['torch']}",
        f"transformers {machine['transformers']}",
        f"load average {machine['load_average']} before and {machine['load_average_end']} after",
        machine["date"],
    ]
    return f"{', '.join(parts)}."


def stage_table(result: dict[str, Any]) -> str:
    """Median milliseconds of every stage that took any time."""
    systems, base = result["systems"], result["baseline"]
    shown = [name for name in STAGES if any(each[name]["max"] > 0 for each in systems.values())]
    rows = []
    for name, stages in systems.items():
        step, total = stages["step"], stages["total"]
        rows.append(
            [
                name,
                *(_ms(stages[stage]["median"]) for stage in shown),
                f"{_ms(step['median'])} ({_ms(step['q1'])}..{_ms(step['q3'])})",
                f"{_ms(total['median'])} ({_ms(total['min'])}..{_ms(total['max'])})",
                f"{result['ratios'][name]['total']:.2f}",
            ]
        )
    header = ["ms, median", *shown, "one step (quartiles)", "total (min..max)", f"of {base}"]
    return table(header, rows)


def fact_table(result: dict[str, Any]) -> str:
    """Counts and bytes."""
    base = result["baseline"]
    rows = [
        [
            name,
            f"{facts['image_tokens']:,}",
            f"{facts['prompt_tokens']:,}",
            facts["forwards"],
            _mb(facts.get("prefix_bytes")),
            _mb(facts["weight_bytes"]),
            _mb(facts["activation_bytes"]),
            f"{result['ratios'][name]['peak_memory_bytes']:.2f}",
            f"{result['ratios'][name]['activation_bytes']:.2f}",
        ]
        for name, facts in result["facts"].items()
    ]
    header = ["", "image tokens", "prompt", "forwards", "prefix cache MB", "weights MB", "beside them MB"]
    return table([*header, f"peak of {base}", f"beside, of {base}"], rows)


def first_line(result: dict[str, Any]) -> str:
    """How long the first answers took, which do not count: a compiled system's waits for the compiler."""
    first = {name: facts["first_seconds"] for name, facts in result["facts"].items() if "first_seconds" in facts}
    return f"First answers: {', '.join(f'{name} {_ms(each)} ms' for name, each in first.items())}." if first else ""


def share_lines(result: dict[str, Any]) -> str:
    """What selection is of the time of each system that selects."""
    lines = []
    for name, stages in result["systems"].items():
        median = {stage: each["median"] for stage, each in stages.items()}
        image = median["encode"] + median["select"] + median["project"]
        if median["select"]:
            lines.append(
                f"- Selection of {name}: {median['select'] / median['total']:.1%} of the total, "
                f"{median['select'] / image:.1%} of encode + select + project."
            )
    return "\n".join(lines)


def saving_lines(result: dict[str, Any]) -> str:
    """What a smaller prefix cache costs once and saves."""
    return "\n".join(
        f"- {name}: {_ms(each['evict_seconds'])} ms once, {_mb(each['saved_bytes'])} MB of cache saved "
        f"({each['kept_share']:.0%} kept), a step {_ms(abs(each['saved_step_seconds']))} ms "
        f"{'shorter' if each['saved_step_seconds'] > 0 else 'longer'} than with {each['against']}."
        for name, each in result["prefix"].items()
    )


def selection_table(result: dict[str, Any]) -> str:
    """Every method in its own system, and alone as the number of patches grows."""
    rows = []
    for method, grown in result["methods"].items():
        stages = result["systems"][grown["system"]]
        parts = [stages[name]["median"] for name in ("encode", "select", "project")]
        share = parts[1] / sum(parts)
        alone = [_ms(each) for each in grown["seconds"]]
        rows.append(
            [
                method,
                grown["system"],
                _ms(parts[1]),
                f"{share:.1%}",
                *alone,
                f"{grown['exponent']:.2f}",
                grown["order"],
                _ms(grown["signal_seconds"][-1]),
            ]
        )
    patches = next(iter(result["methods"].values()))["patches"]
    header = ["method", "in system", "select ms", "of encode + select + project", *(f"N = {n:,} ms" for n in patches)]
    return table([*header, "exponent", "growth", f"signals at {patches[-1]:,} ms"], rows)


def full_size_line(share: dict[str, Any]) -> str:
    """SHIRG's selection at full size, by counted operations."""
    counts = {name: each["flops"] + each["elements"] for name, each in share["operations"].items()}
    return (
        f"Counted at the full size (8.4 billion weights, {share['prompt_tokens']:,} tokens of prompt): selection of "
        f"{share['system']} {counts['select'] / 1e9:.1f} G operations, encode {counts['encode'] / 1e9:,.0f} G, prefix "
        f"{counts['prefix'] / 1e9:,.0f} G: {share['share']:.2%} of both; {share['share_with_dropped']:.2%} with the "
        "projection of the patches that are dropped."
    )


def curve_table(curve: dict[str, Any]) -> str:
    """Cost and cost per unit along one axis."""
    rows = [
        [point["row"], f"{point['units']:,}", _ms(point["seconds"]), _ms(point["seconds_per_unit"])]
        for each in curve["systems"].values()
        for point in each["points"]
    ]
    header = ["row", f"{curve['unit']}s", f"{' + '.join(curve['stages'])} ms", f"ms per {curve['unit']}"]
    fits = [
        f"{name}: cost grows with the power {each['exponent']:.2f} of the {curve['unit']}s."
        for name, each in curve["systems"].items()
    ]
    return "\n\n".join([table(header, rows), *fits])


def limit_table(limits: dict[str, Any]) -> str:
    """Each stage beside its floor."""
    rates = limits["rates"]
    rows = [
        [
            name,
            stage,
            _ms(each["reached"]),
            _ms(each["floor"]),
            each["bound"],
            f"{each['factor']:.2f}",
            f"{each['flops'] / 1e9:,.1f}",
            _mb(each["bytes"]),
        ]
        for name, stages in limits["systems"].items()
        for stage, each in stages.items()
    ]
    measured = (
        f"Measured in the same run: {rates['bytes_per_second'] / 1e9:,.1f} GB/s of memory, "
        f"{rates['flops_per_second'] / 1e9:,.0f} GFLOP/s of matrix products."
    )
    header = ["system", "stage", "reached ms", "floor ms", "floor is of", "factor", "GFLOP", "MB"]
    return f"{measured}\n\n{table(header, rows)}"


def operator_lines(limits: dict[str, Any]) -> str:
    """Where the time of an answer goes by torch's operators, by their own time."""
    lines = []
    for name, operators in limits["operators"].items():
        shares = ", ".join(f"{each['operator']} {each['share']:.0%}" for each in operators)
        lines.append(f"- {name}: {shares}.")
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}" if seconds >= 0.001 or seconds == 0 else f"{1000 * seconds:.3f}"


def _mb(count: int | None) -> str:
    return "none" if count is None else f"{count / _MEGABYTE:,.1f}"
