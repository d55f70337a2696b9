"""Questions about regions in training: the captioner's own question, or a paraphrase.

Short and detailed captions have different paraphrases, as in the paper's training set.
"""

from pydantic import BaseModel, ConfigDict, Field

from ureca.hashing import hash64
from ureca.model.prompt import QUESTION

SHORT_QUESTIONS = (
    "Describe this region in one sentence.",
    "What is in this region? Answer briefly.",
    "Give a short caption that fits only this region.",
    "In a sentence, what does this region show?",
    "Name what this region holds and what sets it apart.",
    "Write a brief description of this part of the image.",
    "What would you call this region, in a few words?",
    "Caption this region concisely.",
)

DETAILED_QUESTIONS = (
    "Describe this region in detail.",
    "What does this region show? Go through its parts.",
    "Write a full description that fits this region and no other in the image.",
    "Explain what this region holds, with its parts and their attributes.",
    "Give a detailed caption for this region.",
    "Look closely at this region. What is there, and how does it fit together?",
    "Describe everything of note in this part of the image.",
    "Tell me about this region as precisely as you can.",
)


class QuestionSettings(BaseModel):
    """Questions about the regions of sources that have no questions of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of regions with the captioner's own question, others get a paraphrase",
    )

    def possible(self, *, detailed: bool) -> tuple[str, ...]:
        """Return all questions that can be chosen."""
        paraphrases = () if self.default_fraction == 1 else paraphrases_of(detailed=detailed)
        return paraphrases if self.default_fraction == 0 else (QUESTION, *paraphrases)


def paraphrases_of(*, detailed: bool) -> tuple[str, ...]:
    """Return the paraphrases for detailed captions, or those for short ones."""
    return DETAILED_QUESTIONS if detailed else SHORT_QUESTIONS


def choose_question(
    image_id: str, region_id: int, *, detailed: bool, settings: QuestionSettings, epoch: int, seed: int
) -> str:
    """Choose the question about a region in an epoch, from its ids, the epoch and the seed alone."""
    random = hash64(seed, epoch, "question", image_id, region_id)
    if random / 2**64 < settings.default_fraction:
        return QUESTION
    return paraphrase(image_id, region_id, detailed=detailed, salt=f"{seed}/{epoch}")


def paraphrase(image_id: str, region_id: int, *, detailed: bool, salt: str = "") -> str:
    """Choose a paraphrase for a region, always the same one for the same salt."""
    questions = paraphrases_of(detailed=detailed)
    return questions[hash64("paraphrase", salt, image_id, region_id) % len(questions)]
