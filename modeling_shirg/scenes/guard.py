"""Guard: colour, shape and number of a few large shapes. No system should lose these."""

import numpy as np

from modeling_shirg.scenes.drawing import COLORS, SHAPES, Question, Scene, canvas

_QUARTERS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))


def draw_guard(
    rng: np.random.Generator, width: int, height: int, scale: float, shapes: tuple[int, int] = (1, 4)
) -> Scene:
    """Shapes of different kinds and colours, at most one in a quarter of the image; sizes follow the image's sides."""
    scene = Scene(canvas(rng, width, height))
    count = int(rng.integers(shapes[0], shapes[1] + 1))
    kinds = [str(kind) for kind in rng.permutation(SHAPES)[:count]]
    colors = [str(color) for color in rng.permutation(list(COLORS))[:count]]
    quarters = rng.permutation(len(_QUARTERS))[:count]
    marks = []
    for kind, color, quarter in zip(kinds, colors, quarters, strict=True):
        size = rng.uniform(0.22, 0.36) * min(width, height)
        x, y = np.array(_QUARTERS[quarter]) + rng.uniform(-0.06, 0.06, size=2)
        marks.append(scene.draw_shape(kind, (x * width, y * height), size, color))
    sides = [scene.marks[mark].box[2] - scene.marks[mark].box[0] for mark in marks]
    for mark, side in zip(marks, sides, strict=True):
        shape = scene.marks[mark]
        color, shown = (f"What color is the {shape.label}?", shape.color, "color"), (shape.box, side, ((mark,),))
        scene.questions.append(Question(*color, *shown, shape.label))
        scene.questions.append(Question(f"What shape is {shape.color}?", shape.label, "shape", *shown, shape.color))
    everything = (scene.ink_box(marks), min(sides), (tuple(marks),))
    scene.questions.append(Question("How many shapes are there?", str(count), "count", *everything))
    return scene
