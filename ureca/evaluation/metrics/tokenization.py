"""Captions as the words that metrics compare: the Penn Treebank tokenizer, lower case, without punctuation."""

import re
import unicodedata
from collections.abc import Iterable

from ureca.evaluation.metrics.java import module_folder, run_java

_JAR = "stanford-corenlp-3.4.1.jar"
_MAIN = "edu.stanford.nlp.process.PTBTokenizer"


def tokenize(texts: Iterable[str]) -> dict[str, str]:
    """The words of each text, with single spaces between them; "" where it has none.

    Raises:
        SettingsError: pycocoevalcap or Java is missing.
    """
    lines = {text: on_one_line(text) for text in texts}
    spoken = sorted({line for line in lines.values() if line})
    words = dict(zip(spoken, _tokenized(spoken), strict=True))
    return {text: words.get(line, "") for text, line in lines.items()}


def on_one_line(text: str) -> str:
    """A text without line breaks, control characters and characters that are none, and without METEOR's delimiter.

    Both programs read and answer line by line, so a caption must not be two.
    """
    kept = "".join(" " if unicodedata.category(letter) in _NOT_TEXT else letter for letter in text)
    return " ".join(re.sub(r"\|{3,}", " ", kept).split())


_NOT_TEXT = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}


def _tokenized(lines: list[str]) -> list[str]:
    if not lines:
        return []
    folder = module_folder("pycocoevalcap.tokenizer.ptbtokenizer")
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    answers = run_java(["-cp", _JAR, _MAIN, "-preserveLines", "-lowerCase"], lines, folder)
    return [" ".join(word for word in answer.split(" ") if word and word not in PUNCTUATIONS) for answer in answers]
