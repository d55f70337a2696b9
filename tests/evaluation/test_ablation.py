"""Measures of a variant of the curation, and the variants."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import write_corpus
from ureca.curation.rule_based.captioner import RuleBasedListener
from ureca.curation.settings import NoListenerConfig, NoVerificationConfig, StageSettings
from ureca.data.output import Output
from ureca.evaluation.ablation import VariantResult, measure_variant, to_markdown
from ureca.evaluation.scorer import CaptionScorer
from ureca.evaluation.tables.formats import NOT_MEASURED
from ureca.jobs.cli import main
from ureca.pipelines.ablation_settings import FULL, AblationSettings
from ureca.scenes.files import write_scenes


def test_measure_variant_counts_kept_rejected_and_failed_captions(tmp_path: Path) -> None:
    write_scenes(tmp_path, 2, split="test", seed=1, width_px=224, height_px=224)
    output = Output(str(tmp_path))
    whole = measure_variant("whole", output, CaptionScorer(listener=RuleBasedListener()))
    assert whole.num_kept == whole.num_regions > 20
    assert whole.figures["Correct"] == 1.0
    assert whole.figures["Duplicates"] == whole.figures["Wrong"] == 0.0
    assert 0 <= whole.figures["Listener"] <= 1

    # Of the first image one caption is rejected, one has failed, one is skipped, and one is of another region.
    rows = output.partition_rows(0)
    regions = rows[0]["regions"]
    regions[0]["verdict"] = "rejected"
    regions[1] |= {"status": "failed:short_caption:refusal", "caption": None}
    regions[2]["status"] = "skipped:small"
    regions[3]["caption"] = regions[4]["caption"]
    output.write_partition(0, rows, output.report([0]))
    changed = measure_variant("changed", output, CaptionScorer())
    assert changed.num_regions == whole.num_regions - 1
    assert (changed.num_kept, changed.num_invalid, changed.num_failed) == (whole.num_kept - 3, 1, 1)
    assert changed.figures["Duplicates"] == pytest.approx(2 / changed.num_kept)
    assert changed.figures["Wrong"] == pytest.approx(1 / changed.num_kept)
    assert "Listener" not in changed.figures


def test_to_markdown_has_one_row_per_variant() -> None:
    made: dict[str, Any] = {"num_invalid": 1, "num_failed": 0, "num_new_tokens": 5}
    rows = [
        VariantResult(variant="a", num_regions=8, num_kept=7, num_calls=20, figures={"Duplicates": 0.25}, **made),
        VariantResult(variant="b", num_regions=8, num_kept=6, num_calls=0, figures={"Listener": 1.0}, **made),
    ]
    head, _, first, second = to_markdown(rows).splitlines()
    assert head.startswith(
        "| variant | kept of regions | rejected | failed | calls | calls a region | Duplicates | Lis"
    )
    assert first == f"| a | 7 of 8 | 1 | 0 | 20 | 2.50 | 25.0 | {NOT_MEASURED} |"
    assert second == f"| b | 6 of 8 | 1 | 0 | 0 | 0.00 | {NOT_MEASURED} | 100.0 |"


def test_variants_each_omit_one_stage() -> None:
    settings = AblationSettings(input="in", output="out", uniqueness={"similarity_threshold": 0.7})
    variants = settings.variants()
    assert {variant.output for variant in variants.values()} == {f"out/{name.replace(' ', '-')}" for name in variants}
    assert {variant.uniqueness.similarity_threshold for variant in variants.values()} == {0.7}
    assert variants[FULL].stages == StageSettings()
    assert variants["no refinement"].stages == StageSettings(refinement=False)
    assert variants["no listener"].listener == NoListenerConfig()
    assert variants["no listener"].verification == settings.verification
    without = AblationSettings(
        input="in", output="out", listener=NoListenerConfig(), verification=NoVerificationConfig()
    )
    assert variants.keys() - without.variants().keys() == {"no listener", "no verification"}


@pytest.mark.timeout(200)
def test_ablate_curation_command_writes_tables(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "in", 2)
    all_of_them = AblationSettings.variants

    def two(settings: AblationSettings) -> dict[str, Any]:
        return {name: variant for name, variant in all_of_them(settings).items() if name in {FULL, "no listener"}}

    monkeypatch.setattr(AblationSettings, "variants", two)
    flags = ["--listing.annotations", "beside", "--masks.kind", "annotations"]
    assert main(["ablate-curation", str(tmp_path / "in"), str(tmp_path / "out"), *flags]) == 0
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert capsys.readouterr().out == table
    dump = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [row["variant"] for row in dump["variants"]] == [FULL, "no listener"]
    assert all(row["num_regions"] == 8 for row in dump["variants"])
    assert dump["variants"][1]["num_invalid"] == 0
    assert dump["settings"]["verification"] == {"kind": "rule_based"}
