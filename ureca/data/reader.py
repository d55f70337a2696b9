"""Reading of the regions that a run has written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from ureca.data.output import Output
from ureca.masks.mask import Mask


@dataclass(frozen=True)
class Region:
    """A region of an image with its captions.

    Attributes:
        image_id: id of the image.
        uri: path or URI of the image; None where it was given as pixels.
        mask: mask of the region; ``mask.decode()`` is bool [H, W], ``mask.bbox_xywh`` and ``mask.area_px`` are pixels.
        parent_id: ``region_id`` of the parent in the mask tree; ``ureca.masks.ROOT`` (-1) at the top level.
        depth: number of regions above this one in the mask tree; 0 at the top level.
        caption: the caption after all stages; None where the region has none.
        short_caption: caption of the top-down stage; None where there is none.
        detailed_caption: caption of the bottom-up stage; None where there is none.
        lookalike_ids: ``region_id`` of the regions that look alike, the most similar first.
        listener_choice: ``region_id`` that the listener chose for the caption, "none" or "several"; None where no
            listener was asked.
        verdict: judgement of the caption by the listener and the verification: "accepted", "self_checked",
            "rejected" or "unchecked".
        verdict_reason: reason given for the verdict; None without one.
        note: steps without a usable answer, ``<stage>:<kind>`` separated by "; ", after which the last caption or
            verdict stayed; None if there are none.
        status: "ok", "skipped:<reason>" (the region is not to be captioned: small, large, shallow, parent, empty, or
            the kind of an unusable annotation) or "failed:<stage>:<kind>".
    """

    image_id: str
    uri: str | None
    mask: Mask
    parent_id: int
    depth: int
    caption: str | None
    short_caption: str | None
    detailed_caption: str | None
    lookalike_ids: tuple[int, ...]
    listener_choice: str | None
    verdict: str
    verdict_reason: str | None
    note: str | None
    status: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any], region: Mapping[str, Any]) -> "Region":
        """Build a region from a row of the schema ``REGIONS`` and one of the items of its ``regions``."""
        names = ("parent_id", "depth", "caption", "short_caption", "detailed_caption", "listener_choice", "verdict")
        return cls(
            image_id=row["image_id"],
            uri=row["uri"],
            mask=Mask.from_region(region, row["height"], row["width"]),
            lookalike_ids=tuple(region["lookalike_ids"]),
            note=region.get("note"),
            **{name: region[name] for name in (*names, "verdict_reason", "status")},
        )

    @property
    def region_id(self) -> int:
        """Id of the region, unique within its image."""
        return self.mask.id


class OutputReader:
    """Read access to an output folder, also while a run writes to it. Iterating yields ``rows()``.

    Attributes:
        path: path or URI of the folder.
        run: content of ``run.json``: command, state ("running", "stopped" or "finished"), settings, versions, totals.
    """

    def __init__(self, output: Output) -> None:
        self.path = output.path
        self.run = output.run()
        self._output = output

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a dictionary for each image, with the fields of ``ureca.schema.REGIONS``; one partition is in memory.

        An image that could not be processed has ``error`` and no regions. Outputs of ``ureca caption`` have the same
        fields; those that it does not know are None.
        """
        return self._output.region_rows()

    def regions(self, *, status: str | None = "ok") -> Iterator[Region]:
        """Yield the regions of all images, parents before children.

        Args:
            status: status of the regions to yield, such as "ok" or "skipped:small"; None: all regions.
        """
        for row in self.rows():
            for region in row["regions"]:
                if status is None or region["status"] == status:
                    yield Region.from_row(row, region)


def open_output(path: str | PathLike[str]) -> OutputReader:
    """Open the output folder of ``ureca curate``, ``ureca caption`` or ``ureca scenes`` for reading.

    Args:
        path: local path or URI (``s3://bucket/folder``) of the folder.

    Raises:
        OutputError: the folder is not the output of a run.
        InputError: the scheme of the URI is unknown.

    Example:
        >>> import ureca
        >>> for region in ureca.open_output("captions").regions():
        ...     print(region.image_id, region.region_id, region.mask.bbox_xywh, region.caption)
    """
    return OutputReader(Output.of_run(fspath(path)))
