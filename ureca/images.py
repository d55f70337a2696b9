"""Decoding of image files from untrusted sources."""

import io
import json
import math
import os
import resource
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ureca.errors import DataError, ImageError
from ureca.image_limits import ImageLimits
from ureca.image_structure import read_structure
from ureca.isolated_decoder import LENGTH, REQUEST, IsolatedDecoder, cpu_limit_s, memory_limit_bytes

Pixels = npt.NDArray[np.uint8]
Decoded = TypeVar("Decoded")

# Errors that Pillow raises for malformed bytes: its own (SyntaxError for headers, OSError for pixel data, ValueError
# for limits on text chunks and profiles), those of the standard library that its parsers let through, and warnings
# that the process turns into errors. A MemoryError belongs here because the pixels are
# limited before: it comes from absurd sizes inside the file, not from a machine that is short of memory.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    AssertionError,
    Warning,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_SIGNATURES: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
    *((b"P%d" % number, PpmImageFile) for number in range(1, 7)),
    (b"\0\0\0\x0cjP  \r\n\x87\n", Jpeg2KImageFile),
    (b"\xff\x4f\xff\x51", Jpeg2KImageFile),
)
_LOSSY = (JpegImageFile, Jpeg2KImageFile)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}

_LOSSLESS = tuple(signature for signature, format in _SIGNATURES if format not in _LOSSY)

_MAX_JPEG_SIDE_PX = 65535
_STRIP_ROWS_PX = 256
"""Rows that are converted at a time: conversions need several times the memory of their rows."""

_MAX_EXIF_BYTES = 2**26
_EXIF_ORIENTATION = 0x0112
_TIFF_TILE_TAGS = (322, 323)  # width and height

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, limits: ImageLimits) -> Pixels:
    """Decode an image file to uint8 RGB [H, W, 3], upright.

    The content, not the file name, determines the format: JPEG, PNG, WebP, TIFF, BMP, GIF, PPM/PGM/PBM, AVIF or
    JPEG 2000, and HEIC with the extra ``heif``. Of an
    animation the first frame is used; the EXIF orientation is applied; transparency is laid over white; CMYK, palette,
    YCbCr and LAB become RGB without a colour profile. Greys of more than 8 bits are scaled: 16-bit and integers within
    0 to 65535 from that range, floats within 0 to 1 from that range, anything else from its own smallest to its own
    largest finite value (not a number becomes black).

    JPEG and PNG are decoded here, after their scans and chunks have been counted. Other formats, whose cost is not
    known before, are decoded in a process that is ended at a limit of CPU time and has a limit of memory.

    Args:
        data: content of the file.
        limits: limits that are checked on length and header, before anything is decoded.

    Raises:
        ImageError: ``empty_file``; ``too_many_bytes``; ``not_an_image`` (no signature of a format above);
            ``too_many_pixels``; ``too_complex`` (more scans or chunks than any image needs, or decoding takes too
            long); ``truncated`` (the data end early); ``corrupt`` (any other damage); ``out_of_memory`` (the file asks
            the decoder for more memory than there is).
    """
    (pixels,), _ = _decode(data, limits, "rgb")
    return pixels


def try_decode_image(data: bytes | DataError, limits: ImageLimits) -> Pixels | DataError:
    """Decode an image file, or return the error: one that reading it had, or the ``ImageError`` of ``decode_image``."""
    if isinstance(data, DataError):
        return data
    try:
        return decode_image(data, limits)
    except ImageError as error:
        return error


def decode_layers(data: bytes, limits: ImageLimits) -> tuple[Pixels, Pixels | None]:
    """Decode an image file to colours and transparency, without applying it: hidden colours stay as they are stored.

    Returns:
        Colours, uint8 RGB [H, W, 3], and the alpha channel, uint8 [H, W]; None if the file has none.

    Raises:
        ImageError: as ``decode_image``.
    """
    (colors, *alpha), _ = _decode(data, limits, "layers")
    return colors, alpha[0] if alpha else None


