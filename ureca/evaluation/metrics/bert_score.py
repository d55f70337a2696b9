"""BERTScore: words of a caption aligned with those of a reference by contextual embeddings (Zhang et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

from ureca.errors import SettingsError
from ureca.evaluation.encoders import check_checkpoint, load_encoder
from ureca.evaluation.measures import Measure, mean_of
from ureca.evaluation.settings import BertScoreSettings
from ureca.memory import in_parts_that_fit

if TYPE_CHECKING:
    import torch

    Tokens: TypeAlias = tuple[torch.Tensor, torch.Tensor]
    """Unit vectors of a text's tokens [T, D], and a mask of those that are not special tokens, bool [T]."""

_LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-multilingual-cased": 9,
    "distilbert-base-uncased": 5,
    "roberta-base": 10,
    "roberta-large": 17,
    "deberta-xlarge-mnli": 40,
}
"""Layers that agree best with human judgements according to the authors, by the last part of the model's name."""


def measure_bert_score(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], settings: BertScoreSettings
) -> Measure:
    """Mean of ``BertScorer.f1`` over captions.

    Raises:
        SettingsError: as ``BertScorer``.
    """
    return bert_measure(BertScorer(settings).f1(hypotheses, references), settings)


def bert_measure(values: Sequence[float | None], settings: BertScoreSettings) -> Measure:
    """Mean of F1 values, one per region; None where a region does not count."""
    layer = _chosen_layer(settings)
    layer_text = "last layer" if layer is None else f"layer {layer}"
    return mean_of("BERTScore", values, (f"BERTScore: {settings.model}, {layer_text}, not rescaled.",))


class BertScorer:
    """BERTScore with a loaded model.

    Args:
        settings: model, layer, batch size and device.

    Raises:
        SettingsError: the model cannot be loaded, has no such layer, or has a tokenizer without padding.
    """

    def __init__(self, settings: BertScoreSettings) -> None:
        self._encoder = _Encoder(settings)

    def f1(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """The F1 of each caption with its best reference, without rescaling and without idf weights, 0 to 1.

        Texts longer than the model's limit are truncated. A text without words scores 0.
        """
        texts = {text.strip() for texts in references for text in texts} | {text.strip() for text in hypotheses}
        # Texts of similar length share a batch, which saves padding.
        words = dict(self._encoder.embed(sorted(texts - {""}, key=lambda text: (len(text), text))))
        return [
            max((_f1(words.get(hypothesis.strip()), words.get(text.strip())) for text in texts), default=0.0)
            for hypothesis, texts in zip(hypotheses, references, strict=True)
        ]


def check_encoder(settings: BertScoreSettings) -> None:
    """Check that the model can be loaded, without loading its weights.

    Raises:
        SettingsError: it cannot.
    """
    check_checkpoint(settings.model, "AutoTokenizer")


def _chosen_layer(settings: BertScoreSettings) -> int | None:
    """The layer of the settings, else the one published for the model; None for the last."""
    return _LAYERS.get(PurePath(settings.model).name.lower()) if settings.layer is None else settings.layer


def _f1(hypothesis: Tokens | None, reference: Tokens | None) -> float:
    """F1 as in the authors' program: a word may be nearest to a special token, but special tokens do not count."""
    if hypothesis is None or reference is None or not hypothesis[1].any() or not reference[1].any():
        return 0.0
    cosines = hypothesis[0] @ reference[0].T
    precision = float(cosines.amax(dim=1)[hypothesis[1]].mean())
    recall = float(cosines.amax(dim=0)[reference[1]].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


class _Encoder:
    """A text encoder and its tokenizer."""

    def __init__(self, settings: BertScoreSettings) -> None:
        self._batch_size = settings.batch_size
        self._network, self._tokenizer, self._device = load_encoder(settings.model, "AutoTokenizer", settings.device)
        num_layers = int(self._network.config.num_hidden_layers)
        chosen = _chosen_layer(settings)
        self.layer = num_layers if chosen is None else chosen
        if self.layer > num_layers:
            raise SettingsError(f"layer {self.layer} of {settings.model} does not exist: it has {num_layers}")
        if self._tokenizer.pad_token is None:
            raise SettingsError(f"the tokenizer of {settings.model} has no padding; BERTScore needs an encoder's")
        # Some tokenizers have an absurdly large limit, which the number of positions bounds.
        positions = int(getattr(self._network.config, "max_position_embeddings", 512))
        padding = int(getattr(self._network.config, "pad_token_id", 0) or 0)
        self._max_tokens = min(int(self._tokenizer.model_max_length), positions - padding - 1)

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[str, Tokens]]:
        """Yield each text with the vectors of its tokens.

        Raises:
            DataError: ``out_of_memory``: there is not enough memory even for one text.
        """
        for _, embedded in in_parts_that_fit(
            self._embed_batch, texts, self._batch_size, "the encoding of one caption for BERTScore"
        ):
            yield from embedded

    def _embed_batch(self, texts: Sequence[str]) -> list[tuple[str, Tokens]]:
        import torch

        inputs: Mapping[str, Any] = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        tensors = {name: values.to(self._device) for name, values in inputs.items() if name != "special_tokens_mask"}
        with torch.inference_mode():
            hidden = self._network(**tensors, output_hidden_states=True).hidden_states[self.layer]
        vectors = torch.nn.functional.normalize(hidden.float(), dim=-1).cpu()
        embedded = []
        for row, text in enumerate(texts):
            is_token = inputs["attention_mask"][row] == 1
            is_word = inputs["special_tokens_mask"][row] == 0
            embedded.append((text, (vectors[row][is_token], is_word[is_token])))
        return embedded
