"""All prompts of the curation. Rows carry a hash of their text, see ``VERSION``.

The system message is the same for all requests of a stage and comes first, so that prefix caches hit.
"""

import json
import re
from collections.abc import Sequence
from typing import Literal

from ureca.hashing import digest
from ureca.llm.structured import retry_prompt

EXAMPLE = "The round brass knob on the left door of the oak cabinet, worn bright where hands touch it."
"""Caption in the prompts that shows the form of an answer."""

_RULES = f"""\
You write captions for one region of a photograph. The line around it, the numbers and the blur outside of it were \
drawn to show you which one it is: never mention what was drawn. You may name any line, number, mark, picture or crop \
that is in the scene itself, such as a painted line or the number on a jersey.
Begin with the thing itself; do not speak of the image, the photo, the view or the region. Say only what can be seen. \
Quote text that can be read in the scene in single quotes.
Answer with one JSON object and nothing else. The form, with a caption of something else:
{{"caption": "{EXAMPLE}"}}"""

SHORT_CAPTION = f"""\
{_RULES}
You see two pictures: first the region in its surroundings, then the region alone.
Write one sentence that names what the region shows, with its visible attributes (colour, material, texture, shape, \
action), and says where it is in the larger object or what it does for it. It must not fit any of its neighbours."""

DETAILED_CAPTION = f"""\
{_RULES}
You see the whole photograph with the region marked, and you are given a short caption of it and captions of its parts.
Write one paragraph that describes the region as a whole. Take from the captions of the parts what is right and \
important and drop what contradicts the photograph; do not list the parts one after another."""

UNIQUE_CAPTION = f"""\
{_RULES}
You see two pictures: first the whole photograph, then several things of it that look alike, each with a coloured line \
and a number. Number 0, in blue, is the one to describe.
Rewrite its caption so that it fits number 0 and none of the others: keep what is true, and add what tells it apart \
(position, neighbours, size, colour, state). The numbers 0, 1, 2 and so on, and the colours of the lines, were drawn: \
nobody who reads the caption will see them."""

VERIFICATION = """\
You check captions of one region of a photograph. You see the whole photograph, then the same with the region marked \
by a yellow line, then the region alone with everything around it blurred. The line and the blur are not part of the \
photograph.
Decide whether the caption is true of the region: everything it says must be visible there or follow from its place in \
the photograph. Answer with one JSON object and nothing else."""

LISTENING = """\
You match a caption with what it describes. You see two pictures: first the whole photograph, then several things of \
it, each with a coloured line and a number; colours and numbers mean nothing else. The caption was written for one of \
them, or for none.
Decide for which of them everything that the caption says is true. Choose the number of that one; choose "several" if \
it fits two or more of them equally well, and "none" if it fits none. Answer with one JSON object and nothing else."""

WHOLE = "The whole photograph:"
"""Labels of pictures, each before its picture."""
IN_SURROUNDINGS = "The region in its surroundings, inside the yellow line:"
ALONE = "The region alone, with everything around it blurred:"
MARKED = "The whole photograph with the region inside the yellow line:"
NUMBERED = "The numbered things:"

_MAX_CATEGORY_LENGTH = 60
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def short_caption(
    parent_caption: str | None, sibling_captions: Sequence[str], max_words: int, category: str | None = None
) -> str:
    """Return the question of stage 2, with the captions of the parent and of elder siblings, the nearest last.

    ``category`` is the name of the region's class in the annotation file, which comes from outside; None: it has none.
    """
    lines = []
    name = "" if category is None else " ".join(category.split())[:_MAX_CATEGORY_LENGTH]
    if name.isprintable() and name:
        lines.append(f"In a list of the things in the photograph it is called {json.dumps(name, ensure_ascii=False)}.")
    if parent_caption is not None:
        lines.append(f"It is a part of this: {parent_caption}")
    if sibling_captions:
        lines.append("Its neighbours were captioned so:")
        lines.extend(f"- {caption}" for caption in sibling_captions)
    lines.append(f'Caption it in one sentence of at most {max_words} words, as {{"caption": "..."}}.')
    return "\n".join(lines)


