"""Image processor of SHIRG-LaViDa: from an image to its views and to the boxes that their patches cover.

Pixels are LaViDa's bit for bit: PIL bicubic on 8-bit RGB, x / 255, (x - 0.5) / 0.5 in float32.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack

from .geometry_shirg import (
    canvas_tiles,
    check_budget,
    check_views,
    fit_to_canvas,
    fovea_box,
    grid_side,
    mosaic_window,
    num_base_views,
    patch_boxes,
    salient_box,
    select_best_resolution,
    tile_boxes,
)
from .image_reading_shirg import read_image
from .presets_shirg import GEOMETRIES

# A square view and the box that it shows, in pixels of the upright original.
View = tuple[Image.Image, Sequence[float]]


class ShirgLavidaImagesKwargs(ImagesKwargs, total=False):
    """Arguments of `ShirgLavidaImageProcessor` besides the usual ones; those of the config have its names."""

    patch_size: int | None
    view_policy: Literal["foveal", "whole", "anyres", "pad", "square"] | None
    fovea_size: int | None  # a call with another size than the config's returns `fovea_size` for the model
    fovea_placement: Literal["center", "salient", "box"] | None
    image_grid_pinpoints: list | tuple | None
    mosaic_grid_size: int | None  # side of a tile's token grid with patch_merge_type="spatial_unpad"
    selection_budget: int | None  # a call with another number than the config's returns `selection_budget`
    # One (left, top, right, bottom) per image in pixels of the upright original, or `None` for an image whose fovea is
    # placed at the centre or by salience.
    fovea_boxes: list | tuple | None


class ShirgLavidaImageProcessor(PilBackend):
    r"""Cuts images into views. Defaults are the full geometry of the `shirg` preset; `from_config` takes any other.

    Returns a `BatchFeature` with

    - `pixel_values`: float32 (views of all images, 3, S, S), of each image the whole, then its tiles row-major, and
      `fovea_pixel_values`: float32 (images, 3, F, F), only with `view_policy="foveal"`;
    - `patch_boxes`: float32 (images, N, 4), (x, y, width, height) of every patch as fractions of the upright original,
      and `view_boxes`: float32 (images, V, 4), (left, top, right, bottom) of every view in its pixels. Boxes of
      padding lie outside the image. In a batch with different numbers of views, rows end in boxes of zero area;
    - `image_sizes`: int64 (images, 2), (height, width) of the upright original;
    - `selection_budget`, `fovea_size`: int64 (images,), only where the call differs from the config;
    - `mosaic_windows`: int64 (images, 6), only with `mosaic_grid_size`: what `mosaic_window` returns.

    Raises:
        ValueError: an image cannot be read, or an argument does not fit.
    """

    valid_kwargs = ShirgLavidaImagesKwargs
    # Written into saved files also by a processor that was made in a process without this package.
    _auto_class = "AutoImageProcessor"

    size = {"height": GEOMETRIES["full"]["image_size"], "width": GEOMETRIES["full"]["image_size"]}
    patch_size = 14
    view_policy = "foveal"
    fovea_size = GEOMETRIES["full"]["fovea_size"]
    fovea_placement = "center"
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    rescale_factor = 1 / 255
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    resample = PILImageResampling.BICUBIC

    def __init__(self, **kwargs: Unpack[ShirgLavidaImagesKwargs]):
        super().__init__(**kwargs)
        if self.view_policy not in ("foveal", "whole"):
            self.fovea_size = None
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def from_config(cls, config, **overrides) -> "ShirgLavidaImageProcessor":
        """The image processor whose views a model with this `ShirgLavidaConfig` expects."""
        base = config.vision_config.image_size
        shared = ("view_policy", "fovea_size", "fovea_placement", "image_grid_pinpoints", "selection_budget")
        fields = {
            **{name: getattr(config, name) for name in shared},
            "size": {"height": base, "width": base},
            "patch_size": config.vision_config.patch_size,
            "mosaic_grid_size": config.view_grid if config.has_mosaic else None,
        }
        return cls(**{**fields, **overrides})

    def fetch_images(self, images: Any) -> Any:
        """Reads images and keeps their nesting. Arrays of colour wait for the call's `input_data_format`."""
        return self._fetched(images, count())

    def _fetched(self, images: Any, numbers: Iterator[int]) -> Any:
        ndim = images.ndim if isinstance(images, (np.ndarray, torch.Tensor)) else None
        if isinstance(images, (list, tuple)) or ndim == 4:
            return [self._fetched(image, numbers) for image in images]
        number = next(numbers)
        return images if ndim == 3 else read_image(images, number)

    def _prepare_image_like_inputs(self, images: Any, *args, input_data_format=None, **kwargs) -> list[Image.Image]:
        flat = _flat(self.fetch_images(images))
        if not flat:
            raise ValueError("ShirgLavidaImageProcessor was called with 0 images.")
        return [read_image(image, index, input_data_format) for index, image in enumerate(flat)]

    def _preprocess(
        self, images: list[Image.Image], fovea_boxes: Sequence | None, return_tensors: Any, **options
    ) -> BatchFeature:
        is_foveal = options["view_policy"] == "foveal"
        requests = [None] * len(images) if fovea_boxes is None else fovea_boxes
        if fovea_boxes is not None and not is_foveal:
            raise ValueError(f"view_policy={options['view_policy']!r} has no fovea, got fovea_boxes.")
        if len(requests) != len(images):
            raise ValueError(f"fovea_boxes needs one entry per image, got {len(requests)} for {len(images)} images.")
        views = []
        for index, (image, request) in enumerate(zip(images, requests, strict=True)):
            try:
                views.append(_VIEWS[options["view_policy"]](image, request, options))
            except ValueError as error:
                raise ValueError(f"fovea_boxes[{index}]: {error}") from None
        base = [view for image in views for view in (image[:-1] if is_foveal else image)]
        data = {"pixel_values": self._pixels(base, options)}
        if is_foveal:
            data["fovea_pixel_values"] = self._pixels([image[-1] for image in views], options)
        patches = [
            np.concatenate([patch_boxes(box, *image.size, view.width, options["patch_size"]) for view, box in shown])
            for image, shown in zip(images, views, strict=True)
        ]
        data["patch_boxes"] = _stacked(patches)
        data["view_boxes"] = _stacked([box for _, box in shown] for shown in views)
        data["image_sizes"] = np.array([(image.height, image.width) for image in images], dtype=np.int64)
        for name in ("selection_budget", "fovea_size"):
            if options[name] != getattr(self, name):
                data[name] = np.full(len(images), options[name], dtype=np.int64)
        if options["mosaic_grid_size"] is not None:
            sizes = options["image_grid_pinpoints"], options["size"].height, options["mosaic_grid_size"]
            windows = [mosaic_window(*image.size, *sizes) for image in images]
            data["mosaic_windows"] = np.array(windows, dtype=np.int64)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _pixels(self, views: list[View], options: dict[str, Any]) -> np.ndarray:
        """Pixels of views of one size, float32 (V, 3, S, S)."""
        pixels = []
        for image, _ in views:
            pixels_3SS = np.moveaxis(np.asarray(image), -1, 0)
            if options["do_rescale"]:
                pixels_3SS = self.rescale(pixels_3SS, options["rescale_factor"])
            if options["do_normalize"]:
                pixels_3SS = self.normalize(pixels_3SS, options["image_mean"], options["image_std"])
            pixels.append(pixels_3SS)
        return np.stack(pixels).astype(np.float32)

    def _validate_preprocess_kwargs(self, **kwargs):
        super()._validate_preprocess_kwargs(**kwargs)
        validate_typed_dict(self.valid_kwargs, {name: kwargs[name] for name in ("view_policy", "fovea_placement")})
        for name in ("do_resize", "do_convert_rgb"):
            if not kwargs[name]:
                raise ValueError(f"Views are RGB and have a fixed size: {name} must be True, got {kwargs[name]}.")
        size, policy, pinpoints = kwargs["size"], kwargs["view_policy"], kwargs["image_grid_pinpoints"]
        if size.height is None or size.height != size.width:
            raise ValueError(f"The base view is square: size needs equal height and width, got {dict(size)}.")
        check_views(policy, size.height, kwargs["patch_size"], kwargs["fovea_size"], pinpoints)
        budget = kwargs["selection_budget"]
        if budget is not None:
            if self.selection_budget is None:
                raise ValueError(f"selection_budget={budget} needs a preset that chooses tokens; this one has none.")
            grid = grid_side(kwargs["fovea_size"] or size.height, kwargs["patch_size"])
            check_budget(budget, num_base_views(size.height, pinpoints), grid)


