"""The words of the source code: the field's terms, one for each thing (docs/glossary.md)."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.structure import RIDDLES, SourceFile, comments, docstrings, source_files

ROOT = Path(__file__).parents[1]
FILES = source_files(ROOT)
TESTS = [
    SourceFile(path.relative_to(ROOT), text, ast.parse(text))
    for path in sorted(ROOT.glob("tests/**/*.py"))
    if (text := path.read_text(encoding="utf-8")).strip()
]

# Parts of identifiers that the glossary replaces, and the term that is meant.
REPLACED = {
    "unit": "partition",
    "units": "partitions",
    "claim": "lease",
    "renewal": "heartbeat",
    "death": "crash",
    "deaths": "crashes",
    "recipe": "config hash",
    "proposer": "mask generator",
    "proposers": "mask generators",
    "propose": "generate",
    "proposal": "mask",
    "proposals": "masks",
    "describer": "rule-based captioner",
    "witness": "oracle",
    "verb": "command",
    "verbs": "commands",
    "dice": "rng",
    "rehearsal": "dry run",
    "refusal": "ApiError",
    "lacking": "missing",
    "plant": "build",
}
# Identifiers in which such a part is another thing, or a name that others gave.
KEPT = {
    "refusal": "a field of OpenAI's chat messages",
    "check_not_refusal": "a model's refusal to answer",
    "_REFUSAL": "a model's refusal to answer",
    "_Claim": "a statement of a caption that can be measured",
    "claim": "a statement of a caption that can be measured",
    "_unit": "a unit vector",
    "_unit_vectors": "vectors of length 1",
    "_LAB_UNIT": "a unit of measure",
}
OPENINGS_OF_CLAUSES = {*RIDDLES, "Where", "When", "Why", "Which"}
NAMED = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


def defined_names(file: SourceFile) -> set[str]:
    """Names that a file defines: classes, functions, parameters, variables and attributes."""
    names = set()
    for node in ast.walk(file.tree):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.arg():
                names.add(node.arg)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.Attribute(ctx=ast.Store()):
                names.add(node.attr)
    return names


@pytest.mark.parametrize("file", FILES + TESTS, ids=lambda file: str(file.path))
def test_identifiers_use_the_glossary(file: SourceFile) -> None:
    wrong = {
        name: REPLACED[part]
        for name in defined_names(file) - KEPT.keys()
        for part in (found.lower() for found in NAMED.findall(name))
        if part in REPLACED
    }
    assert not wrong


@pytest.mark.parametrize("file", FILES + TESTS, ids=lambda file: str(file.path))
def test_docstrings_begin_with_an_imperative_or_a_noun_phrase(file: SourceFile) -> None:
    wrong = [
        f"line {line}: {text.splitlines()[0]}"
        for line, text in docstrings(file)
        if text.strip() and text.split(maxsplit=1)[0].rstrip(",:") in OPENINGS_OF_CLAUSES
    ]
    assert not wrong


def test_class_names_are_unique() -> None:
    places = defaultdict(list)
    for file in FILES:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(file.path))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_prose_says_what_is_meant() -> None:
    """At most 8 of 10,000 words of docstrings and comments are "what": a noun says more."""
    texts = [text for file in FILES for _, text in docstrings(file)] + [
        text for file in FILES for text in comments(file)
    ]
    words = re.findall(r"[A-Za-z']+", " ".join(texts).lower())
    assert words.count("what") / len(words) <= 8 / 10_000


def test_only_entry_points_print() -> None:
    """The library and the pipelines log; jobs, benchmarks and experiments talk to a terminal."""
    wrong = [
        f"{file.path}:{token.start[0]}"
        for file in FILES
        if file.path.parts[0] in {"ureca", "pipelines"}
        for token in tokenize.generate_tokens(io.StringIO(file.text).readline)
        if token.type == tokenize.NAME and token.string == "print"
    ]
    assert not wrong


SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?:(?:    .*)?\n)*)", re.MULTILINE)
ENTRY = re.compile(r"^    [\w*`][\w*`, .]*?(?: \(.*?\))?: ([A-Z][a-z]+|A|[a-z]+)(?=[\s,.;:])", re.MULTILINE)
PROPER_NOUNS = {
    "Arrow",
    "Chromium",
    "False",
    "Hugging",
    "Java",
    "Jinja",
    "Kubernetes",
    "None",
    "Parquet",
    "Python",
    "Ray",
    "True",
}


def test_entries_of_docstrings_are_noun_phrases_with_a_small_letter() -> None:
    """``Args:``, ``Attributes:`` and ``Raises:`` continue their names: "path: path of the file"."""
    wrong = [
        f"{file.path}:{line}: {word}"
        for file in FILES + TESTS
        for line, text in docstrings(file)
        for section in SECTION.finditer(text + "\n")
        for word in ENTRY.findall(section[2])
        if (word[0].isupper() and word not in PROPER_NOUNS) or word.title() in OPENINGS_OF_CLAUSES
    ]
    assert not wrong


def test_prose_spells_colour_in_one_way() -> None:
    """As most of the prose has it, "colour"; names of CSS and of libraries stand in backquotes."""
    texts = [
        (file.path, text) for file in FILES for text in [*comments(file), *(found for _, found in docstrings(file))]
    ]
    pages = [path for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")] if path.name != "licences.md"]
    texts += [(path, re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)) for path in pages]
    code = re.compile(r"`[^`]*`|\"[^\"\n]*\"")
    wrong = [(str(path), text) for path, text in texts if re.search(r"\b[Cc]olor(s|ed)?\b", code.sub("", text))]
    assert not wrong
