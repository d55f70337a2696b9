"""Corrections of captions by people: a journal beside the dataset, merged with the rows whenever they are used.

``OUTPUT/corrections.jsonl`` has one correction per line, the latest of a region last. It is appended to and never
rewritten, and the rows of the dataset stay as they were generated.
"""

import fcntl
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ureca.errors import OutputError
from ureca.io import locate, read_parsed
from ureca.wording import quantity

logger = logging.getLogger(__name__)

CORRECTIONS = "corrections.jsonl"
"""Name of the journal in the output folder."""

MAX_CAPTION_LENGTH = 10_000
MAX_REASON_LENGTH = 500

_CAPTION_COLUMNS = ("short_caption", "detailed_caption", "caption")
_Text = Annotated[str, StringConstraints(strip_whitespace=True)]


class Correction(BaseModel):
    """A person's decision about the caption of a region.

    Attributes:
        image_id: id of the image.
        region_id: id of the region.
        action: "correct" replaces the caption, "reject" and "accept" replace the verdict, "restore" takes back all
            earlier decisions about the region.
        caption: the new caption of "correct", 1 to 10,000 characters.
        reason: the reason of "reject", at most 500 characters.
        original: caption in the dataset when the person decided. The decision does not hold for another caption,
            such as that of a later run.
        decided_at: time of the decision.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: str
    region_id: Annotated[int, Field(strict=True)]
    action: Literal["correct", "reject", "accept", "restore"]
    caption: Annotated[_Text, Field(min_length=1, max_length=MAX_CAPTION_LENGTH)] | None = None
    reason: Annotated[_Text, Field(max_length=MAX_REASON_LENGTH)] | None = None
    original: str | None
    decided_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _has_the_fields_of_its_action(self) -> Self:
        if (self.caption is not None) != (self.action == "correct"):
            raise ValueError("a caption goes with the action correct, and only with it")
        if self.reason is not None and self.action != "reject":
            raise ValueError("a reason goes with the action reject")
        return self

    def apply(self, region: Mapping[str, Any]) -> dict[str, Any]:
        """Return a region of the schema ``REGIONS`` with this decision; it is ``region`` if that is corrected."""
        if self.action == "restore" or region["caption"] != self.original:
            return dict(region)
        if self.action == "correct":
            # A wrong text is as wrong in the other columns that hold the same one.
            same = [name for name in _CAPTION_COLUMNS if name == "caption" or region[name] == self.original]
            changes = dict.fromkeys(same, self.caption) | {"status": "ok"}
            return {**region, **changes, "verdict": "accepted", "verdict_reason": "corrected by a person"}
        if region["status"] != "ok":
            return dict(region)
        if self.action == "accept":
            return {**region, "verdict": "accepted", "verdict_reason": "accepted by a person"}
        return {**region, "verdict": "rejected", "verdict_reason": self.reason or "rejected by a person"}


class Corrections:
    """The latest correction of each region of an output.

    Args:
        latest: the corrections, none of them a "restore", by image and region.

    Attributes:
        num_applied: number of corrections applied so far, by action.
        num_outdated: number of corrections left out so far, because the caption is another one than the corrected.
    """

    def __init__(self, latest: Mapping[str, Mapping[int, Correction]]) -> None:
        self.num_applied: Counter[str] = Counter()
        self.num_outdated = 0
        self._latest = latest

    @classmethod
    def of_output(cls, path: str) -> Self:
        """Read the journal of an output folder; without a journal, there are no corrections.

        Raises:
            OutputError: the journal cannot be read.
        """
        latest: dict[str, dict[int, Correction]] = {}
        for correction in read_journal(path):
            of_image = latest.setdefault(correction.image_id, {})
            of_image.pop(correction.region_id, None)
            if correction.action != "restore":
                of_image[correction.region_id] = correction
        return cls(latest)

    def __len__(self) -> int:
        return sum(map(len, self._latest.values()))

    def __iter__(self) -> Iterator[Correction]:
        return (correction for of_image in self._latest.values() for correction in of_image.values())

    def of_image(self, image_id: str) -> Mapping[int, Correction]:
        """Return the corrections of an image, by region."""
        return self._latest.get(image_id, {})

    def apply(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of the schema ``REGIONS`` with the corrections of its regions; ``row`` is not changed."""
        own = self.of_image(row["image_id"])
        if not own:
            return row
        regions = []
        for region in row["regions"]:
            correction = own.get(region["region_id"])
            if correction is None:
                regions.append(region)
                continue
            if region["caption"] == correction.original:
                self.num_applied[correction.action] += 1
            else:
                self.num_outdated += 1
            regions.append(correction.apply(region))
        return {**row, "regions": regions}

    def warn_of_outdated(self) -> None:
        """Log the number of the corrections that were left out, if there are any."""
        if self.num_outdated:
            logger.warning(
                "%d corrections are of other captions than those of the dataset, and left out", self.num_outdated
            )


def counted_actions(counts: Mapping[str, int]) -> str:
    """Return numbers of corrections by action as text, such as "2 accepted, 1 caption corrected"."""
    names = {"accept": "{} accepted", "correct": "{} corrected", "reject": "{} rejected"}
    return ", ".join(
        names[action].format(quantity(count, "caption") if action == "correct" else count)
        for action, count in sorted(counts.items())
    )


def read_journal(path: str) -> Iterator[Correction]:
    """Yield the corrections of an output folder in the order of their decisions, also repeated ones of a region.

    A last line that a crash has torn is left out; other malformed lines are, too, with a warning.

    Raises:
        OutputError: the journal cannot be read.
    """
    location = locate(path)
    name = f"{location.name}/{CORRECTIONS}"
    try:
        lines = read_parsed(location.filesystem, name, lambda data: data.split(b"\n"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}/{CORRECTIONS} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield Correction.model_validate_json(line)
        except ValidationError as error:
            if number < len(lines):
                problem = error.errors(include_url=False, include_input=False)[0]["msg"]
                logger.warning("%s/%s, line %d is left out: %s", path, CORRECTIONS, number, problem)


class Journal:
    """Writer of the journal of an output on this machine. Several processes may write to one journal.

    Args:
        folder: output folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CORRECTIONS

    def append(self, correction: Correction) -> None:
        """Append a correction; when this returns, it is on the disk.

        Raises:
            OutputError: the journal cannot be written to.
        """
        line = json.dumps(correction.model_dump(mode="json", exclude_none=False), ensure_ascii=False).encode() + b"\n"
        try:
            is_new = not self._path.exists()
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = os.fstat(file).st_size
                # A writer that was killed may have left a line without its end.
                if size and os.pread(file, 1, size - 1) != b"\n":
                    line = b"\n" + line
                if os.write(file, line) != len(line):
                    raise OSError("the disk is full")
                os.fsync(file)
            finally:
                os.close(file)
            if is_new:
                folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written to: {error}") from error
