"""The harvest of the demo's domains: on tiny made-up installations, and what its cleaning does."""

import ast
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "data_prep"))

from installation_text import (
    DOMAINS,
    MAX_CHARACTERS,
    cut,
    harvest,
    is_prose,
    list_files,
    strip_licence,
    strip_python,
)

PROSE = """Return the number of walks that begin at the given stone.

    Every walk is counted once. When two walks meet under the moon, the older of them is taken,
    since the younger one would be counted again by the caller. The water is never crossed.
    """
MODULE = '''"""{prose}"""

import os  # what a comment

STRING = "# no comment"
TABLE = """
# no comment either
"""


class Stone:
    """Only a docstring."""


def walk_{name}(start: int) -> int:
    """{prose}"""
    # a comment on its own line
    count_of_{name} = start * 2  # and one behind code
    return count_of_{name} + len(STRING) + len("{name}") + sum(range(start, count_of_{name}))
'''
HEADER = """/* Copyright 2020 Somebody. Licensed under the Apache License. */
// SPDX-License-Identifier: Apache-2.0

/* The walk of {name}. */
#pragma once
template <typename Walk_{name}> class {name}_stone {{
 public:
  explicit {name}_stone(const Walk_{name}& walk) : walk_{name}_(walk), count_{name}_(0) {{}}
  int count_of_{name}() const {{ return count_{name}_ + walk_{name}_.size(); }}
 private:
  Walk_{name} walk_{name}_; int count_{name}_;
}};
"""
STUB = "\n".join(
    f"def walk_{{name}}_{number}(start_{{name}}: int) -> str: ..." for number in range(9)
)
LICENCE = "\n".join(
    f"The {{name}} licence allows walk number {number} over it." for number in range(9)
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "site-packages"
    for name in ("blue", "old", "stone"):
        package = root / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(MODULE.format(name=name, prose=PROSE))
        (package / f"{name}.h").write_text(HEADER.format(name=name))
        (package / f"{name}.pyi").write_text(STUB.format(name=name))
        (root / f"{name}-1.0.dist-info").mkdir()
        (root / f"{name}-1.0.dist-info" / "LICENSE").write_text(LICENCE.format(name=name))
    (root / "blue" / "copy.py").write_text((root / "blue" / "__init__.py").read_text())
    (root / "blue" / "broken.py").write_text("def (:\n" * 60)
    (root / "blue" / "latin.py").write_bytes(b"# caf\xe9\n" + b"x = 1\n" * 60)
    for own in ("autoscale", "autoscale-0.1.0.dist-info"):
        (root / own).mkdir()
        (root / own / "LICENSE").write_text(LICENCE.format(name="autoscale"))
    return root


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_harvest_holds_every_domain_and_no_copies(root: Path, tmp_path: Path) -> None:
    results = harvest(tmp_path / "out", roots=[root])
    assert [result.domain for result in results] == list(DOMAINS)
    for result in results:
        found = rows(result.path)
        assert len(found) == result.documents
        assert sum(len(row["text"].encode()) for row in found) == result.text_bytes
        assert len({row["text"] for row in found}) == len(found)
        assert not [row for row in found if "autoscale" in row["source"]]
        for row in found:
            assert 200 <= len(row["text"]) <= MAX_CHARACTERS + 1
    code = rows(tmp_path / "out" / "python_code.jsonl")
    assert len(code) == 3  # the copy and the broken files are left out
    for row in code:
        assert "walk" in row["text"]
        assert "counted once" not in row["text"]
    headers = rows(tmp_path / "out" / "cpp_headers.jsonl")
    assert all(row["text"].startswith("/* The walk of") for row in headers)
    prose = [
        row for row in rows(tmp_path / "out" / "english_docs.jsonl") if "pydoc" not in row["source"]
    ]
    assert len(prose) == 1
    assert prose[0]["text"].startswith("Return the number of walks")


def test_the_same_installation_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    first = harvest(tmp_path / "first", roots=[moved])
    moved.rename(root)
    second = harvest(tmp_path / "second", roots=[root])
    for one, other in zip(first, second, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()


def test_the_cap_bounds_every_domain(root: Path, tmp_path: Path) -> None:
    for result in harvest(tmp_path / "out", 300, roots=[root]):
        assert result.text_bytes <= 300 + MAX_CHARACTERS


def test_a_domain_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"domain 'python_code': nothing found in 0 installed"):
        harvest(tmp_path / "out", roots=[tmp_path / "empty"])


def test_stripped_python_does_the_same() -> None:
    stripped = strip_python(MODULE.format(name="blue", prose=PROSE))
    assert stripped is not None
    for absent in ("what a comment", "Only a docstring", "counted once", "behind code"):
        assert absent not in stripped
    for present in ('"# no comment"', "# no comment either", "class Stone:\n    pass\n"):
        assert present in stripped
    scope: dict[str, object] = {}
    exec(compile(ast.parse(stripped), "stripped", "exec"), scope)
    assert scope["walk_blue"](3) == 6 + 12 + 4 + 3 + 4 + 5  # type: ignore[operator]


def test_this_projects_own_source_survives_stripping() -> None:
    for path in sorted((Path(__file__).parents[2] / "autoscale").glob("*.py")):
        stripped = strip_python(path.read_text())
        assert stripped is not None
        ast.parse(stripped)
        assert "# " not in "".join(
            line for line in stripped.splitlines() if not {'"', "'"} & set(line)
        )


def test_only_legal_comments_are_taken_off_headers() -> None:
    assert strip_licence("// Copyright X\n\n/* Licensed\n to you */\nint x;\n") == "int x;\n"
    assert strip_licence("// What this is\nint x;\n") == "// What this is\nint x;\n"


def test_cut_parts_are_short_and_hold_all_lines() -> None:
    text = "".join(
        f"def function_{number}():\n    first = {number}\n\n    return first\n\n\n"
        for number in range(400)
    )
    parts = list(cut(text))
    assert len(parts) > 3
    assert all(len(part) <= MAX_CHARACTERS + 1 and part.startswith("def ") for part in parts)
    kept = [line for part in parts for line in part.splitlines() if line]
    assert kept == [line for line in text.splitlines() if line]
    assert list(cut("too short")) == []
    assert list(cut("x" * 10_000)) == []


def test_prose_is_told_from_code_and_legal_text() -> None:
    assert is_prose(PROSE)
    assert not is_prose("x = {1: 2, 3: 4}; y = [x[1], x[3]]\n" * 20)
    assert not is_prose(PROSE + "\nCopyright 2020.")
    assert not is_prose(PROSE + "\n>>> walk(1)\n2\n" * 10)


def test_files_are_listed_once_and_in_an_order_of_their_own(root: Path) -> None:
    names = [file.name for file in list_files([root, root])]
    assert len(names) == len(set(names))
    assert names != sorted(names)
    assert "blue/__init__.py" in names