def encode_png(pixels: Pixels) -> bytes:
    """Encode RGBA pixels, uint8 [H, W, 4], as a PNG file, quickly rather than to the smallest size.

    Colours are kept where alpha is 0, too. Threads encode in parallel, see ``encode_jpeg``.
    """
    import cv2

    _, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return data.tobytes()


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode RGB pixels, uint8 [H, W, 3], as a JPEG file of a quality from 1 to 100.

    Full colour resolution is kept: the marks on views are thin coloured lines. Threads encode in parallel, as OpenCV,
    unlike Pillow, releases the interpreter's lock.

    Raises:
        ValueError: a side is longer than JPEG's 65535 pixels.
    """
    import cv2

    if max(pixels.shape[:2]) > _MAX_JPEG_SIDE_PX:
        raise ValueError(f"a JPEG file has at most {_MAX_JPEG_SIDE_PX} px a side, the image has {pixels.shape[:2]}")
    _, data = cv2.imencode(
        ".jpg",
        cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR),
        [
            cv2.IMWRITE_JPEG_QUALITY,
            quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ],
    )
    return data.tobytes()


@dataclass(frozen=True, slots=True)
class StoredValues:
    """The numbers that an image file stores, which are not colours where the file holds labels or a mask.

    Attributes:
        values: [H, W], of the type that holds them: indices of a palette, unscaled greys of 1 to 32 bits, or floats;
            or uint8 [H, W, 3] of a file with colours that are not grey.
        alpha: transparency, uint8 [H, W]; None: the file has none, or one value of it everywhere.
        is_palette: the values are indices of a palette.
        is_lossy: the compression changes values.
    """

    values: npt.NDArray[Any]
    alpha: Pixels | None
    is_palette: bool
    is_lossy: bool


def decode_values(data: bytes, limits: ImageLimits, *, upright: bool = True) -> StoredValues:
    """Decode an image file to the numbers that it stores, without a palette's colours or a scale.

    Args:
        data: content of the file.
        limits: limits that are checked on length and header, before anything is decoded.
        upright: apply the EXIF orientation.

    Raises:
        ImageError: as ``decode_image``; also ``corrupt`` for colours of 16 bits, of which Pillow reads only the half.
    """
    (values, *alpha), flags = _decode(data, limits, "values" if upright else "stored_values")
    return StoredValues(values, alpha[0] if alpha else None, flags["is_palette"], flags["is_lossy"])


def _decode_values(data: bytes, limits: ImageLimits, *, upright: bool) -> "_Decoded":
    # Pillow forgets the layout of the stored pixels when it loads them.
    raw_mode, maximum, is_lossy = "", 255, False

    def prepare(image: ImageFile) -> None:
        nonlocal raw_mode, maximum, is_lossy
        args = image.tile[0][3] if image.tile else ()
        args = args if isinstance(args, tuple) else (args,)
        raw_mode = next((arg for arg in args if isinstance(arg, str)), image.mode)
        if isinstance(image, PpmImageFile):
            maximum = next((arg for arg in args if isinstance(arg, int)), 255)
        is_lossy = _is_lossy(data, image.info)

    def convert(image: Image.Image) -> "_Decoded":
        is_palette = image.mode in ("P", "PA")
        alpha = _alpha(image)
        if image.mode in ("LA", "La", "PA"):
            image = image.getchannel(0)
        values = np.asarray(image)
        if image.mode in ("RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
            values = np.asarray(image.convert("RGB"))
        if values.ndim == 3:
            if "16" in raw_mode and not np.isin(values, (0, 255)).all():
                raise ImageError("corrupt", "colours of 16 bits are read by half: save the values as 16-bit grey")
            if (values[..., :1] == values).all():
                values = values[..., 0]
        if values.dtype == np.uint8 and not is_palette:
            if raw_mode.startswith(("L;2", "L;4")):  # Pillow has scaled these to 8 bits
                values = values // (85 if raw_mode.startswith("L;2") else 17)
            elif 0 < maximum < 255:
                values = np.rint(values * (maximum / 255)).astype(np.uint8)
        values = values.view(np.uint8) if values.dtype == np.bool_ else values
        arrays = [np.ascontiguousarray(values), *([] if alpha is None else [alpha])]
        return arrays, {"is_palette": is_palette, "is_lossy": is_lossy}

    return _decode_here(data, limits, convert, prepare=prepare, upright=upright)


def _alpha(image: Image.Image) -> Pixels | None:
    """Return the transparency [H, W] of an image; None where it is the same everywhere."""
    key = image.info.get("transparency")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        alpha = np.asarray(image.getchannel("A"))
    elif key is None:
        return None
    elif image.mode == "P":
        table = np.full(256, 255, np.uint8)
        if isinstance(key, bytes):
            table[: len(key)] = np.frombuffer(key[:256], np.uint8)
        elif 0 <= key < 256:
            table[key] = 0
        alpha = table[np.asarray(image)]
    elif image.mode == "RGB":
        alpha = np.where((np.asarray(image) == np.array(key)).all(axis=2), 0, 255).astype(np.uint8)
    else:
        alpha = np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)
    return None if (alpha == alpha.flat[0]).all() else np.ascontiguousarray(alpha)


def _is_lossy(data: bytes, info: Mapping[Any, Any]) -> bool:
    if data.startswith(b"RIFF"):
        place = 12
        while place + 8 <= len(data) and data[place : place + 4] != b"VP8 ":
            place += 8 + (size := int.from_bytes(data[place + 4 : place + 8], "little")) + size % 2
        return data[place : place + 4] == b"VP8 "
    return not data.startswith(_LOSSLESS) or info.get("compression") in ("jpeg", "tiff_jpeg", "webp")


def stored_frame(data: bytes, limits: ImageLimits) -> tuple[int, int, int]:
    """Return height and width of an image as it is stored, and its EXIF orientation, 1 to 8, from its header.

    The beginning of a JPEG or PNG suffices, if it has the header.

    Raises:
        ImageError: as ``decode_image``, where the header tells.
    """
    ((frame,), _) = _decode(data, limits, "frame")
    height, width, orientation = frame.tolist()
    return height, width, orientation


def _header_frame(data: bytes, limits: ImageLimits) -> "_Decoded":
    open_format = _format(data) or PngImageFile
    orientation = 1
    try:
        with warnings.catch_warnings(action="ignore"), open_format(io.BytesIO(data)) as image:
            _check_size(image, limits)
            # Pillow decodes a PNG without EXIF data in search of them.
            if open_format is not PngImageFile or b"eXIf" in data or b"Raw profile type exif" in data:
                orientation = _orientation(image)
            height, width = image.height, image.width
            if open_format is TiffImageFile and orientation > 4:
                height, width = width, height
            return [np.array([height, width, orientation], np.int32)], {}
    except _PILLOW_ERRORS as error:
        raise ImageError(_kind(error, data), f"{open_format.format}: {type(error).__name__}: {error}") from error


_Decoded = tuple[list[npt.NDArray[Any]], dict[str, bool]]
_TASKS: dict[str, Callable[[bytes, ImageLimits], _Decoded]] = {
    "rgb": lambda data, limits: ([_decode_here(data, limits, _to_rgb)], {}),
    "layers": lambda data, limits: (_decode_here(data, limits, _to_layers), {}),
    "values": lambda data, limits: _decode_values(data, limits, upright=True),
    "stored_values": lambda data, limits: _decode_values(data, limits, upright=False),
    "frame": _header_frame,
}
_ISOLATED = IsolatedDecoder(tuple(_TASKS))


class _CpuLimit:
    """Limit of CPU time; set in the processes of the isolated decoder only."""

    is_set = False


def _decode(data: bytes, limits: ImageLimits, task: str) -> _Decoded:
    """Check a file, and decode it here or in a process of the isolated decoder."""
    if not data:
        raise ImageError("empty_file", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_many_bytes", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    if _format(data) is None:
        known = "HEIC, which the extra heif reads" if _brands(data) & _HEIF_BRANDS else "no image format that is read"
        raise ImageError("not_an_image", f"the content starts with {data[:12]!r}: {known}")
    if read_structure(data).is_ordinary:
        return _TASKS[task](data, limits)
    return _ISOLATED.decode(data, limits, task)


_DECODER_NICENESS = 10
"""Unusual images, which may be hostile, are decoded with what ordinary work leaves of the processors."""


def run_decoder() -> None:
    """Decode the images that an ``IsolatedDecoder`` sends to this process, until it closes the pipe."""
    _CpuLimit.is_set = True
    source, target = sys.stdin.buffer, sys.stdout.buffer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_DECODER_NICENESS)
    while request := source.read(REQUEST.size):
        task, num_bytes, max_bytes, max_pixels = REQUEST.unpack(request)
        limits = ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels)
        memory = Path("/proc/self/statm")
        used_bytes = int(memory.read_text().split()[0]) * resource.getpagesize() if memory.exists() else 0
        if used_bytes:
            allowed_bytes = used_bytes + memory_limit_bytes(limits, num_bytes)
            resource.setrlimit(resource.RLIMIT_AS, (allowed_bytes, resource.RLIM_INFINITY))
        _limit_cpu(0)
        arrays: list[npt.NDArray[Any]] = []
        try:
            arrays, flags = list(_TASKS.values())[task](source.read(num_bytes), limits)
        except ImageError as error:
            head: dict[str, Any] = {"kind": error.kind, "message": error.message[:1000]}
        except MemoryError:
            head = {"kind": "out_of_memory", "message": "decoding takes more memory than an image of its size should"}
        else:
            head = {"arrays": [[array.dtype.str, list(array.shape)] for array in arrays], "flags": flags}
        text = json.dumps(head).encode()
        target.write(LENGTH.pack(len(text)) + text)
        for array in arrays:
            target.write(np.ascontiguousarray(array).data)
        target.flush()


def _limit_cpu(num_pixels: int) -> None:
    """Let the kernel end this process once it has used the CPU time for an image of so many pixels from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = math.ceil(used.ru_utime + used.ru_stime + cpu_limit_s(num_pixels))
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))


