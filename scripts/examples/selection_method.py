"""Try a selection method of your own, before it gets a name: it stands in for the control `uniform`.

    python scripts/examples/selection_method.py --questions 40

Same views and budget, same weights, same rendered questions: exact matches of `shirg`, of `uniform` and of the new
rule. To keep a method, see "Adding a selection method" in CONTRIBUTING.md: with a preset, every test of the other
methods runs for it too.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modeling_shirg.running.ask import ask, conversation
from modeling_shirg.running.load import Loaded, load
from modeling_shirg.scenes import scene
from modeling_shirg.selection_shirg import METHODS, Selection, SelectionMethod, ViewTokens, top_k


def most_edges(view: ViewTokens, budget: int, config: Any) -> Selection:
    """The patches with the most Sobel energy: where something is drawn."""
    return Selection(top_k(view.ranking(view.edges), budget), view.edges)


NEW = SelectionMethod(most_edges, frozenset({"edges"}), ranks=True)


@contextmanager
def standing_in(name: str, method: SelectionMethod) -> Iterator[None]:
    """`method` runs wherever a config names `name`."""
    before, METHODS[name] = METHODS[name], method
    try:
        yield
    finally:
        METHODS[name] = before


def exact_matches(loaded: Loaded, questions: int) -> int:
    """Number of questions about rendered grids that are answered right."""
    right = 0
    for index in range(questions):
        drawn = scene("entity_grid", "test", index)
        question = drawn.questions[index % len(drawn.questions)]
        right += ask(loaded, [conversation(drawn.image, question.text)]).texts == [question.answer]
    return right


def main(args: argparse.Namespace) -> None:
    """Print a line per method."""
    control = load(None, "uniform")
    print(f"shirg: {exact_matches(load(None, 'shirg'), args.questions)} of {args.questions}")
    print(f"uniform: {exact_matches(control, args.questions)} of {args.questions}")
    with standing_in("uniform", NEW):
        print(f"most_edges: {exact_matches(control, args.questions)} of {args.questions}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=40)
    main(parser.parse_args())
