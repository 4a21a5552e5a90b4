"""Image processor of SHIRG-LaViDa: from an image to its views and to the boxes that their patches cover.

Pixels are LaViDa's bit for bit: PIL bicubic on 8-bit RGB, x / 255, (x - 0.5) / 0.5 in float32. Geometry is in
geometry_shirg.

What counts as the image: the first frame of an animation (the current one, if the caller moved on), turned upright by
its EXIF orientation, as 8-bit RGB. Without transparency that is PIL's `convert("RGB")`, as in LaViDa; transparent
pixels are composited on white, where LaViDa shows whatever colour lies under them. Deeper pixels are scaled to 8 bit:
16-bit by 1/257; other integers and floats by 255 if floats within 0..1, by 1 if within 0..255, by 1/257 if within
0..65535, and are else refused.
"""

import base64
import itertools
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from huggingface_hub import get_session
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from .geometry_shirg import (
    canvas_tiles,
    fit_to_canvas,
    fovea_box,
    fovea_box_around,
    patch_boxes,
    salient_box,
    select_best_resolution,
    tile_boxes,
)

_BOMB_ERRORS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_BOMB_HINT = " If you trust the image, raise PIL.Image.MAX_IMAGE_PIXELS: up to twice that many pixels are accepted."
# What PIL raises for a file that is broken, truncated, closed or too large.
_PIL_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, *_BOMB_ERRORS)
_CHANNELS = (1, 3, 4)


class ShirgLavidaImagesKwargs(ImagesKwargs, total=False):
    """Arguments of `ShirgLavidaImageProcessor` besides the usual ones.

    Attributes:
        patch_size: side of a patch in pixels of a view.
        view_policy: `foveal` (the whole image and one fovea) or `anyres` (the whole image and the tiles of a padded
            canvas).
        fovea_size: side of the fovea in pixels; ignored by `anyres`.
        fovea_placement: `center`, `salient` (most edge energy) or `box` (around `fovea_boxes`).
        image_grid_pinpoints: canvases (width, height) that `anyres` may choose from.
        fovea_boxes: at call time only, one (left, top, right, bottom) per image in pixels of the upright original, or
            `None` for an image whose fovea is placed at the centre or by salience.
    """

    patch_size: int | None
    view_policy: Literal["foveal", "anyres"] | None
    fovea_size: int | None
    fovea_placement: Literal["center", "salient", "box"] | None
    image_grid_pinpoints: list | tuple | None
    fovea_boxes: list | tuple | None


class Views(NamedTuple):
    """Views of one image: base-size ones, foveal ones, and the box that each shows (base views first)."""

    base: list[Image.Image]
    fovea: list[Image.Image]
    boxes_V4: np.ndarray