# One function per view policy: the views of an image, for its requested fovea box and the options of a call.


def _foveal_views(image: Image.Image, request: Sequence[float] | None, options: dict[str, Any]) -> list[View]:
    size, placement = options["fovea_size"], options["fovea_placement"]
    if request is None and placement == "box":
        raise ValueError("fovea_placement='box' needs (left, top, right, bottom) in pixels of the upright image.")
    if request is None and placement == "salient":
        box = salient_box(np.asarray(image.convert("L")), size)
    else:
        box = fovea_box(*image.size, size, request)
    fovea = image if box == (0, 0, *image.size) else image.crop(box)
    return [*_square_view(image, None, options), (_resized(fovea, (size, size), options), box)]


def _anyres_views(image: Image.Image, request: None, options: dict[str, Any]) -> list[View]:
    canvas, base = select_best_resolution(*image.size, options["image_grid_pinpoints"]), options["size"].height
    *fitted, x, y = fit_to_canvas(*image.size, canvas)
    padded = Image.new("RGB", canvas, (0, 0, 0))
    padded.paste(_resized(image, tuple(fitted), options), (x, y))
    tiles = zip(canvas_tiles(canvas, base), tile_boxes(*image.size, canvas, base), strict=True)
    return [*_square_view(image, None, options), *((padded.crop(tile), box) for tile, box in tiles)]


