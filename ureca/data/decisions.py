"""Decisions of people about captions in annotation tools, and their import into the journal of corrections."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import PathLike, fspath
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from ureca.data.corrections import Correction, Corrections, Journal, counted_actions, read_journal
from ureca.data.output import Output
from ureca.errors import InputError, OutputError
from ureca.io import locate


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's work on a region in another tool, as a reader of that tool's export finds it.

    Attributes:
        image_id: id of the image; None: the record names none.
        region_id: id of the region; None: the record names none.
        exported: caption that the tool was given; None: unknown.
        caption: caption in the tool now; None: it has none.
        action: "accept" or "reject", where the person chose one.
        reason: reason of a rejection.
        decided_at: time of the work.
        problem: reason why the record cannot be used; None: it can.
    """

    image_id: str | None
    region_id: int | None = None
    exported: str | None = None
    caption: str | None = None
    action: Literal["accept", "reject"] | None = None
    reason: str | None = None
    decided_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    problem: str | None = None


@dataclass(slots=True)
class ImportReport:
    """Numbers of the regions of an import.

    Attributes:
        written: number of corrections appended to the journal, by action.
        num_unchanged: number of regions about which nothing was decided.
        num_known: number of decisions that the journal had already.
        left_out: number of other regions, by reason.
    """

    written: Counter[str] = field(default_factory=Counter)
    num_unchanged: int = 0
    num_known: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def gather(self, found: Iterable[Decision]) -> dict[str, dict[int, Decision]]:
        """Return the last decision about each region, by image and region; count records without one."""
        decisions: dict[str, dict[int, Decision]] = {}
        for decision in found:
            if decision.problem is not None or decision.image_id is None or decision.region_id is None:
                self.left_out[decision.problem or "no id of a region"] += 1
            elif decision.action is None and decision.caption in (None, decision.exported):
                self.num_unchanged += 1
            else:
                decisions.setdefault(decision.image_id, {})[decision.region_id] = decision
        return decisions

    def accept(self, decision: Decision, original: str | None, earlier: Correction | None) -> Correction | None:
        """Make the correction of a decision, or count the reason why there is none.

        Args:
            decision: decision about a region. A rejection outweighs a new caption, a new caption an acceptance.
            original: caption of the region in the dataset.
            earlier: the journal's latest correction of the region; None: there is none.
        """
        action: str | None = decision.action
        if action != "reject" and decision.caption is not None and decision.caption != decision.exported:
            action = "correct"
        try:
            correction = Correction.model_validate(
                {
                    "image_id": decision.image_id,
                    "region_id": decision.region_id,
                    "action": action,
                    "caption": decision.caption if action == "correct" else None,
                    "reason": (decision.reason or None) if action == "reject" else None,
                    "original": original,
                    "decided_at": decision.decided_at,
                }
            )
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            self.left_out[f"{problem['loc'][-1] if problem['loc'] else 'decision'}: {problem['msg']}"] += 1
            return None
        same = {"action", "caption", "reason", "original"}
        if earlier is None:
            return correction
        if earlier.model_dump(include=same) == correction.model_dump(include=same):
            self.num_known += 1
            return None
        if earlier.decided_at >= correction.decided_at:
            self.left_out["the journal has a later decision about the region"] += 1
            return None
        return correction

    def summary(self) -> str:
        """Return a readable summary."""
        lines = [counted_actions(self.written) or "no new decision", f"without a decision: {self.num_unchanged}"]
        if self.num_known:
            lines.append(f"already in the journal: {self.num_known}")
        lines += [f"left out: {count}, {reason}" for reason, count in self.left_out.most_common()]
        return "\n".join(lines)


def import_corrections(
    output: str | PathLike[str], format: Literal["label-studio", "fiftyone"], source: str | PathLike[str]
) -> ImportReport:
    """Append the decisions of people in another tool to the journal of an output, each exactly once.

    A caption that differs from the exported one is corrected, a region that was accepted or rejected there gets that
    verdict. The rows of the dataset are not changed. Left out are decisions about captions that are not, or no longer,
    the dataset's, and those that are older than the journal's own about the region.

    Args:
        output: output folder on this machine, from which ``ureca.export`` has written ``format``.
        format: "label-studio" (the export JSON of a project) or "fiftyone" (a folder exported as FiftyOneDataset).
        source: the JSON file, or the folder.

    Returns:
        The numbers of decisions that were written and left out.

    Raises:
        OutputError: ``output`` is not the output of a run on this machine, or its journal cannot be written to.
        InputError: ``source`` cannot be read, or is of another format.
        ValueError: the format is unknown.

    Example:
        >>> import ureca
        >>> tasks = ureca.export("captions", "label-studio", "tasks.json")
        >>> report = ureca.import_corrections("captions", "label-studio", "tasks.json")
        >>> report.written  # nobody has worked on the tasks yet
        Counter()
    """
    # The readers of formats know this module.
    if format == "label-studio":
        from ureca.data.label_studio import read_decisions
    elif format == "fiftyone":
        from ureca.data.fiftyone import read_decisions
    else:
        raise ValueError(f"there is no format {format!r}; the formats are label-studio and fiftyone")
    run = Output.of_run(fspath(output))
    location = locate(run.path)
    if not location.is_local:
        raise OutputError(f"{run.path}: corrections need an output on this machine; copy it here first")
    report = ImportReport()
    try:
        decisions = report.gather(read_decisions(Path(source)))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{source} cannot be read as an export of {format}: {reason}") from error
    latest = {(each.image_id, each.region_id): each for each in read_journal(run.path)}
    corrections = Corrections.of_output(run.path)
    journal = Journal(Path(location.name))
    for row in run.region_rows() if decisions else ():
        own = corrections.of_image(row["image_id"])
        for region in row["regions"]:
            id = region["region_id"]
            found = decisions.get(row["image_id"], {}).pop(id, None)
            if found is None:
                continue
            shown = own[id].apply(region) if id in own else region
            if found.exported not in (region["caption"], shown["caption"]):
                report.left_out["the caption that was exported is not the dataset's"] += 1
                continue
            made = report.accept(found, region["caption"], latest.get((row["image_id"], id)))
            if made is not None:
                journal.append(made)
                report.written[made.action] += 1
    if unknown := sum(map(len, decisions.values())):
        report.left_out["a region that the dataset does not have"] += unknown
    return report


def decision_time(*stated: object, default: datetime) -> datetime:
    """Return the first of some times in ISO 8601, UTC where they name no zone, that is not in the future."""
    for value in stated:
        try:
            time = datetime.fromisoformat(value) if isinstance(value, str) else None
        except ValueError:
            continue
        if time is not None:
            time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
            if time <= datetime.now(UTC):
                return time
    return default
