"""The report of a run: one HTML file that needs nothing else."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt

import ureca
from ureca.atomic import replacing
from ureca.dataset import UnitReport
from ureca.errors import DataError
from ureca.report import frame
from ureca.report.figures import Figures
from ureca.report.panel import image_panel
from ureca.report.sample import EvenSample

ReadPixels: TypeAlias = Callable[[Sequence[str]], Iterable[tuple[str, npt.NDArray[np.uint8] | DataError]]]
"""From image ids to the pixels of each (uint8 RGB [H, W, 3]), or why there are none, in any order."""

_PANELS_MARK = "<!-- panels -->"


def write_report(
    rows: Iterable[Mapping[str, Any]],
    read_pixels: ReadPixels,
    to: Path,
    *,
    title: str,
    work: UnitReport,
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
    header = frame.header(figures, work, title=title, num_shown=len(shown), num_showable=shown.num_offered)
    before, after = _page(title, header, frame.footer(figures)).split(_PANELS_MARK)
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
        legend=frame.legend(),
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def _shared(name: str) -> str:
    """What shows an image with its regions here and on the page of the service, whose browsers fetch it as a file."""
    return (resources.files("ureca.serving") / "page" / name).read_text(encoding="utf-8")


def _part(name: str) -> str:
    return resources.files("ureca.report").joinpath(name).read_text(encoding="utf-8")
