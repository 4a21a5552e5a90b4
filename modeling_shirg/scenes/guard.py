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
    for mark in marks:
        shape = scene.marks[mark]
        side = shape.box[2] - shape.box[0]
        ask_color = f"What color is the {shape.label}?"
        ask_shape = f"What shape is {shape.color}?"
        scene.questions.append(Question(ask_color, shape.color, "color", shape.box, side, ((mark,),), shape.label))
        scene.questions.append(Question(ask_shape, shape.label, "shape", shape.box, side, ((mark,),), shape.color))
    smallest = min(scene.marks[mark].box[2] - scene.marks[mark].box[0] for mark in marks)
    box, everything = scene.ink_box(marks), (tuple(marks),)
    scene.questions.append(Question("How many shapes are there?", str(count), "count", box, smallest, everything))
    return scene
