"""Real text without a network: five domains from what every Python installation contains.

    python_code         source of the standard library and installed packages, without docstrings
                        and comments
    english_docs        prose: their docstrings, and the topics of `help()`
    cpp_headers         C and C++ headers (torch alone ships thousands), without licence headers
    licences_metadata   licence texts and the long descriptions of installed packages
    type_stubs          declarations without code (.pyi): names, signatures, types

One JSON object a line, {"text", "source"}, in `<output>/<domain>.jsonl`. The same installation
gives the same bytes: files are visited in the order of a hash of their relative path, which also
mixes the packages. Long files are cut between top-level definitions. A document is dropped when
more than half of its longer lines have been seen before, in whichever domain: vendored copies and
generated files are many.

    python data_prep/installation_text.py --output data/raw
"""

import argparse
import ast
import hashlib
import inspect
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoscale.progress import ProgressDisplay

MIN_CHARACTERS = 200
MAX_CHARACTERS = 4_000
MAX_FILE_BYTES = 1_000_000
MIN_LINE_CHARACTERS = 16
"""Shorter lines say nothing about copies: every program has its `return None`."""
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "autoscale", "data_prep"}
PYTHON = {".py"}
HEADERS = {".h", ".hpp", ".cuh", ".cpp", ".cc", ".cu", ".c"}
STUBS = {".pyi"}

STRING_OR_COMMENT = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    r"|[ \t]*#[^\n]*",
    re.DOTALL,
)
NOT_PROSE = re.compile(r"[^A-Za-z\s]+")
LEADING_COMMENT = re.compile(r"\s*(?:/\*.*?\*/|(?://[^\n]*(?:\n|$))+)", re.DOTALL)
LEGAL = re.compile(r"copyright|licen[cs]ed?\b|spdx", re.IGNORECASE)
LEGAL_FILE = re.compile(r"licen[cs]e|copying|notice|authors|thirdparty", re.IGNORECASE)
SENTENCE_END = re.compile(r"[a-z)`]\.(?:\s|$)")
CUTS = (re.compile(r"\n\n+(?=[^\s})\]])"), re.compile(r"\n\n+"), re.compile(r"\n"))
"""Where a long file is cut, best first: between top-level definitions, at blank lines, anywhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstalledFile:
    """A file below one of the roots."""

    path: Path
    name: str
    """Path below its root, with slashes: the same on every machine with the same packages."""

    def read(self) -> str | None:
        """Its text, or None when it is too long or no UTF-8 text."""
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                return None
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        return None if "\0" in text else text.replace("\r\n", "\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Harvested:
    """What was written for one domain."""

    domain: str
    path: Path
    documents: int
    text_bytes: int


def harvest(
    output: Path,
    max_bytes_per_domain: int = 4_000_000,
    roots: Sequence[Path] | None = None,
    progress: Callable[[str, int, int], None] = lambda domain, done, total: None,
) -> list[Harvested]:
    """Write one JSONL file per domain into `output`.

    `roots` are the folders to search: by default the standard library and the installed packages
    of the running interpreter. `progress` hears how many bytes of a domain are found and at most
    wanted.

    Raises:
        ValueError: a domain has no text at all.
    """
    files = list_files(installation_roots() if roots is None else roots)
    seen_lines: set[str] = set()
    output.mkdir(parents=True, exist_ok=True)
    results = []
    for domain, documents_of in DOMAINS.items():
        rows = []
        size = 0
        for source, text in documents_of(files):
            if not is_new(text, seen_lines):
                continue
            rows.append(json.dumps({"text": text, "source": source}, ensure_ascii=False))
            size += len(text.encode("utf-8"))
            progress(domain, min(size, max_bytes_per_domain), max_bytes_per_domain)
            if size >= max_bytes_per_domain:
                break
        if not rows:
            raise ValueError(f"domain {domain!r}: nothing found in {len(files)} installed files")
        progress(domain, size, size)
        path = output / f"{domain}.jsonl"
        temporary = path.with_suffix(".tmp")
        temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        results.append(Harvested(domain=domain, path=path, documents=len(rows), text_bytes=size))
    return results


def installation_roots() -> list[Path]:
    """The standard library and the installed packages of this interpreter."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[key]) for key in ("stdlib", "purelib", "platlib")))


def list_files(roots: Iterable[Path]) -> list[InstalledFile]:
    """All files below `roots`, ordered by a hash of their names."""
    files: dict[str, InstalledFile] = {}
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            below = Path(folder).relative_to(root)
            subfolders[:] = [
                name
                for name in subfolders
                if name not in SKIPPED_FOLDERS and not name.startswith("autoscale-")
            ]
            for name in names:
                file = (below / name).as_posix()
                files.setdefault(file, InstalledFile(path=Path(folder, name), name=file))
    return sorted(files.values(), key=lambda file: hashlib.md5(file.name.encode()).digest())


def is_new(text: str, seen_lines: set[str]) -> bool:
    """Whether most longer lines of `text` are unseen; notes the lines of a new text."""
    lines = {line.strip() for line in text.splitlines()}
    lines = {line for line in lines if len(line) >= MIN_LINE_CHARACTERS}
    if not lines or 2 * len(lines & seen_lines) > len(lines):
        return False
    seen_lines |= lines
    return True


def cut(text: str, level: int = 0) -> Iterator[str]:
    """Parts of at most `MAX_CHARACTERS`, cut at the best places, without the shortest parts."""
    if len(text) <= MAX_CHARACTERS:
        if len(text.strip()) >= MIN_CHARACTERS:
            yield text.strip("\n") + "\n"
    elif level == len(CUTS):
        return  # one endless line: no document
    else:
        part = ""
        separator = "\n" if level == len(CUTS) - 1 else "\n\n"
        for block in CUTS[level].split(text):
            if part and len(part) + len(block) > MAX_CHARACTERS:
                yield from cut(part, level + 1)
                part = ""
            part += (separator if part else "") + block
        yield from cut(part, level + 1)


