"""What surrounds the images of the report, as HTML: the run's figures above them, what went wrong below."""

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape

from ureca.dataset import UnitReport
from ureca.report.figures import Figures

_NUM_STAGE_COLOURS = 6
_NUM_DEPTH_COLOURS = 6  # as many as the style has; deeper regions begin again


def header(figures: Figures, work: UnitReport, *, title: str, num_shown: int, num_showable: int) -> str:
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


def _figures(figures: Figures, work: UnitReport, num_shown: int, num_showable: int) -> Iterable[str]:
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
