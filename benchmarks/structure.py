"""`make structure`: the size of the pieces, the import graph, and the language of the source code, as one table.

Counts are of the source files of ``ureca``, ``pipelines`` and ``jobs`` (and of ``benchmarks`` and ``experiments`` where
the repository has them at its top level). With ``--run``, a curation of one drawn image and one training step are
traced, to count the files and functions that they pass through.
"""

import argparse
import ast
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("ureca", "pipelines", "jobs", "benchmarks", "experiments")
RIDDLES = ("What", "Who", "Whoever", "Whether", "How", "Of", "That")
SHORT_FUNCTION_LINES = 5

# The same counts on the last commit before the restructuring (a83cdd7), by this script.
AT_THE_START = {
    "source files": "402",
    "median lines of a file": "88",
    "median lines of a function": "7",
    "functions of 5 lines or fewer": "40 %",
    "private functions used exactly once": "464 of 685",
    "packages of ureca in an import cycle": "8",
    "'what' per 10,000 words of docstrings and comments": "125",
    "docstrings that begin with What, Who, How, Whether, Of, That": "15 %",
    "public names in `import ureca`": "1",
    "files / functions that one image passes through in curate": "65 / 522",
    "files that one training step passes through, without / with Ray": "38 / 45",
}
GOALS = {
    "source files": "about 170",
    "median lines of a file": "150 or more",
    "median lines of a function": "10 or more",
    "functions of 5 lines or fewer": "at most 30 %",
    "private functions used exactly once": "only named concepts",
    "packages of ureca in an import cycle": "0",
    "'what' per 10,000 words of docstrings and comments": "at most 8",
    "docstrings that begin with What, Who, How, Whether, Of, That": "0",
    "public names in `import ureca`": "all of the API",
    "files / functions that one image passes through in curate": "at most 30 files",
    "files that one training step passes through, without / with Ray": "at most 15",
}


