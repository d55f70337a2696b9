"""Questions for the captions of the training set, one kind for short captions and one for detailed ones."""

import hashlib
from collections.abc import Sequence

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


def question(image_id: str, region_id: int, *, detailed: bool) -> str:
    """The question of a region: varied over regions, always the same for one."""
    questions: Sequence[str] = DETAILED_QUESTIONS if detailed else SHORT_QUESTIONS
    digest = hashlib.blake2b(f"{region_id}/{image_id}".encode(), digest_size=8).digest()
    return questions[int.from_bytes(digest) % len(questions)]
