"""Masks of annotation files in the frame of their upright images, of which only the headers are read."""

import logging
from dataclasses import replace
from types import TracebackType
from typing import Self

from ureca.data.manifest import ManifestEntry
from ureca.data.reading import FileReader, fetch
from ureca.errors import DataError
from ureca.image_limits import ImageLimits
from ureca.images import stored_frame
from ureca.masks.annotations import Annotations
from ureca.masks.frames import stored_size, to_upright
from ureca.masks.generators.settings import Frame
from ureca.wording import quantity

logger = logging.getLogger(__name__)

_HEAD_BYTES = 2**17  # EXIF data have at most 64 KiB
_WITH_EARLY_HEADERS = (b"\xff\xd8\xff", b"\x89PNG")


class FrameReader:
    """Turns the annotations of images upright.

    Args:
        frame: frame of the masks in the files.
        setting: name of the setting of the frame, for messages.

    Attributes:
        num_ambiguous: number of images whose masks fit both frames, although the image has an orientation.
    """

    def __init__(self, frame: Frame, setting: str) -> None:
        self.num_ambiguous = 0
        self._frame: Frame = frame
        self._setting = setting
        self._files = FileReader(ImageLimits().max_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.__exit__(type, value, traceback)
        if self.num_ambiguous:
            logger.warning(
                "%s an EXIF orientation, and masks that fit both as stored and upright; the masks are "
                "taken for upright: %s says which they are",
                quantity(self.num_ambiguous, "image has", "images have"),
                self._setting,
            )

    def upright(self, annotations: Annotations, entry: ManifestEntry) -> Annotations:
        """Return annotations of an image in its upright frame; as they are where its header does not tell one.

        Raises:
            AnnotationError: ``size_mismatch``: the image has an orientation, and another size in each frame.
        """
        if self._frame == "upright":
            return annotations
        stored_height, stored_width, orientation = self._header(entry)
        if orientation == 1:
            return annotations
        upright_size = stored_size((stored_height, stored_width), orientation)  # the exchange is its own inverse
        size = (annotations.height_px, annotations.width_px)
        masks = to_upright(annotations.masks, size, upright_size, orientation, self._frame)
        self.num_ambiguous += any("ambiguous_frame" in mask.notes for mask in masks)
        return replace(annotations, masks=tuple(masks), height_px=upright_size[0], width_px=upright_size[1])

    def size(self, entry: ManifestEntry) -> tuple[int, int] | None:
        """Return height and width of an image in the frame of its masks; None: it is unreadable."""
        height, width, orientation = self._header(entry)
        if not height:
            return None
        return (height, width) if self._frame == "stored" else stored_size((height, width), orientation)

    def _header(self, entry: ManifestEntry) -> tuple[int, int, int]:
        """Return stored height and width of an image, and its orientation: 1 where it cannot be read."""
        limits = ImageLimits()
        if entry.row is not None:
            (fetched,) = fetch([entry], limits)
            contents: list[bytes | DataError] = [fetched.image]
        else:
            head = self._files.read(entry.path, entry.offset, entry.size, head_bytes=_HEAD_BYTES)
            contents = [head]
            if isinstance(head, bytes) and len(head) == _HEAD_BYTES:
                contents = [head] if head.startswith(_WITH_EARLY_HEADERS) else []
                contents.append(self._files.read(entry.path, entry.offset, entry.size))
        for data in contents:
            try:
                if isinstance(data, bytes):
                    return stored_frame(data, limits)
            except DataError:
                continue
        return 0, 0, 1
