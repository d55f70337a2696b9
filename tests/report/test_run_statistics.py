from tests.report.rows import drawn, failed_row, make_region, make_row
from ureca.report.page import RunStatistics


def test_run_statistics_add_up_rows() -> None:
    regions = [
        make_region(1, drawn(0, 0, 90, 90), verdict="accepted", lookalike_ids=[2]),
        make_region(2, drawn(100, 0, 190, 90), verdict="rejected", lookalike_ids=[1]),
        make_region(3, drawn(0, 100, 9, 109), status="skipped:area_below_minimum", caption=None),
        make_region(4, drawn(50, 100, 99, 199), status="failed:timeout", caption=None, lookalike_ids=[1]),
    ]
    provenance = dict.fromkeys(("proposer", "annotator", "embedder", "verifier", "ureca"))
    figures = RunStatistics()
    for annotator in ("first 1", "second 2", "first 1"):
        figures.add(make_row("a", regions, provenance=provenance | {"annotator": annotator}))
    figures.add(failed_row("b", "truncated", "too short"))
    figures.add(failed_row("c", "truncated", "too short as well"))
    assert (figures.num_images, figures.num_regions, figures.num_captioned) == (5, 12, 6)
    assert figures.num_with_lookalikes == 6
    assert figures.verdicts == {"accepted": 3, "rejected": 3}
    assert figures.left_out_by_status == {"skipped:area_below_minimum": 3, "failed:timeout": 3}
    assert figures.num_failed_regions == 3
    assert figures.num_failed == 2
    assert figures.failures_by_reason == {"read: truncated": 2}
    assert [(failure.image_id, failure.message) for failure in figures.failures] == [
        ("b", "too short"),
        ("c", "too short as well"),
    ]
    assert figures.provenance == {"annotator": {"first 1", "second 2"}}


def test_run_statistics_bound_listed_failures_but_count_all() -> None:
    figures = RunStatistics()
    row = failed_row("b", "truncated", "too short")
    for _ in range(1000):
        figures.add(row)
    assert figures.num_failed == 1000
    assert len(figures.failures) == 200