def _decode_here(
    data: bytes,
    limits: ImageLimits,
    convert: Callable[[Image.Image], Decoded],
    *,
    prepare: Callable[[ImageFile], None] = lambda image: None,
    upright: bool = True,
) -> Decoded:
    open_format = _format(data) or PngImageFile
    try:
        # Image.open is not used: it reports large images through process-wide state and warnings.
        with open_format(io.BytesIO(data)) as image:
            _check_size(image, limits)
            if _CpuLimit.is_set:
                _limit_cpu(image.width * image.height)
            prepare(image)
            image.load()
            return convert(_upright(image) if upright else image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from error
    except _PILLOW_ERRORS as error:
        raise ImageError(_kind(error, data), f"{open_format.format}: {type(error).__name__}: {error}") from error


def _format(data: bytes) -> type[ImageFile] | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    if brands := _brands(data):
        if brands & _AVIF_BRANDS:
            return _avif_format()
        return _heif_format() if brands & _HEIF_BRANDS else None
    return next((format for signature, format in _SIGNATURES if data.startswith(signature)), None)


def _brands(data: bytes) -> set[bytes]:
    """Return the brands of a file in ISO's container, as HEIC and AVIF are; empty for other files."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[place : place + 4] for place in range(16, end, 4))}


def _avif_format() -> type[ImageFile] | None:
    try:
        from PIL.AvifImagePlugin import AvifImageFile
    except ImportError:  # before Pillow 11.3
        return None
    return AvifImageFile if features.check("avif") else None


def _heif_format() -> type[ImageFile] | None:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    heif: type[ImageFile] = HeifImageFile
    return heif


def optional_extensions() -> tuple[str, ...]:
    """Return the file extensions of the formats that depend on what is installed, and can be decoded here."""
    found: tuple[str, ...] = ()
    if _avif_format() is not None:
        found += ("avif",)
    if features.check("jpg_2000"):
        found += ("jp2", "j2k", "jpf", "jpx", "j2c")
    return found if _heif_format() is None else (*found, "heic", "heif", "hif")


def _check_size(image: ImageFile, limits: ImageLimits) -> None:
    areas = [("an image", image.width, image.height)]
    if isinstance(image, TiffImageFile):
        # A tile can be larger than the image that it is part of, and is decoded whole.
        width, height = (int(image.tag_v2.get(tag, 0)) for tag in _TIFF_TILE_TAGS)
        areas.append(("a tile", width, height))
    for area, width, height in areas:
        if width * height > limits.max_pixels:
            raise ImageError(
                "too_many_pixels",
                f"the header states {area} of {width} x {height} pixels, the limit is {limits.max_pixels}",
            )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    orientation = _orientation(image)
    return image if orientation == 1 else image.transpose(_UPRIGHT[orientation])


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8. Malformed EXIF data are ignored: the pixels are good without them."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION) if _is_cheap_exif(image) else 1
    except _PILLOW_ERRORS:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _is_cheap_exif(image: Image.Image) -> bool:
    """Return False for EXIF data whose tags together are large: each may repeat all bytes of the block."""
    block = image.info.get("exif")
    if not isinstance(block, bytes):
        return len(image.info.get("Raw profile type exif", "")) < 2**18
    block = block.removeprefix(b"Exif\0\0")
    order = ">" if block[:2] == b"MM" else "<"
    (first,) = struct.unpack_from(f"{order}L", block, 4)
    (num_tags,) = struct.unpack_from(f"{order}H", block, first)
    return bool(num_tags * len(block) <= _MAX_EXIF_BYTES)


def _to_rgb(image: Image.Image) -> Pixels:
    """Convert to uint8 RGB [H, W, 3], over white, strip by strip."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        opaque = strip
        if image.has_transparency_data:
            rgba = strip.convert("RGBA")
            opaque = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        pixels[top : top + strip.height] = np.asarray(opaque.convert("RGB"))
    return pixels


def _to_layers(image: Image.Image) -> list[Pixels]:
    """Convert to the stored colours, uint8 RGB [H, W, 3], and, where there is transparency, alpha, uint8 [H, W]."""
    if not image.has_transparency_data:
        return [_to_rgb(image)]
    colors = np.empty((image.height, image.width, 3), np.uint8)
    alpha = np.empty((image.height, image.width), np.uint8)
    for top, strip in _strips(image):
        layers = np.asarray(strip.convert("RGBA"))
        colors[top : top + strip.height] = layers[..., :3]
        alpha[top : top + strip.height] = layers[..., 3]
    return [colors, alpha]


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row and the pixels of each strip of an image."""
    for top in range(0, image.height, _STRIP_ROWS_PX):
        yield top, image.crop((0, top, image.width, min(image.height, top + _STRIP_ROWS_PX)))


def _eight_bits(image: Image.Image) -> Pixels:
    """Scale greys of more than 8 bits to uint8 RGB [H, W, 3], by the rule of ``decode_image``."""
    is_float = image.mode == "F"
    low, high = math.inf, -math.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)] if is_float else values
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        low, high = 0.0, 0.0
    full_range = 1.0 if is_float else 65535.0
    if low >= 0 and high <= full_range:
        low, high = 0.0, full_range
    # Halved, because the distance between two floats can be more than a float can hold.
    span = max(high / 2 - low / 2, np.finfo(np.float64).tiny)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, strip in _strips(image):
        grey = np.asarray(strip).astype(np.float64)
        scaled = np.nan_to_num((grey / 2 - low / 2) / span, nan=0.0, posinf=1.0, neginf=0.0)
        pixels[top : top + strip.height] = np.rint(scaled * 255).astype(np.uint8)[..., None]
    return pixels


def _kind(error: BaseException, data: bytes) -> str:
    """Classify an error of Pillow. Most parsers tell when data end early; the header of WebP has the length."""
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if data.startswith(b"RIFF") and int.from_bytes(data[4:8], "little") + 8 > len(data):
        return "truncated"
    causes = (error, error.__cause__)
    if any(isinstance(cause, EOFError | struct.error) or "truncated" in str(cause).lower() for cause in causes):
        return "truncated"
    return "corrupt"
