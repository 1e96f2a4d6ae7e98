"""Picture files of any kind and size as square RGB arrays of one size, as training and prediction see them."""

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from jax_cifar.errors import DataError
from jax_cifar.files import require_regular
from jax_cifar.progress import progress

Source = Path | bytes  # a file, or what is in one
LARGEST_FILE = 1 << 30  # bytes: more than all pixels of a picture that is read; some formats are read whole
_DRAWINGS = ("EPS", "WMF")  # Pillow has other programs draw them
# Some kilobytes may hold a picture of hundreds of megabytes: of large ones only one is in memory at a time.
_LARGE_PIXELS = 16_000_000
_one_large = threading.Lock()


def picture_to_array(image: Image.Image, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Turn a picture upright, crop its largest central square, and shrink or enlarge that to `size` pixels a side.

    - EXIF's orientation is applied. What is cut off is the same on both sides, up to one pixel less above or left.
    - Grey becomes three equal channels, 16 bits are scaled to 8, a palette is looked up, what is transparent shows
      white. Of an animation the first frame counts.
    - Bilinear with antialiasing (a triangle as wide as the shrinking asks for), in the file's own values from 0 to 255.

    Raises:
        DataError: the pixels have no range that is known (floating point, or integers beyond 16 bits).
    """
    key = _transparent_colour(image)
    image = ImageOps.exif_transpose(image)
    if key is not None:
        image.info["transparency"] = key
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = _to_rgb(image.crop((left, top, left + side, top + side)))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


class Picture(NamedTuple):
    """A picture as a network sees it, and what of the file does not show in that."""

    pixels: UInt8[np.ndarray, "size size 3"]
    width: int  # of the file, in pixels
    height: int
    has_frames: bool  # the file holds others behind the one that was taken: an animation, or pages


def read_pictures(paths: Sequence[Path], size: int) -> UInt8[np.ndarray, "n {size} {size} 3"]:
    """Read picture files, several at once, in the order of `paths`.

    Raises:
        DataError: a file is no picture, is damaged or cut off, or is so large that it may be meant to fill the memory.
            The message names the first such file.
    """
    images = np.empty((len(paths), size, size, 3), np.uint8)
    with _reading(paths, size) as found, progress("pictures", total=len(paths)) as bar:
        for index, picture in enumerate(found):
            if isinstance(picture, DataError):
                raise DataError(f"{picture} Repair it, or take it out of the folder.")
            images[index] = picture.pixels
            bar.advance()
    return images


def try_pictures(sources: Sequence[Source], size: int) -> list[Picture | DataError]:
    """Read pictures, several at once, in order; in the place of one that cannot be read stands the error."""
    with _reading(sources, size) as found:
        return list(found)


def grey(images: UInt8[np.ndarray, "n height width 3"]) -> UInt8[np.ndarray, "n height width 1"]:
    """0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601), rounded: Pillow's `convert("L")`, in its 16-bit integers."""
    weights = np.array([19595, 38470, 7471], np.uint32)  # they add up to 65536: grey stays as it is
    return ((images @ weights + np.uint32(32768)) >> 16).astype(np.uint8)[..., None]


@contextmanager
def _reading(sources: Sequence[Source], size: int) -> Iterator[Iterator[Picture | DataError]]:
    with _quiet_pillow(), ThreadPoolExecutor() as pool:
        try:
            yield pool.map(partial(_try_picture, size=size), sources)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error nobody waits for the rest


def _try_picture(source: Source, size: int) -> Picture | DataError:
    try:
        if isinstance(source, Path):
            content, length = source, require_regular(source, LARGEST_FILE)
        else:
            content, length = io.BytesIO(source), len(source)
        if length == 0:
            raise DataError("it is empty")
        with Image.open(content) as image:
            if image.format in _DRAWINGS:
                raise DataError("it is a drawing without pixels; save it as PNG")
            with _one_large if image.width * image.height > _LARGE_PIXELS else nullcontext():
                return Picture(picture_to_array(image, size), *image.size, _has_frames(image))
    except UnidentifiedImageError:
        reason = "it is no picture of a known format; save it as PNG or JPEG"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except DataError as error:
        reason = str(error)
    # Damaged files surface as almost any exception, none of them of interest.
    except Exception as error:
        reason = str(getattr(error, "strerror", None) or error or type(error).__name__)
    name = source if isinstance(source, Path) else "-"
    return DataError(f"{name} cannot be read as a picture: {reason.rstrip('.')}.")


def _has_frames(image: Image.Image) -> bool:
    try:
        # An MPO is a JPEG of a camera, which has put the same picture behind it, in small or for the other eye.
        return getattr(image, "is_animated", False) and image.format != "MPO"
    except Exception:  # a GIF whose second frame is damaged; the first is there
        return False


def _transparent_colour(image: Image.Image) -> int | tuple[int, ...] | None:
    """The one colour that a PNG shows transparent, in the 8 bits of the pixels as Pillow will read them.

    Pillow leaves it in the bits of the file, which it tells until the pixels are loaded. Of sixteen bits it reads the
    upper eight. None where there is no such colour, or nothing to scale; `_to_grey` compares 16-bit grey itself.
    """
    key = image.info.get("transparency")
    if key is None or not (isinstance(image, PngImageFile) and image.tile):
        return None
    match image.tile[0].args:
        case "L;2":
            return (key & 3) * 85
        case "L;4":
            return (key & 15) * 17
        case "RGB;16B":
            return tuple(level >> 8 for level in key)
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _to_grey(image)
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    """Single-channel pictures of more than 8 bits, from 0-65535 to 0-255, rounded; a transparent level shows white."""
    values = np.asarray(image)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"its pixels are {values.dtype} from {values.min()} to {values.max()}; save it with 8 or 16 bits"
        )
    levels = ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(np.where(values == image.info.get("transparency"), np.uint8(255), levels))


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Turn Pillow's warning of huge pictures into an error, and keep its remarks on odd metadata from the console."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
