"""Optional changes to training images: scale, blur, contrast. Never a flip: mirrored text is no text."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

# An image is drawn at 1 / MAX_SCALE to MAX_SCALE of its size, evenly in the logarithm.
MAX_SCALE = 1.25
# Half of the images are blurred, by a Gaussian of at most so many pixels.
MAX_BLUR = 1.0
# The contrast is changed by at most this share.
MAX_CONTRAST = 0.2


def augmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The RGB image scaled, half of the time blurred, and with another contrast; `rng` decides how much."""
    scale = MAX_SCALE ** rng.uniform(-1, 1)
    blur = max(0.0, MAX_BLUR * rng.uniform(-1, 1))
    contrast = 1 + MAX_CONTRAST * rng.uniform(-1, 1)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    if blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    return ImageEnhance.Contrast(image).enhance(contrast)
