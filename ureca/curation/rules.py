"""Rules for captions: refusals, leaks of drawn marks and of the blurred background, remarks about the task, language.

The words that they look for are in ``ureca.curation.rule_patterns``. Text in quotation marks is taken to be written on
something in the picture and is left alone.
"""

import re
from collections import Counter
from functools import cache
from typing import Any

from ureca.curation import rule_patterns
from ureca.curation.settings import CaptionRules
from ureca.llm.structured import InvalidResponseError, check_not_refusal

_MIN_WORDS_OF_A_LANGUAGE = 5
_MIN_LANGUAGE_PROBABILITY = 0.6
_MIN_ENGLISH_PROBABILITY = 0.2
_LANGUAGES = re.findall(
    r"\w+",
    "af ca cs cy da de en es et eu fi fr ga hr hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi",
)
"""Languages in Latin letters that chat models answer in; rarer ones would share the probability of their relatives."""
_MIN_ENGLISH_FRACTION = 0.15
_ENGLISH_WORDS = re.compile(
    r"\b(?:the|of|with|and|its|his|her|their|from|behind|beside|near|above|below|under|next|standing|holding|wearing|"
    r"small|"
    r"large|white|black|blue|green|brown|wooden|left|right|front|back|which|that|is|are|by)\b",
    re.IGNORECASE,
)
"""Words that are frequent in English captions and rare in other languages in Latin letters."""

_WRITTEN_IN_ANOTHER_SCRIPT = re.compile(
    r"(?<=[A-Za-z])(?: (?:reading|reads?|saying|says?|labell?ed|inscribed|lettered|words?|text|characters?|lettering|"
    r"kanji|"
    r"hanzi|title|name)):?(?: (?:with|as))? [^\W\d_A-Za-z\u0000-\u024f][^\W_A-Za-z\u00c0-\u024f]{0,39}(?=[\s.,;:!?)]|"
    r"$)",
    re.IGNORECASE,
)

_QUOTED = re.compile(
    r"\"[^\"\n]{1,200}\"|\u201c[^\u201d\n]{1,200}\u201d|(?<!\w)['\u2018][^'\u2019\n]{1,200}['\u2019](?!\w)"
)

_REASONS = {
    "empty": "it has no words",
    "generic": "it would fit any thing; name what can be seen",
    "placeholder": "it repeats a placeholder of the question instead of a caption",
    "markdown": "it has Markdown, markup or a piece of JSON; write plain sentences",
    "meta": "it speaks about the task; begin with the thing itself",
    "hedge": "it says that the thing cannot be told; say what can be seen",
    "mentions_marks": "it mentions the line or mark that shows which thing is meant",
    "mentions_blur": "it mentions the blur or the plain background, which are not part of the photograph",
    "mentions_picture": "it speaks of a picture, photo or crop instead of what can be seen",
    "mentions_numbers": "it mentions a number that is only drawn there",
    "repetition": "it repeats itself",
    "other_language": "it is not in English",
}

_ABBREVIATED = re.compile(r"(?:\b(?:mr|mrs|ms|dr|st|mt|no|vs|ca|approx|jr|sr|inc|e\.g|i\.e)|\b[a-z])$", re.IGNORECASE)
_END_OF_SENTENCE = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[A-Z0-9])")


def check_caption(rules: CaptionRules, caption: str, *, short: bool = False, highest_number: int | None = None) -> None:
    """Check a caption against all rules.

    Args:
        rules: rules to keep.
        caption: caption, not blank.
        short: require one sentence of at most ``max_short_words`` words.
        highest_number: highest of the numbers, from 0, that were drawn on the view; None: no numbers were drawn.

    Raises:
        InvalidResponseError: its kind is ``refusal``, ``too_short``, ``too_many_words``, ``several_sentences``, or
            one of those in ``_REASONS``.
    """
    if not re.search(r"\w", caption):
        raise _fault("empty")
    if rule_patterns.PLACEHOLDER.search(caption):
        raise _fault("placeholder")
    if rule_patterns.MARKDOWN.search(caption) or rule_patterns.JSON_IN_TEXT.search(caption):
        raise _fault("markdown")
    if rule_patterns.GENERIC.search(caption):
        raise _fault("generic")
    check_not_refusal(caption)
    text = _QUOTED.sub("\u2026", re.sub(r"[ \t\u00a0]{2,}|\u00a0", " ", caption.replace("\u2019", "'")))
    if found := _find_leak(text, highest_number):
        raise _fault(*found)
    if rules.language == "english" and not _may_be_english(text):
        raise _fault("other_language")
    _check_length(rules, caption, short)


