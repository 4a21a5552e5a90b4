"""Image processor of SHIRG-LaViDa: from an image to its views and to the boxes that their patches cover.

Pixels are LaViDa's bit for bit: PIL bicubic on 8-bit RGB, x / 255, (x - 0.5) / 0.5 in float32. What counts as the
image is in image_reading_shirg, geometry in geometry_shirg.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .geometry_shirg import (
    canvas_tiles,
    check_pinpoints,
    fit_to_canvas,
    fovea_box,
    fovea_box_around,
    mosaic_window,
    patch_boxes,
    salient_box,
    select_best_resolution,
    tile_boxes,
)
from .image_reading_shirg import fetch_image, upright_rgb
from .presets_shirg import GEOMETRIES


class ShirgLavidaImagesKwargs(ImagesKwargs, total=False):
    """Arguments of `ShirgLavidaImageProcessor` besides the usual ones.

    Attributes:
        patch_size: side of a patch in pixels of a view.
        view_policy: `foveal` (the whole image and one fovea), `whole` (the whole image at `fovea_size`), `anyres` (the
            whole image and the tiles of a padded canvas), `pad` (the whole image, padded to a square in grey) or
            `square` (the whole image, squashed).
        fovea_size: side of the fovea in pixels; ignored without a fovea. Another one at call time than the config's
            adds `fovea_size` for the model, which then interpolates positions.
        fovea_placement: `center`, `salient` (most edge energy) or `box` (around `fovea_boxes`).
        image_grid_pinpoints: canvases (width, height) that `anyres` may choose from.
        mosaic_grid_size: side of a tile's token grid, if the tiles are joined to a mosaic without padding
            (`patch_merge_type="spatial_unpad"`); adds `mosaic_windows`.
        selection_budget: number of tokens that the model selects of each image, the config's; another one at call
            time adds `selection_budget` for the model.
        fovea_boxes: at call time only, one (left, top, right, bottom) per image in pixels of the upright original, or
            `None` for an image whose fovea is placed at the centre or by salience.
    """

    patch_size: int | None
    view_policy: Literal["foveal", "whole", "anyres", "pad", "square"] | None
    fovea_size: int | None
    fovea_placement: Literal["center", "salient", "box"] | None
    image_grid_pinpoints: list | tuple | None
    mosaic_grid_size: int | None
    selection_budget: int | None
    fovea_boxes: list | tuple | None


class Views(NamedTuple):
    """Views of one image: base-size ones, foveal ones, and the box that each shows (base views first)."""

    base: list[Image.Image]
    fovea: list[Image.Image]
    boxes_V4: np.ndarray


class ShirgLavidaImageProcessor(PilBackend):
    r"""Cuts images into views. Defaults are the full geometry of the `shirg` preset; `from_config` takes any other.

    Returns a `BatchFeature` with

    - `pixel_values`: float32 (views of all images, 3, S, S): one per image, S = F with `whole`; with `anyres` the
      whole image, then its tiles row-major;
    - `fovea_pixel_values`: float32 (images, 3, F, F), only with `foveal`;
    - `patch_boxes`: float32 (images, N, 4), (x, y, width, height) of every patch as fractions of the upright original,
      in the order of the views, base views first, raster order within a view;
    - `view_boxes`: float32 (images, V, 4), (left, top, right, bottom) of every view in pixels of the upright original;
    - `image_sizes`: int64 (images, 2), (height, width) of the upright original;
    - `selection_budget`: int64 (images,), only if the call asked for another number of selected tokens;
    - `fovea_size`: int64 (images,), only if the call asked for a fovea (a view, with `whole`) of another size;
    - `mosaic_windows`: int64 (images, 6), only with `mosaic_grid_size`: the tile rows and columns of the image's
      canvas, then top, bottom, left and right of the part of the mosaic that shows the image, in tokens.

    Patches and views that show the padding of a canvas have boxes outside the image. Where `anyres` gives the images
    of a batch different numbers of views, both kinds of boxes are filled up at the end with boxes of zero area.

    Raises:
        ValueError: an image cannot be read, has no pixels or too many; or no fovea box was given where one is needed.
            The message names the index of the image.
    """

    valid_kwargs = ShirgLavidaImagesKwargs
    model_input_names = [
        "pixel_values",
        "fovea_pixel_values",
        "patch_boxes",
        "image_sizes",
        "view_boxes",
        "mosaic_windows",
        "selection_budget",
        "fovea_size",
    ]

    size = {"height": GEOMETRIES["full"]["image_size"], "width": GEOMETRIES["full"]["image_size"]}
    patch_size = 14
    # Written into what is saved, also by one that was made from a config in a process without this package.
    _auto_class = "AutoImageProcessor"

    view_policy = "foveal"
    fovea_size = GEOMETRIES["full"]["fovea_size"]
    fovea_placement = "center"
    image_grid_pinpoints = None
    mosaic_grid_size = None
    selection_budget = None
    fovea_boxes = None
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
        if self.fovea_boxes is not None:
            raise ValueError("fovea_boxes belong to a call: image_processor(images, fovea_boxes=[...]).")
        if self.view_policy not in ("foveal", "whole"):
            self.fovea_size = None
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def from_config(cls, config, **overrides) -> "ShirgLavidaImageProcessor":
        """The image processor whose views a model with this `ShirgLavidaConfig` expects."""
        base = config.vision_config.image_size
        fields = {
            "size": {"height": base, "width": base},
            "patch_size": config.vision_config.patch_size,
            "view_policy": config.view_policy,
            "fovea_size": config.fovea_size,
            "fovea_placement": config.fovea_placement,
            "image_grid_pinpoints": config.image_grid_pinpoints,
            "mosaic_grid_size": config.view_grid if config.has_mosaic else None,
            "selection_budget": config.selection_budget,
        }
        return cls(**{**fields, **overrides})

    def fetch_images(self, images: Any) -> Any:
        """Opens what is given as a path, URL, data URL, base64 string or bytes, with the nesting kept.

        Arrays of shape (H, W) become PIL images, batches of shape (B, ...) lists; anything else is handed on as it is.
        """
        count = itertools.count()
        return _map_nested(lambda image: fetch_image(image, next(count)), images)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        image_index: int = 0,
        **kwargs,
    ) -> Image.Image:
        """The upright 8-bit RGB image, as image_reading_shirg says. `image_index` is for error messages."""
        return upright_rgb(image, image_index, input_data_format)

    def _prepare_image_like_inputs(self, images: ImageInput, *args, expected_ndims: int = 3, **kwargs):
        flat = _flatten(self.fetch_images(images))
        if not flat:
            raise ValueError("ShirgLavidaImageProcessor was called with 0 images.")
        return [self.process_image(image, image_index=index, **kwargs) for index, image in enumerate(flat)]

    def _preprocess(
        self,
        images: list[Image.Image],
        size: SizeDict,
        patch_size: int,
        view_policy: str,
        fovea_size: int | None,
        fovea_placement: str,
        fovea_boxes: Sequence | None,
        image_grid_pinpoints: Sequence | None,
        mosaic_grid_size: int | None,
        selection_budget: int | None,
        resample: PILImageResampling,
        return_tensors: str | TensorType | None,
        **pixel_kwargs,
    ) -> BatchFeature:
        if view_policy != "foveal" and fovea_boxes is not None:
            raise ValueError(f"view_policy={view_policy!r} has no fovea, got fovea_boxes.")
        if view_policy == "anyres":
            views = [_anyres_views(image, size.height, image_grid_pinpoints, resample) for image in images]
        elif view_policy == "pad":
            # The mean colour, which is 0 after normalisation; rounded down, as in the original.
            grey = tuple(np.broadcast_to(255 * np.asarray(pixel_kwargs["image_mean"]), 3).astype(int).tolist())
            views = [_padded_view(image, size.height, grey, resample) for image in images]
        elif view_policy in ("square", "whole"):
            side = size.height if view_policy == "square" else fovea_size
            views = [_squashed_view(image, side, resample) for image in images]
        else:
            boxes = _fovea_boxes(images, fovea_size, fovea_placement, fovea_boxes)
            views = [
                _foveal_views(image, size.height, fovea_size, box, resample)
                for image, box in zip(images, boxes, strict=True)
            ]
        data = {"pixel_values": self._pixels([view for item in views for view in item.base], **pixel_kwargs)}
        if view_policy == "foveal":
            data["fovea_pixel_values"] = self._pixels([view for item in views for view in item.fovea], **pixel_kwargs)
        data["patch_boxes"] = _stack(
            [_all_patch_boxes(item, image, patch_size) for item, image in zip(views, images, strict=True)]
        )
        data["view_boxes"] = _stack([item.boxes_V4 for item in views])
        data["image_sizes"] = np.array([(image.height, image.width) for image in images], dtype=np.int64)
        if selection_budget != self.selection_budget:
            data["selection_budget"] = np.full(len(images), selection_budget, dtype=np.int64)
        if view_policy in ("foveal", "whole") and fovea_size != self.fovea_size:
            data["fovea_size"] = np.full(len(images), fovea_size, dtype=np.int64)
        if mosaic_grid_size is not None:
            data["mosaic_windows"] = np.array(
                [_mosaic_window(image, size.height, image_grid_pinpoints, mosaic_grid_size) for image in images],
                dtype=np.int64,
            )
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _pixels(
        self,
        views: list[Image.Image],
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        **unused_kwargs,
    ) -> np.ndarray:
        """Views of one size as float32 (V, 3, S, S)."""
        pixels = []
        for view in views:
            pixels_3SS = np.moveaxis(np.asarray(view), -1, 0)
            if do_rescale:
                pixels_3SS = self.rescale(pixels_3SS, rescale_factor)
            if do_normalize:
                pixels_3SS = self.normalize(pixels_3SS, image_mean, image_std)
            pixels.append(pixels_3SS)
        return np.stack(pixels).astype(np.float32)

    def _validate_preprocess_kwargs(self, **kwargs):
        super()._validate_preprocess_kwargs(**kwargs)
        fixed = {"do_resize": True, "do_convert_rgb": True, "do_center_crop": False, "do_pad": False}
        for name, needed in fixed.items():
            if bool(kwargs[name]) != needed:
                raise ValueError(f"Views are RGB and have a fixed size: {name} must be {needed}, got {kwargs[name]}.")
        _validate_geometry(**{name: kwargs[name] for name in ("size", "patch_size", "view_policy", "fovea_size")})
        budget = kwargs["selection_budget"]
        if budget is not None and (self.selection_budget is None or budget < 1):
            raise ValueError(
                f"selection_budget={budget} must be at least 1, for a preset that chooses tokens; this one "
                f"{'chooses none' if self.selection_budget is None else f'chooses {self.selection_budget}'}."
            )
        if kwargs["mosaic_grid_size"] is not None and kwargs["view_policy"] != "anyres":
            raise ValueError(
                f"A mosaic needs view_policy='anyres', got {kwargs['view_policy']!r} with "
                f"mosaic_grid_size={kwargs['mosaic_grid_size']}."
            )
        if kwargs["view_policy"] == "anyres":
            check_pinpoints(kwargs["image_grid_pinpoints"], kwargs["size"].height)
        elif kwargs["fovea_placement"] not in ("center", "salient", "box"):
            raise ValueError(f"fovea_placement must be center, salient or box, got {kwargs['fovea_placement']!r}.")


def _validate_geometry(size: SizeDict, patch_size: int, view_policy: str, fovea_size: int | None):
    if size.height is None or size.height != size.width:
        raise ValueError(f"The base view is square: size needs equal height and width, got {dict(size)}.")
    if not 1 <= patch_size <= size.height:
        raise ValueError(f"patch_size={patch_size} must be between 1 and the base view's {size.height} pixels.")
    if view_policy not in ("foveal", "whole", "anyres", "pad", "square"):
        raise ValueError(f"view_policy must be foveal, whole, anyres, pad or square, got {view_policy!r}.")
    if view_policy in ("foveal", "whole") and (fovea_size is None or fovea_size < patch_size):
        raise ValueError(f"view_policy={view_policy!r} needs fovea_size >= patch_size={patch_size}, got {fovea_size}.")


def _map_nested(function: Callable, images: Any) -> Any:
    if isinstance(images, (list, tuple)):
        return [_map_nested(function, image) for image in images]
    return function(images)


def _flatten(images: Any) -> list:
    if isinstance(images, (list, tuple)):
        return [leaf for image in images for leaf in _flatten(image)]
    return [images]


# Views


def _foveal_views(image: Image.Image, base: int, fovea_size: int, box: tuple, resample: PILImageResampling) -> Views:
    whole = (0, 0, image.width, image.height)
    return Views(
        base=[_resized(image, (base, base), resample)],
        fovea=[_resized(image if box == whole else image.crop(box), (fovea_size, fovea_size), resample)],
        boxes_V4=np.array([whole, box], dtype=np.float64),
    )


def _anyres_views(image: Image.Image, base: int, pinpoints: Sequence, resample: PILImageResampling) -> Views:
    canvas = select_best_resolution(image.width, image.height, pinpoints)
    fitted_width, fitted_height, paste_x, paste_y = fit_to_canvas(image.width, image.height, canvas)
    padded = Image.new("RGB", canvas, (0, 0, 0))
    padded.paste(_resized(image, (fitted_width, fitted_height), resample), (paste_x, paste_y))
    whole = np.array([[0, 0, image.width, image.height]], dtype=np.float64)
    return Views(
        base=[_resized(image, (base, base), resample), *(padded.crop(tile) for tile in canvas_tiles(canvas, base))],
        fovea=[],
        boxes_V4=np.concatenate([whole, tile_boxes(image.width, image.height, canvas, base)]),
    )


def _squashed_view(image: Image.Image, base: int, resample: PILImageResampling) -> Views:
    whole = np.array([[0, 0, image.width, image.height]], dtype=np.float64)
    return Views(base=[_resized(image, (base, base), resample)], fovea=[], boxes_V4=whole)


def _padded_view(image: Image.Image, base: int, grey: tuple[int, ...], resample: PILImageResampling) -> Views:
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    padded = Image.new("RGB", (side, side), grey)
    padded.paste(image, (left, top))
    shown = np.array([[-left, -top, side - left, side - top]], dtype=np.float64)
    return Views(base=[_resized(padded, (base, base), resample)], fovea=[], boxes_V4=shown)


def _mosaic_window(image: Image.Image, base: int, pinpoints: Sequence, view_grid: int) -> tuple[int, ...]:
    canvas = select_best_resolution(image.width, image.height, pinpoints)
    return mosaic_window(image.width, image.height, canvas, base, view_grid)


def _fovea_boxes(
    images: list[Image.Image], fovea_size: int, placement: str, requested: Sequence | None
) -> list[tuple]:
    """The box of every image's fovea; `requested` as `fovea_boxes` of the image processor."""
    if requested is not None and len(requested) != len(images):
        raise ValueError(f"fovea_boxes needs one entry per image, got {len(requested)} for {len(images)} images.")
    boxes = []
    for index, image in enumerate(images):
        request = None if requested is None else requested[index]
        if request is not None:
            boxes.append(_requested_box(image, index, fovea_size, request))
        elif placement == "box":
            raise ValueError(
                f"fovea_placement='box' needs a box for image {index}: pass fovea_boxes=[(left, top, right, bottom), "
                "...] in pixels of the upright image, or fovea_placement='center' or 'salient'."
            )
        elif placement == "salient":
            boxes.append(salient_box(np.asarray(image.convert("L")), fovea_size))
        else:
            boxes.append(fovea_box(image.width, image.height, fovea_size))
    return boxes


