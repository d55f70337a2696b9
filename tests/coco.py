"""COCO instances files, read whole."""

from collections.abc import Iterator
from pathlib import Path

from ureca.errors import AnnotationError
from ureca.masks.annotations import Annotations
from ureca.masks.coco import coco_images


def read_coco_images(path: Path) -> Iterator[Annotations]:
    """Yield the annotations of each image of a COCO file that has any, in the file's order; raise their errors."""
    for _, annotations in coco_images(path):
        if isinstance(annotations, AnnotationError):
            raise annotations
        yield annotations