def _check_length(rules: CaptionRules, caption: str, short: bool) -> None:
    num_words = len(caption.split())
    limit = min(rules.max_words, rules.max_short_words) if short else rules.max_words
    if num_words < rules.min_words:
        raise InvalidResponseError("too_short", f"it has fewer words than {rules.min_words}")
    if num_words > limit:
        raise InvalidResponseError("too_many_words", f"it has {num_words} words, and {limit} is the limit")
    if short and num_sentences(caption) > 1:
        raise InvalidResponseError("several_sentences", "it must be one sentence")


def num_sentences(text: str) -> int:
    """Sentences of a text, at least 1; a full stop after an abbreviation or a single letter ends none."""
    ends = [
        end
        for end in _END_OF_SENTENCE.finditer(text)
        if text[end.start()] != "." or not _ABBREVIATED.search(text[: end.start()])
    ]
    return 1 + len(ends)


def _fault(kind: str, quoted: str | None = None) -> InvalidResponseError:
    return InvalidResponseError(kind, _REASONS[kind] if quoted is None else f'{_REASONS[kind]} ("{quoted.strip()}")')


def _find_leak(text: str, highest_number: int | None) -> tuple[str, str] | None:
    """Words that tell of the task instead of the picture, with the kind of the fault."""
    groups = {
        "meta": rule_patterns.META,
        "hedge": (rule_patterns.HEDGES,),
        "mentions_blur": rule_patterns.BLUR,
        "mentions_picture": rule_patterns.PICTURE,
    }
    for kind, patterns in groups.items():
        for pattern in patterns:
            for found in pattern.finditer(text):
                # A cover or a screen in the scene may show a close-up, or a blurred image.
                if kind not in {"mentions_blur", "mentions_picture"} or not rule_patterns.SHOWN_ON.search(
                    text[: found.start()]
                ):
                    return kind, found[0]
    candidates = [("mentions_marks", _mark(text)), ("repetition", _repetition(text))]
    if highest_number is not None:
        candidates.append(("mentions_numbers", _number_of_a_mark(text, highest_number)))
        candidates.append(("mentions_marks", _colour_of_a_mark(text) or _contrast_of_marks(text)))
    return next(((kind, words) for kind, words in candidates if words is not None), None)


def _mark(text: str) -> str | None:
    """A relation between the region and a line that is only drawn there."""
    for pattern in rule_patterns.MARKS:
        for found in pattern.finditer(text):
            # Where lines are painted in the world: "the parking space marked with yellow lines".
            after = re.split(r"[,;:.()]", text[found.end() : found.end() + 12])[0]
            around = f"{text[max(0, found.start() - 40) : found.end()]}{after}"
            if not rule_patterns.PAINTED.search(around) or re.search(
                r"\b(?:around|bounding|contour|(?:the|this|that|an?) (?:highlighted|circled|indicated|annotated))\b",
                found[0],
                re.IGNORECASE,
            ):
                return found[0]
    return None


def _number_of_a_mark(text: str, highest: int) -> str | None:
    """A drawn number in any position of a noun: "coin 0", "the one labelled 3", "left of 1", "(2)".

    Numbers on jerseys, bibs, balls, signs and the like are in the world and stay.
    """
    for found in re.finditer(
        r"(?<![\d.:/$€£-])(\d{1,2})(?![\w/%]|[:.,]\d|\s?(?:cm|mm|m|km|kg|px|inch|inches|feet|ft|am|pm|"
        r"percent|years?|to \d|o'clock|minutes?|hours?|seconds?)\b|st\b|nd\b|rd\b|th\b|-)",
        text,
    ):
        before, after = text[: found.start()], text[found.end() :]
        if int(found[1]) > highest or rule_patterns.NO_INDEX.match(after) or re.search(r"\d (?:past|to) $", before):
            continue
        if re.search(r"\b(?:of the|all|these|those) $", before):
            continue  # a count: "the only one of the 4 that is full"
        is_bracketed = before.endswith(("(", "[", "#")) and not re.search(r"\b(?:number|jersey|bib)", before[-20:])
        is_index = re.search(r"\bindex #?$", before, re.IGNORECASE) is not None
        if (
            not is_bracketed
            and not is_index
            and not rule_patterns.DRAWN_NEXT_TO.match(after)
            and not re.search(r"\b(?:at|as) (?:number |no\. |position )?$", before, re.IGNORECASE)
            and (
                rule_patterns.NUMBERED_THINGS.search(before[-45:])
                or rule_patterns.NUMBERED_WITH_RELATION.search(before[-60:])
                or (found[1] != "0" and rule_patterns.NUMBERED_IN_ORDER.search(before[-40:]))
                or (found[1] != "0" and rule_patterns.PLACED_IN_NUMBERED.search(before[-20:]))
                or rule_patterns.PRINTED_ON.match(after)
                or (rule_patterns.NUMBERED_BY_MAKERS.search(text) and rule_patterns.REFERS_TO_MADE.search(before[-45:]))
            )
        ):
            continue
        if re.search(
            r"\b(?:of|the|all|with|and|by|has|have|other|under|behind|above|to|about|around|nearly|roughly|least|some|"
            r"just|"
            r"than|only|its|their) $",
            before,
        ) and re.match(r" (?:\w+ )?[a-z]{2,}s\b(?<!\bis)(?<!\bhas)(?<!\bthis)", after):
            continue  # a count: "the tallest of 4 bottles"
        if re.search(r"(?:[A-Za-z]+ #?|#|\(|\[|^)$", before):
            return f"{' '.join(before.split()[-2:])} {found[0]}".strip()
    named = re.search(
        r"^\W*(?:the )?(?!ground)\w+ zero\b(?! gravity)|\b(?:indices|index (?:number|zero|one|two|three)|number zero|"
        r"(?:object|region|item|candidate|"
        r"coin|one) (?:number )?(?:zero|one|two|three|four)(?=[ ,.]|$))\b(?! of\b)",
        text,
        re.IGNORECASE,
    )
    return None if named is None or rule_patterns.NUMBERED_THINGS.search(text[: named.start()][-30:]) else named[0]