class ShirgLavidaImageProcessor(PilBackend):
    r"""Cuts images into views. Defaults are the full geometry of the `shirg` preset; `from_config` takes any other.

    Returns a `BatchFeature` with

    - `pixel_values`: float32 (views of all images, 3, S, S), the base views: one per image with `foveal`; with
      `anyres` the whole image, then its tiles row-major;
    - `fovea_pixel_values`: float32 (images, 3, F, F), only with `foveal`;
    - `patch_boxes`: float32 (images, N, 4), (x, y, width, height) of every patch as fractions of the upright original,
      in the order of the views, base views first, raster order within a view;
    - `view_boxes`: float32 (images, V, 4), (left, top, right, bottom) of every view in pixels of the upright original;
    - `image_sizes`: int64 (images, 2), (height, width) of the upright original.

    Patches and views that show the padding of a canvas have boxes outside the image. Where `anyres` gives the images
    of a batch different numbers of views, both kinds of boxes are filled up at the end with boxes of zero area.

    Raises:
        ValueError: an image cannot be read, has no pixels or too many; or no fovea box was given where one is needed.
            The message names the index of the image.
    """

    valid_kwargs = ShirgLavidaImagesKwargs
    model_input_names = ["pixel_values", "fovea_pixel_values", "patch_boxes", "image_sizes", "view_boxes"]

    size = {"height": 384, "width": 384}
    patch_size = 14
    view_policy = "foveal"
    fovea_size = 448
    fovea_placement = "center"
    image_grid_pinpoints = None
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
        if self.view_policy == "anyres":
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
        }
        return cls(**{**fields, **overrides})

    def fetch_images(self, images: Any) -> Any:
        """Opens what is given as a path, URL, data URL, base64 string or bytes, with the nesting kept.

        Arrays of shape (H, W) become PIL images, batches of shape (B, ...) lists; anything else is handed on as it is.
        """
        count = itertools.count()
        return _map_nested(lambda image: _fetch_image(image, next(count)), images)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        image_index: int = 0,
        **kwargs,
    ) -> Image.Image:
        """The upright 8-bit RGB image, as the module says. `image_index` is for error messages."""
        if isinstance(image, Image.Image):
            return _read(lambda: _upright_rgb(image), image_index, image.size)
        return _read(lambda: _upright_rgb(_image_of_array(image, input_data_format)), image_index, tuple(image.shape))

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
        resample: PILImageResampling,
        return_tensors: str | TensorType | None,
        **pixel_kwargs,
    ) -> BatchFeature:
        if view_policy == "anyres":
            if fovea_boxes is not None:
                raise ValueError("view_policy='anyres' has no fovea, got fovea_boxes.")
            views = [_anyres_views(image, size.height, image_grid_pinpoints, resample) for image in images]
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
        if kwargs["view_policy"] == "anyres":
            _validate_pinpoints(kwargs["image_grid_pinpoints"], kwargs["size"].height)
        elif kwargs["fovea_placement"] not in ("center", "salient", "box"):
            raise ValueError(f"fovea_placement must be center, salient or box, got {kwargs['fovea_placement']!r}.")


def _validate_geometry(size: SizeDict, patch_size: int, view_policy: str, fovea_size: int | None):
    if size.height is None or size.height != size.width:
        raise ValueError(f"The base view is square: size needs equal height and width, got {dict(size)}.")
    if not 1 <= patch_size <= size.height:
        raise ValueError(f"patch_size={patch_size} must be between 1 and the base view's {size.height} pixels.")
    if view_policy not in ("foveal", "anyres"):
        raise ValueError(f"view_policy must be foveal or anyres, got {view_policy!r}.")
    if view_policy == "foveal" and (fovea_size is None or fovea_size < patch_size):
        raise ValueError(f"view_policy='foveal' needs fovea_size >= patch_size={patch_size}, got {fovea_size}.")


def _validate_pinpoints(pinpoints: Sequence | None, base: int):
    if not pinpoints or any(
        len(point) != 2 or min(point) < base or point[0] % base or point[1] % base for point in pinpoints
    ):
        raise ValueError(
            "view_policy='anyres' needs image_grid_pinpoints, a list of (width, height) that are multiples of the "
            f"base view {base}, got {pinpoints}."
        )


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
    try:
        return fovea_box_around(image.width, image.height, fovea_size, [float(edge) for edge in request])
    except ValueError as error:
        raise ValueError(f"fovea_boxes[{index}]: {error}") from None


def _resized(image: Image.Image, size: tuple[int, int], resample: PILImageResampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resample)


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


# Reading images


def _map_nested(function: Callable, images: Any) -> Any:
    if isinstance(images, (list, tuple)):
        return [_map_nested(function, image) for image in images]
    return function(images)


def _flatten(images: Any) -> list:
    if isinstance(images, (list, tuple)):
        return [leaf for image in images for leaf in _flatten(image)]
    return [images]


def _read(read: Callable[[], Any], index: int, size: tuple[int, ...] | None) -> Any:
    """`read()`, with what PIL raises turned into a ValueError that names the image."""
    try:
        return read()
    except _PIL_ERRORS as error:
        shape = "of unknown size" if size is None else f"of size {'x'.join(map(str, size))}"
        hint = _BOMB_HINT if isinstance(error, _BOMB_ERRORS) else ""
        raise ValueError(f"Image {index} {shape} cannot be read: {type(error).__name__}: {error}{hint}") from None


