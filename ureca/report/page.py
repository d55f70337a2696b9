"""The report of a run: one HTML file that needs nothing else.

[from] The figures of a run, counted from its rows in one pass.
[from] What surrounds the images of the report, as HTML: the run's figures above them, what went wrong below."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt

import ureca
from ureca.data.partitions import PartitionReport
from ureca.errors import DataError
from ureca.io import replacing
from ureca.report.panels import EvenSample, image_panel

_MAX_FAILURES_LISTED = 200  # the counts cover all of them


@dataclass(frozen=True, slots=True)
class Failure:
    """An image without captions, and why."""

    image_id: str
    uri: str
    stage: str
    kind: str
    message: str


@dataclass(slots=True)
class Figures:
    """What the rows of a ``regions`` dataset add up to; it stays small however many there are.

    Attributes:
        num_images: rows, failed ones included.
        num_regions: masks of all images, whatever became of them.
        num_captioned: regions whose status is ok.
        num_with_lookalikes: captioned regions that had look-alikes.
        verdicts: captioned regions by verdict (unchecked, accepted, rejected).
        failures_by_reason: failed images by "stage: kind".
        left_out_by_status: regions that were skipped or failed, by status.
        failures: the first failed images.
        provenance: distinct values of each field of the rows' provenance (annotator, embedder, ...).
    """

    num_images: int = 0
    num_regions: int = 0
    num_captioned: int = 0
    num_with_lookalikes: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    failures_by_reason: Counter[str] = field(default_factory=Counter)
    left_out_by_status: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    provenance: dict[str, set[str]] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        """Images without captions."""
        return self.failures_by_reason.total()

    @property
    def num_failed_regions(self) -> int:
        """Regions that should have got a caption and did not."""
        return sum(count for status, count in self.left_out_by_status.items() if status.startswith("failed"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row of the schema ``REGIONS``."""
        self.num_images += 1
        if (error := row["error"]) is not None:
            self.failures_by_reason[f"{error['stage']}: {error['kind']}"] += 1
            if len(self.failures) < _MAX_FAILURES_LISTED:
                self.failures.append(Failure(image_id=row["image_id"], uri=row["uri"], **error))
        for name, value in (row["provenance"] or {}).items():
            if value is not None:
                self.provenance.setdefault(name, set()).add(value)
        self.num_regions += len(row["regions"])
        for region in row["regions"]:
            if region["status"] != "ok":
                self.left_out_by_status[region["status"]] += 1
                continue
            self.num_captioned += 1
            self.num_with_lookalikes += bool(region["lookalike_ids"])
            self.verdicts[region["verdict"]] += 1


_NUM_STAGE_COLOURS = 6
_NUM_DEPTH_COLOURS = 6  # as many as the style has; deeper regions begin again


def header(figures: Figures, work: PartitionReport, *, title: str, num_shown: int, num_showable: int) -> str:
    """The title, the figures, the models, and where the time went.

    Args:
        figures: over all rows.
        work: calls, tokens and seconds of the run.
        title: text.
        num_shown: images that are in the page.
        num_showable: images that have regions, of which they were chosen.
    """
    parts = [
        "<header>",
        '<p class="kicker">Regions and their unique captions</p>',
        f"<h1>{escape(title)}</h1>",
        f'<dl class="figures">{"".join(_figures(figures, work, num_shown, num_showable))}</dl>',
    ]
    if figures.provenance:
        models = (_model(name, values) for name, values in figures.provenance.items())
        parts.append(f'<dl class="models">{"".join(models)}</dl>')
    if sum(work.seconds.values()) > 0:
        parts.append(_stages(work.seconds))
    return "\n".join([*parts, "</header>"])


def footer(figures: Figures) -> str:
    """Failed images with their reasons, and why regions have no caption; no more than a note where all went well."""
    parts = ['<footer id="failures">']
    if figures.num_failed:
        parts += ["<h2>Failed images</h2>", _reasons(figures.failures_by_reason), _failures(figures)]
    if figures.left_out_by_status:
        parts += ["<h2>Regions without caption</h2>", _reasons(figures.left_out_by_status)]
    if not figures.num_failed and not figures.left_out_by_status:
        parts.append('<p class="note">No image failed, and every region has its caption.</p>')
    return "\n".join([*parts, "</footer>"])


def legend() -> str:
    """The colours of the depths."""
    depths = range(_NUM_DEPTH_COLOURS)
    return "".join(f'<span class="depth-{depth}"><i class="dot"></i>{depth}</span>' for depth in depths)


def _figures(figures: Figures, work: PartitionReport, num_shown: int, num_showable: int) -> Iterable[str]:
    chosen = "" if num_shown == num_showable else f" of {num_showable:,}, evenly chosen"
    shown = f"{num_shown:,} shown here{chosen}"
    yield _figure("images", f"{figures.num_images:,}", shown)
    yield _figure("captions", f"{figures.num_captioned:,}", f"of {figures.num_regions:,} regions")
    yield _figure("had look-alikes", f"{figures.num_with_lookalikes:,}", "told apart by their captions")
    if figures.verdicts.total() > figures.verdicts["unchecked"]:
        rejected = figures.verdicts["rejected"]
        yield _figure("captions rejected", f"{rejected:,}", f"{figures.verdicts['accepted']:,} accepted")
    failed = f"{figures.num_failed:,}"
    linked = f'<a href="#failures">{failed}</a>' if figures.num_failed else failed
    yield _figure("images failed", linked, f"and {figures.num_failed_regions:,} regions")
    if work.num_calls:
        tokens = f"{work.num_prompt_tokens:,} tokens read, {work.num_new_tokens:,} written"
        yield _figure("MLLM calls", f"{work.num_calls:,}", tokens)


