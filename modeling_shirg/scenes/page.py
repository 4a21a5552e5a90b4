"""Pages covered with characters and shapes, without questions: training data of the vision tower."""

import numpy as np

from modeling_shirg.scenes.drawing import CHARACTERS, COLORS, INKS, SHAPES, Scene, canvas, pick, text_width


def draw_page(rng: np.random.Generator, width: int, height: int, scale: float) -> Scene:
    """Lines of characters, each line of its own size from 7 to 36 pixels at scale 1, with shapes among them."""
    page = Scene(canvas(rng, width, height))
    top = rng.uniform(0, 10)
    while True:
        size = scale * float(np.exp(rng.uniform(np.log(7), np.log(36))))
        line = size * rng.uniform(1.4, 2.0)
        if top + line > height:
            return page
        _draw_line(page, rng, top + line / 2, size)
        top += line


def _draw_line(page: Scene, rng: np.random.Generator, middle: float, size: float) -> None:
    """Words of one to four characters, or a shape, until the line is full."""
    color = pick(rng, INKS)
    left = rng.uniform(0, 2 * size)
    while True:
        word = "".join(pick(rng, CHARACTERS) for _ in range(int(rng.integers(1, 5))))
        is_shape = rng.random() < 0.2
        length = 1.3 * size if is_shape else text_width(word, size)
        if left + length + 2 > page.image.width:
            return
        if is_shape:
            page.draw_shape(pick(rng, SHAPES), (left + 0.65 * size, middle), 1.3 * size, pick(rng, tuple(COLORS)))
        else:
            page.write(word, left, middle, size, color)
        left += length + size * rng.uniform(0.5, 3.0)
