"""BERTScore with a random BERT of two narrow layers."""

from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.evaluation.tiny_encoders import save_bert
from ureca.errors import DataError, SettingsError
from ureca.evaluation.metrics.bert_score import measure_bert_score
from ureca.evaluation.metrics.references import score
from ureca.evaluation.settings import BertScoreSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bert(tmp_path_factory.mktemp("bert"))


def test_bert_score_f1_matches_best_alignment(model: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()

    def words(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = network(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[1]
        return torch.nn.functional.normalize(hidden[0], dim=-1)  # with the marks at both ends

    def f1(one: str, other: str) -> float:
        cosines = [[float(a @ b) for b in words(other)] for a in words(one)]
        precision = mean(max(row) for row in cosines[1:-1])
        recall = mean(max(column) for column in list(zip(*cosines, strict=True))[1:-1])
        return 2 * precision * recall / (precision + recall)

    hypotheses = ["a red car", "the blue house of the car", "a red car", "", "a car"]
    references = [["a red car"], ["a house", "a blue house ."], ["the house"], ["a car"], ["  "]]
    expected = [1, max(f1(hypotheses[1], text) for text in references[1]), f1("a red car", "the house"), 0, 0]
    settings = BertScoreSettings(model=model, layer=1, batch_size=2, device="cpu")
    assert measure_bert_score(hypotheses, references, settings).each() == pytest.approx(expected, abs=1e-5)
    found = score(hypotheses, references, bert_score=settings, metrics=["BERTScore"])
    assert found["BERTScore"] == pytest.approx(sum(expected) / 5, abs=1e-5)
    assert found["missing"] == {}


def test_bert_score_out_of_memory_has_the_same_scores_in_smaller_batches(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertModel

    hypotheses = ["a red car", "the blue house of the car", "a car", "the house"]
    references = [["a house"], ["a blue house"], ["the house"], ["a red car", "a car"]]
    settings = BertScoreSettings(model=model, layer=1, batch_size=8, device="cpu")
    expected = measure_bert_score(hypotheses, references, settings).each()
    forward, most = BertModel.forward, [3]
    sizes: list[int] = []

    def forward_some(self: BertModel, **inputs: Any) -> Any:
        if len(inputs["input_ids"]) > most[0]:
            raise MemoryError("as on a small device")
        sizes.append(len(inputs["input_ids"]))
        return forward(self, **inputs)

    monkeypatch.setattr(BertModel, "forward", forward_some)
    assert measure_bert_score(hypotheses, references, settings).each() == pytest.approx(expected, abs=1e-5)
    assert sizes == [3, 3]  # of six different texts
    most[0] = 0
    with pytest.raises(DataError, match="out_of_memory: the encoding of one caption"):
        measure_bert_score(hypotheses, references, settings)


def test_bert_score_of_unknown_model_uses_last_layer(model: str) -> None:
    (remark,) = measure_bert_score(["a car"], [["a car"]], BertScoreSettings(model=model, device="cpu")).remarks
    assert "last layer" in remark


def test_bert_score_truncates_long_texts(model: str) -> None:
    settings = BertScoreSettings(model=model, device="cpu")
    assert measure_bert_score(["car " * 500], [["car " * 400]], settings).value() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"layer": 3}, "layer 3 .* it has 2"), ({"device": "abacus"}, "device 'abacus' cannot be used")],
)
def test_bert_score_with_impossible_settings_raises_settings_error(
    model: str, changes: dict[str, object], message: str
) -> None:
    settings = BertScoreSettings.model_validate({"model": model, "device": "cpu"} | changes)
    with pytest.raises(SettingsError, match=message):
        measure_bert_score(["a car"], [["a car"]], settings)


def test_score_with_unloadable_bert_model_gives_reason(tmp_path: Path) -> None:
    settings = BertScoreSettings(model=str(tmp_path), device="cpu")
    found = score(["a car"], [["a car"]], bert_score=settings, metrics=["BERTScore"])
    assert found["BERTScore"] is None
    assert "cannot be loaded" in found["missing"]["BERTScore"]
