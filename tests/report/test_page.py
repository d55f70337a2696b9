import json
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.conftest import WriteReport
from tests.report.rows import HEIGHT, WIDTH, drawn, failed_row, grey_pixels, make_region, make_row
from ureca.data.partitions import PartitionReport
from ureca.errors import DataError, OutputError
from ureca.report.page import write_report
from ureca.report.panels import image_panel, in_tree_order

HOSTILE = (
    "</script x</script><script>document.title='taken'</script><!--<script <img src=x onerror=alert(1)> \"'&amp;\u2028"
)


class Elements(HTMLParser):
    """Start tags, the text of data blocks, and all other text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, list[str]] = {}
        self.text = ""
        self._block: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._block = dict(attrs).get("class") or tag
            self.data.setdefault(self._block, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._block = None

    def handle_data(self, data: str) -> None:
        if self._block is None:
            self.text += data
        else:
            self.data[self._block][-1] += data

    @property
    def panels(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.data.get("regions", [])]


def read(path: Path) -> Elements:
    return Elements(path.read_text(encoding="utf-8"))


def one_region_rows(num_images: int) -> Iterator[dict[str, Any]]:
    """Rows that can be read once."""
    for number in range(num_images):
        yield make_row(f"image-{number:03d}", [make_region(0, drawn(10, 10, 90, 90))])


def test_write_report_embeds_each_image_with_regions_and_pixels(report: WriteReport) -> None:
    path, figures = report(one_region_rows(3))
    page = read(path)
    assert [panel["id"] for panel in page.panels] == ["image-000", "image-001", "image-002"]
    assert page.panels[0]["regions"][0]["caption"] == "unique 0"
    assert all(jpeg.startswith("data:image/jpeg;base64,/9j/") for jpeg in page.data["jpeg"])
    assert figures.num_images == 3
    assert "3 shown here" in page.text
    assert "evenly chosen" not in page.text


def test_write_report_of_many_images_samples_evenly(report: WriteReport) -> None:
    asked: list[list[str]] = []

    def read_pixels(image_ids: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        asked.append(list(image_ids))
        return grey_pixels(image_ids)

    path, figures = report(one_region_rows(30), read_pixels, max_images=3)
    page = read(path)
    assert [panel["id"] for panel in page.panels] == asked[0]
    assert len(asked) == 1 and len(asked[0]) == 3 and asked[0][0] == "image-000" and asked[0][-1] >= "image-015"
    assert figures.num_images == 30
    assert "3 shown here of 30, evenly chosen" in page.text


def test_write_report_with_hostile_text_escapes_it(report: WriteReport) -> None:
    regions = [make_region(0, drawn(0, 0, 9, 9), caption=HOSTILE, short_caption=HOSTILE, verdict_reason=HOSTILE)]
    rows = [
        make_row(HOSTILE, regions, uri=HOSTILE, provenance={"annotator": HOSTILE}),
        failed_row("f" + HOSTILE, "odd", HOSTILE),
    ]
    work = PartitionReport(seconds={HOSTILE: 1.0}, num_calls=2)
    path, _ = report(rows, title=HOSTILE, work=work)
    page = read(path)
    assert page.panels[0]["id"] == HOSTILE
    assert page.panels[0]["regions"][0]["caption"] == HOSTILE
    assert len(page.data["script"]) == 1
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    assert page.text.count(HOSTILE) >= 4


def test_write_report_page_admits_own_script_only(report: WriteReport) -> None:
    path, _ = report(one_region_rows(1))
    page = read(path)
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "base")]
    assert not [a for tag, a in page.tags if "src" in a or a.get("href", "#")[:1] != "#"]  # type: ignore[index]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML|eval\(", path.read_text(encoding="utf-8"))


def test_write_report_lists_and_counts_failures(report: WriteReport) -> None:
    rows = [failed_row("a", "truncated", "ends after 9 bytes"), failed_row("b", "truncated", "ends after 5 bytes")]
    rows.append(failed_row("c", "empty_file", "holds no bytes"))
    left_out = make_region(1, drawn(0, 0, 9, 9), status="failed:timeout", caption=None)
    rows.append(make_row("d", [make_region(0, drawn(0, 0, 90, 90)), left_out]))
    path, figures = report(rows)
    text = read(path).text
    assert figures.num_failed == 3
    assert text.index("read: truncated 2") < text.index("read: empty_file 1")
    assert "ends after 9 bytes" in text and "ends after 5 bytes" in text and "holds no bytes" in text
    assert "failed:timeout 1" in text


def test_write_report_of_missing_image_keeps_outlines(report: WriteReport) -> None:
    path, _ = report(one_region_rows(1), lambda ids: [(id, DataError("missing", "moved away")) for id in ids])
    page = read(path)
    assert page.data["jpeg"] == [""]
    assert page.panels[0]["problem"] == "missing: moved away"
    assert page.panels[0]["regions"][0]["outline"].startswith("M")


def test_write_report_of_empty_run_writes_page(report: WriteReport) -> None:
    path, figures = report([])
    assert figures.num_images == 0
    assert "No image failed" in read(path).text


def test_write_report_that_fails_keeps_old_file(report: WriteReport) -> None:
    path, _ = report(one_region_rows(1))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="no pixels"):
        report(one_region_rows(2), lambda ids: [])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_write_report_to_missing_folder_raises_output_error(report: WriteReport, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_report([], grey_pixels, tmp_path / "no" / "r.html", title="t", work=PartitionReport())


def test_in_tree_order_gives_depth_first_order() -> None:
    # Id, side in pixels and parent; the parent of region 1 is not among them.
    tree = [(1, 20, 99), (4, 30, 7), (3, 40, 7), (5, 10, 3), (7, 90, -1), (9, 25, -1)]
    regions = [make_region(id, drawn(0, 0, side, side), parent_id=parent) for id, side, parent in tree]
    assert [region["region_id"] for region in in_tree_order(regions)] == [7, 3, 5, 4, 9, 1]


def test_image_panel_of_large_picture_is_small_with_outlines_in_image_pixels() -> None:
    shape = (1500, 3000)
    row = make_row("large", [make_region(0, drawn(1000, 500, 2900, 1400, shape))], height=1500, width=3000)
    panel = image_panel(row, np.zeros((*shape, 3), np.uint8))
    assert len(panel["src"]) < 60_000
    assert (panel["height"], panel["width"]) == shape
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", panel["regions"][0]["outline"])]
    assert 1000 <= numbers[0] <= 2900 and 500 <= numbers[1] <= 1400
    assert 1850 <= max(abs(number) for number in numbers[2:]) <= 1900


def test_image_panel_of_small_picture_keeps_size() -> None:
    panel = image_panel(next(one_region_rows(1)), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert panel["problem"] is None
    assert panel["src"].startswith("data:image/jpeg;base64,")