# --- the domains: files to (source, text) ---------------------------------------------------------


def python_code(files: Sequence[InstalledFile]) -> Iterator[tuple[str, str]]:
    for file in files:
        if file.path.suffix in PYTHON and (text := file.read()):
            for part in cut(strip_python(text) or ""):
                yield file.name, part


def english_docs(files: Sequence[InstalledFile]) -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics  # 0.7 MB of prose, needed here only

    for topic, text in sorted(topics.items()):
        for part in cut(text):
            yield f"pydoc_data/topics:{topic}", part
    for file in files:
        if file.path.suffix in PYTHON and "/tests/" not in file.name and (code := file.read()):
            for found in docstrings(code):
                prose = inspect.cleandoc(found)
                if is_prose(prose):
                    for part in cut(prose):
                        yield file.name, part


def cpp_headers(files: Sequence[InstalledFile]) -> Iterator[tuple[str, str]]:
    for file in files:
        if file.path.suffix in HEADERS and (text := file.read()):
            for part in cut(strip_licence(text)):
                yield file.name, part


def licences_metadata(files: Sequence[InstalledFile]) -> Iterator[tuple[str, str]]:
    for file in files:
        if file.path.name == "METADATA" and (text := file.read()):
            _, _, description = text.partition("\n\n")
            for part in cut(description):
                yield file.name, part
        elif is_legal(file) and (text := file.read()):
            for part in cut(text):
                yield file.name, part


def type_stubs(files: Sequence[InstalledFile]) -> Iterator[tuple[str, str]]:
    for file in files:
        if file.path.suffix in STUBS and (stubs := file.read()):
            for found in docstrings(stubs):
                stubs = stubs.replace(f'"""{found}"""', "...", 1)
            for part in cut(strip_comments(stubs)):
                yield file.name, part


DOMAINS: dict[str, Callable[[Sequence[InstalledFile]], Iterator[tuple[str, str]]]] = {
    domain.__name__: domain
    for domain in (python_code, english_docs, cpp_headers, licences_metadata, type_stubs)
}


# --- cleaning -------------------------------------------------------------------------------------


def strip_python(source: str) -> str | None:
    """Python source without docstrings and comments; None when it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = source.split("\n")
    for first, last, filler in docstring_lines(tree):
        lines[first - 1 : last] = [filler] + [""] * (last - first)
    return strip_comments("\n".join(lines))


def strip_comments(source: str) -> str:
    """Python source without comments, and without the blank lines that they leave."""
    code = STRING_OR_COMMENT.sub(
        lambda match: "" if match[0].lstrip()[0] == "#" else match[0], source
    )
    return re.sub(r"\n{4,}", "\n\n\n", re.sub(r"[ \t]+\n", "\n", code)).strip("\n")


def docstring_lines(tree: ast.Module) -> list[tuple[int, int, str]]:
    """First line, last line and replacement of every docstring that stands on lines of its own."""
    found = []
    bodies: list[ast.AST] = [tree]
    while bodies:
        node = bodies.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                bodies.append(child)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if not (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            continue
        own_line = isinstance(node, ast.Module) or first.lineno > node.lineno
        following = node.body[1].lineno if len(node.body) > 1 else None
        if own_line and first.end_lineno is not None and following != first.end_lineno:
            alone = len(node.body) == 1 and not isinstance(node, ast.Module)
            filler = " " * first.col_offset + "pass" if alone else ""
            found.append((first.lineno, first.end_lineno, filler))
    return found


def docstrings(source: str) -> Iterator[str]:
    """Triple-quoted strings that begin a line: docstrings, found much faster than by parsing."""
    for match in STRING_OR_COMMENT.finditer(source):
        if match[0].startswith('"""'):
            line_start = source.rfind("\n", 0, match.start()) + 1
            if source[line_start : match.start()].strip(" \trR") == "":
                yield match[0][3:-3]


def is_prose(text: str) -> bool:
    """Whether a docstring reads as sentences rather than as code, tables or legal text."""
    if len(text) < MIN_CHARACTERS or LEGAL.search(text):
        return False
    letters = len(NOT_PROSE.sub("", text))
    examples = text.count(">>>") + text.count("...")
    return (
        letters >= 0.8 * len(text)
        and 10 * examples <= text.count("\n") + 1
        and len(SENTENCE_END.findall(text)) >= 2
    )


def strip_licence(text: str) -> str:
    """C or C++ source without the comments at its top that state copyright or licence."""
    position = 0
    while (comment := LEADING_COMMENT.match(text, position)) and LEGAL.search(comment[0]):
        position = comment.end()
    return text[position:].lstrip("\n")


def is_legal(file: InstalledFile) -> bool:
    """Whether the file holds licence texts, by its name."""
    plain = file.path.suffix in {"", ".txt", ".md", ".rst"}
    return plain and (LEGAL_FILE.search(file.path.name) is not None or "/licenses/" in file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSONL files")
    parser.add_argument("--max-bytes-per-domain", type=int, default=4_000_000)
    arguments = parser.parse_args()
    with ProgressDisplay() as display:
        results = harvest(arguments.output, arguments.max_bytes_per_domain, progress=display.stage)
    print(f"{'domain':<20}{'documents':>10}{'MB':>8}")
    for result in results:
        print(f"{result.domain:<20}{result.documents:>10}{result.text_bytes / 1e6:>8.2f}")


if __name__ == "__main__":
    main()