def _figure(name: str, value: str, note: str) -> str:
    """``value`` is HTML; the other two are text."""
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<div><dt>{escape(name)}</dt><dd>{value}</dd>{small}</div>"


def _model(name: str, values: Iterable[str]) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{escape(', '.join(sorted(values)))}</dd></div>"


def _stages(seconds: Mapping[str, float]) -> str:
    """A bar of the stages' shares, longest first. Widths are attributes: the policy allows no inline styles."""
    total_s = sum(seconds.values())
    longest_first = sorted(seconds.items(), key=lambda item: -item[1])
    bars: list[str] = []
    names: list[str] = []
    start = 0.0
    for index, (stage, stage_s) in enumerate(longest_first):
        share = 100 * stage_s / total_s
        colour = f"stage-{index % _NUM_STAGE_COLOURS}"
        bars.append(f'<rect class="{colour}" x="{start:.3f}%" width="{share:.3f}%" height="100%"/>')
        names.append(f'<li class="{colour}">{escape(stage)} <b>{_duration(stage_s)}</b></li>')
        start += share
    return (
        f'<div class="stages"><svg aria-hidden="true">{"".join(bars)}</svg>'
        f'<ul aria-label="Work by stage">{"".join(names)}</ul></div>'
    )


def _reasons(counts: Counter[str]) -> str:
    items = (f"<li>{escape(reason)} <b>{count:,}</b></li>" for reason, count in counts.most_common())
    return f'<ul class="reasons" aria-label="Commonest reasons first">{"".join(items)}</ul>'


def _failures(figures: Figures) -> str:
    rows = (
        f"<tr><td>{escape(failure.image_id)}</td><td>{escape(failure.stage)}: {escape(failure.kind)}</td>"
        f"<td>{escape(failure.message)}</td><td>{escape(failure.uri)}</td></tr>"
        for failure in figures.failures
    )
    left = figures.num_failed - len(figures.failures)
    note = f'<p class="note">{left:,} more failed images are not listed.</p>' if left else ""
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">Image</th><th scope="col">Reason</th>'
        '<th scope="col">What happened</th><th scope="col">Where it is</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


ReadPixels: TypeAlias = Callable[[Sequence[str]], Iterable[tuple[str, npt.NDArray[np.uint8] | DataError]]]
"""From image ids to the pixels of each (uint8 RGB [H, W, 3]), or why there are none, in any order."""

_PANELS_MARK = "<!-- panels -->"


def write_report(
    rows: Iterable[Mapping[str, Any]],
    read_pixels: ReadPixels,
    to: Path,
    *,
    title: str,
    work: PartitionReport,
    max_images: int = 60,
) -> Figures:
    """Write the report of a run, replacing the file where it exists.

    The rows are read once and never held together: memory grows with ``max_images``, not with the run.

    Args:
        rows: of the schema ``REGIONS``.
        read_pixels: asked once, for the images that are shown.
        to: the HTML file.
        title: text for the head of the page.
        work: calls, tokens and seconds that the run took.
        max_images: the most that are shown, at least 1, spread evenly over all images that have regions.

    Returns:
        The figures over all rows.

    Raises:
        OutputError: ``to`` cannot be written.
    """
    figures = Figures()
    shown: EvenSample[Mapping[str, Any]] = EvenSample(max_images)
    for row in rows:
        figures.add(row)
        if row["error"] is None and row["regions"]:
            shown.offer(row)
    page_header = header(figures, work, title=title, num_shown=len(shown), num_showable=shown.num_offered)
    before, after = _page(title, page_header, footer(figures)).split(_PANELS_MARK)
    with replacing(to, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(before)
        _write_panels(file, list(shown), read_pixels)
        file.write(after)
    return figures


def _write_panels(file: TextIO, rows: Sequence[Mapping[str, Any]], read_pixels: ReadPixels) -> None:
    by_id = {row["image_id"]: row for row in rows}
    for image_id, pixels in read_pixels(list(by_id)):
        panel = image_panel(by_id.pop(image_id), pixels)
        jpeg = panel.pop("src") or ""
        file.write(
            '<article class="panel">'
            f'<script type="application/json" class="regions">{_json_in_html(panel)}</script>'
            f'<script type="text/plain" class="jpeg">{jpeg}</script>'
            "</article>\n"
        )
    if by_id:
        raise RuntimeError(f"no pixels and no error came back for the images {sorted(by_id)[:5]}")


def _json_in_html(value: object) -> str:
    """JSON in which no text can end the script element or open another."""
    encoded = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page(title: str, header: str, footer: str) -> str:
    """The whole page with a mark where the panels go. Its policy admits this style, this script and embedded images."""
    style = _shared("viewer.css") + _part("page.css")
    script = _shared("viewer.js") + _part("panels.js") + _part("page.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return Template(_part("page.html")).substitute(
        policy=policy,
        generator=f"ureca {ureca.__version__}",
        title=escape(title),
        style=style,
        script=script,
        header=header,
        footer=footer,
        legend=legend(),
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def _shared(name: str) -> str:
    """What shows an image with its regions here and on the page of the service, whose browsers fetch it as a file."""
    return (resources.files("ureca.serving") / "page" / name).read_text(encoding="utf-8")


def _part(name: str) -> str:
    return resources.files("ureca.report").joinpath(name).read_text(encoding="utf-8")