def _colour_of_a_mark(text: str) -> str | None:
    """A thing "in blue": people wear colours, other things that were outlined are called by those of their lines."""
    pattern = (
        r"\b([A-Za-z]+) in (?:the )?(?:yellow|blue|red|orange|green|magenta|cyan|purple|"
        r"pink)(?=\s*(?:[.,;:!?)]|$|and\b(?! (?:gold|white|black|gr[ae]y|silver|brown|yellow|blue|red|orange|green|"
        r"purple|pink)\b)|"
        r"on the\b|at\b|near\b|is\b))"
    )
    for found in re.finditer(pattern, text):
        noun = found[1]
        if noun == "one" and re.fullmatch(r"\W*the ", text[: found.start()], re.IGNORECASE):
            return found[0]
        painted = re.search(
            r"(?:painted|written|printed|dressed|clad|drawn|lit|decorated|colou?red|covered|dyed|wrapped|"
            r"done|upholstered|finished|glowing|shown|bathed|blooming|bloom|parts?|details?|letters?|text|"
            r"lettering|accents?|stripes?|striped|trimmed|edged|lined|patterned|embroidered|carved)$",
            noun,
            re.IGNORECASE,
        )
        if not painted and (rule_patterns.NOT_PEOPLE.search(noun) or not rule_patterns.PEOPLE.search(noun)):
            return found[0]
    return None


def _contrast_of_marks(text: str) -> str | None:
    """Two things told apart by the colours of their outlines, also where one alone could be painted so."""
    found = re.findall(
        rf"\b(?:outlined|circled|encircled|highlighted|boxed) in ({rule_patterns.MARK_COLOUR})\b", text, re.IGNORECASE
    ) or re.findall(
        rf"\bwith (?:an? |the )?({rule_patterns.MARK_COLOUR}) (?:and \w+ )?(?:lines?|contours?)\b", text, re.IGNORECASE
    )
    return f"{found[0]} ... {found[1]}" if len({colour.lower() for colour in found}) > 1 else None


def _repetition(text: str) -> str | None:
    """A run of words that comes again and again."""
    words = re.findall(r"[\w']+", text.lower())
    for first in range(len(words) - 3):
        if len(set(words[first : first + 4])) == 1:
            return " ".join(words[first : first + 4])
    for size, most in ((3, 3), (5, 2), (8, 1)):
        runs = Counter(tuple(words[first : first + size]) for first in range(len(words) - size + 1))
        if runs:
            run, number = runs.most_common(1)[0]
            if number > most:
                return " ".join(run)
    return None


def _may_be_english(text: str) -> bool:
    # A sign may be in any script: "a Japanese sign reading ..."; elsewhere such letters are the model's own.
    text = _WRITTEN_IN_ANOTHER_SCRIPT.sub("\u2026", text)
    letters = [character for character in text if character.isalpha()]
    if any(character > "\u024f" for character in letters):
        return False
    words = re.findall(r"[^\W\d_]+", text)
    # The detector takes English with a few loan words ("crème brûlée in a small ramekin") for another language.
    num_english = len(_ENGLISH_WORDS.findall(text))
    if len(words) < _MIN_WORDS_OF_A_LANGUAGE or num_english >= max(2, _MIN_ENGLISH_FRACTION * len(words)):
        return True
    ranked: dict[str, float] = dict(_language_identifier().rank(" ".join(words).lower()))
    best = max(ranked, key=ranked.__getitem__)
    return best == "en" or ranked[best] < _MIN_LANGUAGE_PROBABILITY or ranked["en"] > _MIN_ENGLISH_PROBABILITY


@cache
def _language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_LANGUAGES)
    return identifier