def detailed_caption(short_caption: str, child_captions: Sequence[str], max_words: int, num_left_out: int = 0) -> str:
    """Return the question of stage 3.

    Args:
        short_caption: short caption of the region.
        child_captions: captions of its parts.
        max_words: maximum number of words of the answer.
        num_left_out: number of further, smaller parts.
    """
    parts = "\n".join(f"- {caption}" for caption in child_captions)
    others = f"\n(and {num_left_out} smaller parts)" if num_left_out else ""
    return (
        f"Short caption: {short_caption}\nCaptions of its parts:\n{parts}{others}\n"
        f'Describe it in at most {max_words} words, as {{"caption": "..."}}.'
    )


def unique_caption(
    caption: str, lookalike_captions: Sequence[str], max_words: int, confusion: str | None = None
) -> str:
    """Return the question of stage 4.

    Args:
        caption: current caption of number 0.
        lookalike_captions: captions of the look-alikes in the order of their numbers, from 1.
        max_words: maximum number of words of the answer.
        confusion: result of ``confused_with``; None if no listener has mistaken the caption.
    """
    others = "\n".join(f"{number}: {other}" for number, other in enumerate(lookalike_captions, start=1))
    tried = "" if confusion is None else f"{confusion}\n"
    return (
        f"Caption of number 0 so far: {caption}\nCaptions of the others:\n{others}\n{tried}"
        f'Rewrite the caption of number 0 in at most {max_words} words, as {{"caption": "..."}}.'
    )


def bounded(captions: Sequence[str], max_words: int) -> list[str]:
    """Shorten captions so that together they have about ``max_words`` words; short ones stay as they are.

    A caption ends with a sentence if that leaves at least half of its share, else with an ellipsis.
    """
    lengths = [len(caption.split()) for caption in captions]
    left, share = max_words, max_words
    for position, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - position)
        if length > share:
            break
        left -= length
    return [
        caption if length <= share else _shortened(caption, max(1, share))
        for caption, length in zip(captions, lengths, strict=True)
    ]


def _shortened(caption: str, max_words: int) -> str:
    text = " ".join(caption.split()[:max_words])
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends and ends[-1] >= len(text) / 2 else f"{text} ..."


def confused_with(choice: int | Literal["none", "several"]) -> str:
    """Return the sentence on a listener that did not choose number 0.

    Args:
        choice: number that it chose, in the numbering of this question.
    """
    if choice == "none":
        outcome = "found that it fits none of them: something in it is not true of number 0"
    elif choice == "several":
        outcome = "found that it fits several of them: it lacks what only number 0 has"
    else:
        outcome = f"took it for the caption of number {choice}: say what number 0 has and number {choice} has not"
    return f"Someone who was given only this caption {outcome}."


def verification(caption: str) -> str:
    """Return the question of the verification."""
    return f'Caption: {caption}\nAnswer as {{"is_true": true or false, "reason": "..."}}.'


def listening(caption: str, highest_number: int) -> str:
    """Return the question to the listener; numbers start at 0."""
    return (
        f"Caption: {caption}\nThe numbers are 0 to {highest_number}. "
        'Answer as {"choice": number}, {"choice": "several"} or {"choice": "none"}.'
    )


def _content() -> str:
    """Return the text of all prompts with placeholders for the captions."""
    systems = (SHORT_CAPTION, DETAILED_CAPTION, UNIQUE_CAPTION, VERIFICATION, LISTENING)
    choices: tuple[int | Literal["none", "several"], ...] = (1, "none", "several")
    questions = (
        short_caption(None, (), 1),
        short_caption("{parent}", ("{elder}", "{younger}"), 1, "{category}"),
        detailed_caption("{short}", ("{first}", "{second}"), 1, 1),
        unique_caption("{caption}", ("{first}", "{second}"), 1),
        *(unique_caption("{caption}", ("{first}",), 1, confused_with(choice)) for choice in choices),
        verification("{caption}"),
        listening("{caption}", 2),
        retry_prompt("{reason}", "{refused}"),
        *(WHOLE, IN_SURROUNDINGS, ALONE, MARKED, NUMBERED),
    )
    return "\0".join((*systems, *questions))


VERSION = digest([_content()], num_bytes=4).hex()
"""Hash of the prompts, which changes with every change of their text."""