def _square_view(image: Image.Image, request: None, options: dict[str, Any]) -> list[View]:
    side = options["fovea_size"] if options["view_policy"] == "whole" else options["size"].height
    return [(_resized(image, (side, side), options), (0, 0, *image.size))]


def _padded_view(image: Image.Image, request: None, options: dict[str, Any]) -> list[View]:
    side, base = max(image.size), options["size"].height
    left, top = (side - image.width) // 2, (side - image.height) // 2
    # The mean colour, which is 0 after normalisation; rounded down, as in the original.
    grey = tuple(np.broadcast_to(255 * np.asarray(options["image_mean"]), 3).astype(int).tolist())
    padded = Image.new("RGB", (side, side), grey)
    padded.paste(image, (left, top))
    return [(_resized(padded, (base, base), options), (-left, -top, side - left, side - top))]


_VIEWS = {
    "foveal": _foveal_views,
    "whole": _square_view,
    "anyres": _anyres_views,
    "pad": _padded_view,
    "square": _square_view,
}


def _resized(image: Image.Image, size: tuple[int, int], options: dict[str, Any]) -> Image.Image:
    """The image at `size` (width, height), the same bits with every Pillow.

    Pillow resamples one direction at a time with 8 bits in between, in an order that depends on its version (pull
    request 9549). The order here is that of Pillow 13, which made the reference outputs.
    """
    width, height = size
    if image.height > height and image.height - height > 2 * (image.width - width):
        between = (image.width, height)
    else:
        between = (width, image.height)
    for step in (between, size):
        image = image if image.size == step else image.resize(step, options["resample"])
    return image


def _flat(images: Any) -> list:
    return [leaf for image in images for leaf in _flat(image)] if isinstance(images, list) else [images]


def _stacked(boxes: Iterable[Any]) -> np.ndarray:
    """Boxes of every image as float32 (images, longest, 4), shorter rows filled up with zeros."""
    rows = [np.asarray(row, dtype=np.float32) for row in boxes]
    stacked = np.zeros((len(rows), max(map(len, rows)), 4), dtype=np.float32)
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
    return stacked