@dataclass(frozen=True)
class SourceFile:
    """A parsed source file."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """Dotted name; pipelines and jobs are parts of ``ureca``."""
        parts = self.path.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        return f"ureca.{name}" if parts[0] in {"pipelines", "jobs"} else name


def source_files(root: Path) -> list[SourceFile]:
    """All source files of a checkout; the links from ``ureca`` to other top-level folders are not followed."""
    files = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            relative = path.relative_to(root)
            if relative.parts[:2] in {("ureca", "pipelines"), ("ureca", "jobs")}:
                continue
            text = path.read_text(encoding="utf-8")
            if text.strip():
                files.append(SourceFile(relative, text, ast.parse(text)))
    return files


def functions(file: SourceFile) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file, nested ones too."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its signature to its end, docstring included."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def docstrings(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Docstrings of the module, its classes and functions, and of attributes, each with its line."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if (text := ast.get_docstring(node)) is not None:
                yield node.body[0].lineno, text
            for before, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                    value = after.value
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield after.lineno, value.value


def comments(file: SourceFile) -> Iterator[str]:
    """Texts of all comments."""
    for token in tokenize.generate_tokens(io.StringIO(file.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# ")


def cyclic_packages(files: Sequence[SourceFile]) -> set[str]:
    """Second-level packages and modules of ``ureca`` that import each other in a ring, lazy imports included."""
    known = {file.module for file in files}
    edges: dict[str, set[str]] = defaultdict(set)
    for file in files:
        package = file.module if file.path.name == "__init__.py" else file.module.rpartition(".")[0]
        for node in ast.walk(file.tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
            for alias in node.names:
                target = f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
                ours, theirs = (".".join(name.split(".")[:2]) for name in (file.module, target))
                if ours != theirs and "ureca." in ours and "ureca." in theirs:
                    edges[ours].add(theirs)
    return {name for name in edges if name in _reachable(edges, name)}


def _reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    pending = list(edges[start])
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(edges.get(name, ()))
    return found


def private_functions(files: Sequence[SourceFile]) -> tuple[int, int]:
    """Numbers of private functions of modules: those that are used exactly once, and all."""
    defined = Counter(
        (file.path, node.name)
        for file in files
        for node in file.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("_")
    )
    used_once = 0
    for (path, name), definitions in defined.items():
        (file,) = (each for each in files if each.path == path)
        names = sum(
            token.type == tokenize.NAME and token.string == name
            for token in tokenize.generate_tokens(io.StringIO(file.text).readline)
        )
        used_once += names - definitions == 1
    return used_once, len(defined)


def count(root: Path) -> dict[str, str]:
    """The static rows of the table, for a checkout."""
    files = source_files(root)
    lengths = [len(file.text.splitlines()) for file in files]
    sizes = [num_lines(node) for file in files for node in functions(file)]
    documents = [text for file in files for _, text in docstrings(file)]
    words = re.findall(r"[A-Za-z']+", " ".join([*documents, *(text for file in files for text in comments(file))]))
    riddles = sum(
        text.split(maxsplit=1)[:1] != [] and text.split(maxsplit=1)[0].rstrip(",:") in RIDDLES for text in documents
    )
    once, private = private_functions(files)
    whats = sum(word.lower() == "what" for word in words)
    public = subprocess.run(
        [sys.executable, "-c", "import ureca; print(len([n for n in dir(ureca) if n[0] != '_']) or 1)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={"PYTHONPATH": str(root)},
    ).stdout.strip()
    return {
        "source files": str(len(files)),
        "median lines of a file": f"{statistics.median(lengths):.0f}",
        "median lines of a function": f"{statistics.median(sizes):.0f}",
        "functions of 5 lines or fewer": f"{sum(size <= SHORT_FUNCTION_LINES for size in sizes) / len(sizes):.0%}",
        "private functions used exactly once": f"{once} of {private}",
        "packages of ureca in an import cycle": str(len(cyclic_packages(files))),
        "'what' per 10,000 words of docstrings and comments": f"{10_000 * whats / len(words):.0f}",
        "docstrings that begin with What, Who, How, Whether, Of, That": f"{riddles / len(documents):.1%}",
        "public names in `import ureca`": public,
    }


def trace(root: Path, folder: Path) -> dict[str, str]:
    """The traced rows: what is called at least once an image in ``curate``, and once a step in ``train``.

    Args:
        root: the checkout.
        folder: an empty folder for images, models and outputs.
    """
    entry_points = "ureca.jobs" if (root / "ureca" / "jobs").exists() else "jobs"
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def run(name: str, *arguments: object, calls: Path | None = None) -> None:
        traced = dict(environment)
        if calls is not None:
            calls.mkdir()
            traced |= {"URECA_TRACE_ROOT": f"{root}/", "URECA_TRACE_OUTPUT": str(calls)}
            traced["PYTHONPATH"] = f"{Path(__file__).parent / 'trace'}{os.pathsep}{root}"
        command = [sys.executable, "-m", f"{entry_points}.{name}", *map(str, arguments)]
        subprocess.run(command, cwd=folder, env=traced, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - ours

    num_images, num_steps = 4, 12  # more steps than images: reading an image once is no part of a step
    run("scenes", folder / "scenes", "--images", num_images, "--size", "224")
    run("init_tiny", folder / "tiny")
    run("curate", folder / "scenes" / "images", folder / "curated", calls=folder / "curate-calls")
    phase = "phase" if (root / "ureca" / "training" / "phases.py").exists() else "stage"
    run(
        *("train", folder / "scenes", folder / "run", "--model", folder / "tiny", f"--{phase}.kind", "full"),
        *(
            "--precision",
            "fp32",
            "--no-gradient-checkpointing",
            "--max-steps",
            num_steps,
            f"--{phase}.epochs",
            num_steps,
        ),
        *("--batch.images-per-device", 1, "--batch.regions-per-image", 4),
        calls=folder / "train-calls",
    )
    curated = _called(folder / "curate-calls", num_images)
    trained = {file for file, _ in _called(folder / "train-calls", num_steps)}
    library = {file for file in trained if not file.startswith("pipelines/")}
    return {
        "files / functions that one image passes through in curate": f"{len({f for f, _ in curated})} / {len(curated)}",
        "files that one training step passes through, without / with Ray": f"{len(library)} / {len(trained)}",
    }


def _called(folder: Path, least: int) -> set[tuple[str, str]]:
    """Functions that were called at least so often in all processes together."""
    calls: Counter[tuple[str, str]] = Counter()
    for path in folder.glob("*.json"):
        for file, function, number in json.loads(path.read_text(encoding="utf-8")):
            calls[file.removeprefix("ureca/") if file.startswith("ureca/pipelines/") else file, function] += number
    return {
        (file, function)
        for (file, function), number in calls.items()
        if number >= least and file.startswith(PACKAGES) and not file.startswith("benchmarks/")
    }


def main(argv: Sequence[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="make structure", description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path(), help="checkout to count")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("--run", action="store_true", help="trace a curation and a training, too; takes minutes")
    arguments = parser.parse_args(argv)
    root = arguments.root.resolve()
    counts = count(root)
    if arguments.run:
        with tempfile.TemporaryDirectory() as folder:
            counts |= trace(root, Path(folder))
    if arguments.json:
        print(json.dumps(counts, indent=2))
        return 0
    width = max(map(len, counts))
    print(f"{'':<{width}}  {'at the start':>14}  {'now':>14}  goal")
    for name, value in counts.items():
        print(f"{name:<{width}}  {AT_THE_START[name]:>14}  {value:>14}  {GOALS[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
