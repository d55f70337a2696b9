"""The columns a table can have, in their order: the paper's first."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """How a measure is shown.

    Attributes:
        name: of the measure, and the head of its column.
        is_higher_better: whether more is better.
        explanation: a sentence for the reader of a table.
    """

    name: str
    explanation: str
    is_higher_better: bool = True


_ALL = (
    *(
        Column(f"BLEU@{order}", f"n-grams up to {order} that a reference has too, of the whole set")
        for order in (1, 2, 3, 4)
    ),
    Column("ROUGE", "longest common subsequence with a reference (ROUGE-L)"),
    Column("METEOR", "words aligned with a reference, by form, stem, synonym or paraphrase, of the whole set"),
    Column("BERTScore", "F1 of words aligned with a reference by contextual embeddings"),
    Column("CIDEr", "n-grams shared with the references, weighted by how few regions have them"),
    Column("Duplicates", "regions with the caption of another region of the image, or with none", False),
    Column("Near-duplicates", "regions with nearly the caption of another region of the image, or with none", False),
    Column("Retrieval R@1", "captions whose own region is the nearest of its image, for an image-text encoder"),
    Column("Retrieval MRR", "1 / rank of the caption's own region among those of its image"),
    Column("Retrieval ceiling", "retrieval R@1 of the reference captions"),
    Column("Listener", "captions by which an MLLM picks the right one of the numbered candidates"),
    Column("Listener ceiling", "the same for the reference captions"),
    Column("Correct", "captions that fit their region and no other, by the language of scenes"),
    Column("Ambiguous", "captions that fit their region and others", False),
    Column("Wrong", "captions that do not fit their region, or are not of the language", False),
    Column("Not of the language", "captions that are not of the language of scenes; they are among the wrong", False),
)

COLUMNS: dict[str, Column] = {column.name: column for column in _ALL}

OF_THE_PAPER = ("BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4", "ROUGE", "METEOR", "BERTScore")
"""What the paper's tables report; a table has these columns even where one was not measured."""