def _fetch_image(image: Any, index: int) -> Any:
    if isinstance(image, (str, bytes, os.PathLike)):
        # Decoded at once, so that no file stays open and its errors appear here.
        opened = _read(lambda: Image.open(_file_of(image)), index, None)
        return _read(lambda: _loaded(opened), index, opened.size)
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"Image {index} is a {type(image).__name__}. Pass a PIL image, a numpy array, a torch tensor, a path, a "
            "URL, a base64 string or the bytes of an image file."
        )
    if image.ndim == 2:
        return _read(lambda: _image_of_array(image, None), index, tuple(image.shape))
    if image.ndim == 4:
        return list(image)
    if image.ndim != 3:
        raise ValueError(f"Image {index} is an array of shape {tuple(image.shape)}; 2, 3 or 4 dimensions are needed.")
    return image


def _file_of(source: str | bytes | os.PathLike) -> str | os.PathLike | BytesIO:
    if isinstance(source, bytes):
        return BytesIO(source)
    if os.path.isfile(source):
        return source
    if not isinstance(source, str):
        raise FileNotFoundError(f"there is no file {os.fspath(source)}.")
    if source.startswith(("http://", "https://")):
        return BytesIO(get_session().get(source).raise_for_status().content)
    return BytesIO(_decode_base64(source))


def _decode_base64(source: str) -> bytes:
    payload = source.split(",", 1)[-1] if source.startswith("data:") else source
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError:
        shown = source if len(source) <= 100 else f"{source[:100]}..."
        raise ValueError(f"{shown!r} is no file that exists, no URL and no base64 string.") from None


def _upright_rgb(image: Image.Image) -> Image.Image:
    _loaded(image)
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels decoded; refuses one without pixels, or beyond the limit that PIL checks for files."""
    if 0 in image.size:
        raise ValueError("it has no pixels.")
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > 2 * limit:
        raise Image.DecompressionBombError(f"{pixels} pixels exceed the limit of {2 * limit}.")
    image.load()
    return image


def _image_of_array(array: np.ndarray | torch.Tensor, layout: str | ChannelDimension | None) -> Image.Image:
    """An array of shape (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4 as a PIL image of mode L, RGB or RGBA.

    Where both outer axes could be the channels, a numpy array is read as (H, W, C) and a tensor as (C, H, W); `layout`
    (`"channels_first"` or `"channels_last"`) decides otherwise.
    """
    if isinstance(array, torch.Tensor):
        prefer_last = False
        array = array.detach().cpu()
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    else:
        prefer_last = True
    if array.size == 0:
        raise ValueError("it has no pixels.")
    if array.ndim == 3:
        channels_last = _is_channels_last(array.shape, layout, prefer_last)
        array = array if channels_last else np.moveaxis(array, 0, -1)
        if array.shape[-1] not in _CHANNELS:
            raise ValueError(f"an image has 1, 3 or 4 channels, got {array.shape[-1]}.")
        array = array[..., 0] if array.shape[-1] == 1 else array
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array)))


def _is_channels_last(shape: tuple[int, ...], layout: str | ChannelDimension | None, prefer_last: bool) -> bool:
    if layout is not None:
        return ChannelDimension(layout) == ChannelDimension.LAST
    first, last = shape[0] in _CHANNELS, shape[-1] in _CHANNELS
    if not first and not last:
        raise ValueError(f"an array is (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4, got shape {shape}.")
    return prefer_last if first and last else last


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Pixel values scaled to 0..255, by the rule in the module's docstring."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 65535):
        raise ValueError(f"pixel values must lie in 0..1, 0..255 or 0..65535, got {low}..{high}: scale them first.")
    if array.dtype.kind == "f" and high <= 1:
        scale = 255.0
    else:
        scale = 1.0 if high <= 255 else 1 / 257
    return np.rint(array.astype(np.float64) * scale).astype(np.uint8)
