"""What there is to learn from: images, and the captions of their regions; and what cannot be learned from."""

from dataclasses import dataclass

from ureca.corpus.manifest import ManifestEntry


@dataclass(frozen=True, slots=True)
class TrainingRegion:
    """A region and what the model shall say about it.

    Attributes:
        region_id: as the source calls it; two captions of one region are two of these with the same id.
        counts: COCO compressed RLE counts of its mask, which has the image's size.
        caption: the answer, not empty.
        detailed: whether a question for a detailed caption fits.
        question: what the source asks; None: a question is chosen (``ureca.training.questions``).
    """

    region_id: int
    counts: str
    caption: str
    detailed: bool = False
    question: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An image and all of its regions that are learned from.

    Attributes:
        entry: where the image's bytes are.
        height: in pixels, upright.
        width: in pixels, upright.
        regions: at least one; a *region number* is an index into it.
    """

    entry: ManifestEntry
    height: int
    width: int
    regions: tuple[TrainingRegion, ...]

    @property
    def image_id(self) -> str:
        """Unique in its source."""
        return self.entry.image_id


@dataclass(frozen=True, slots=True)
class BadSample:
    """A region that cannot be learned from, and why. Where it is the image's fault, each of its regions is one.

    Attributes:
        image_id: as the source has it; empty where it does not say.
        region_id: None where the source does not say, or says something else than a number.
        kind: what is wrong, in a few snake_case letters, for counting.
        message: the particulars.
    """

    image_id: str
    region_id: int | None
    kind: str
    message: str