def _requested_box(image: Image.Image, index: int, fovea_size: int, request: Sequence[float]) -> tuple:
    if not isinstance(request, Sequence | np.ndarray):
        raise ValueError(f"fovea_boxes[{index}] must be (left, top, right, bottom) or None, got {request!r}.")
    try:
        return fovea_box_around(image.width, image.height, fovea_size, [float(edge) for edge in request])
    except (TypeError, ValueError) as error:
        raise ValueError(f"fovea_boxes[{index}]: {error}") from None


def _resized(image: Image.Image, size: tuple[int, int], resample: PILImageResampling) -> Image.Image:
    """The image at `size` (width, height), the same bits with every Pillow.

    Resampling goes one direction at a time with 8 bits in between, so the order shows. Pillow 13, which made the
    reference outputs, takes the height first where it loses more than twice the pixels that the width does (pull
    request 9549); 12.2 and 12.3 where it shrinks and the image is more than 100 times as high as wide; older ones
    never.
    """
    width, height = size
    if image.height > height and image.height - height > 2 * (image.width - width):
        between = (image.width, height)
    else:
        between = (width, image.height)
    for step in (between, size):
        image = image if image.size == step else image.resize(step, resample)
    return image


def _all_patch_boxes(views: Views, image: Image.Image, patch_size: int) -> np.ndarray:
    """float32 (N, 4), the patches of all views of one image."""
    sizes = [view.width for view in (*views.base, *views.fovea)]
    return np.concatenate(
        [
            patch_boxes(box, image.width, image.height, size, patch_size)
            for box, size in zip(views.boxes_V4, sizes, strict=True)
        ]
    )


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """float32 (images, longest, 4); shorter rows are filled up with zeros."""
    stacked = np.zeros((len(rows), max(len(row) for row in rows), 4), dtype=np.float32)
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
    return stacked
