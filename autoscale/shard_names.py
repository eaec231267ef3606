"""Which domain and which split a file belongs to, from its path below the adopted folder.

    code/train/a.bin  train/code/a.bin  code/a.bin        domain code, train
    code/validation/a.bin  code/val.bin  code/x_val_0.bin  domain code, validation

A domain is the first folder that is not the name of a split, or whatever globs say. Held out is
what lies in a folder called `validation`, `val`, `valid` or `test`, or has such a word in its name,
or whatever globs say.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from .config_data import DOMAIN_NAME
from .manifest import DomainShards, Split

HELD_OUT_FOLDERS: Final = frozenset({"validation", "val", "valid", "test"})
_SPLIT_FOLDERS: Final = HELD_OUT_FOLDERS | {"train"}
_HELD_OUT_WORDS: Final = frozenset({"validation", "val", "valid"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """The rules, as given on the command line.

    Attributes:
        domains: globs of each domain; empty for the names of folders.
        validation: globs of what is held out; empty for the names of folders and files.
    """

    domains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    validation: Sequence[str] = ()

    def place(self, paths: Sequence[str]) -> dict[str, dict[Split, list[str]]]:
        """Paths of each domain and split, in their order; what no glob names is left out.

        Args:
            paths: relative to the adopted folder, with `/`.

        Raises:
            ValueError: a path has no domain or two, or a glob matches nothing.
        """
        self._require_matches(paths)
        placed: dict[str, dict[Split, list[str]]] = {}
        for name in self.domains:
            placed[name] = {"train": [], "validation": []}
        for path in paths:
            domain = self._domain_of(path)
            if domain is not None:
                splits = placed.setdefault(domain, {"train": [], "validation": []})
                splits["validation" if self._is_held_out(path) else "train"].append(path)
        return placed

    def _require_matches(self, paths: Sequence[str]) -> None:
        given = [
            (f"--domain {name}=", glob) for name, globs in self.domains.items() for glob in globs
        ]
        given += [("--validation ", glob) for glob in self.validation]
        for option, glob in given:
            if not any(fnmatchcase(path, glob) for path in paths):
                listed = ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
                raise ValueError(
                    f"{option}{glob} matches no file; found {listed}: globs are of paths below the "
                    "folder"
                )

    def _domain_of(self, path: str) -> str | None:
        if self.domains:
            names = [
                name
                for name, globs in self.domains.items()
                if any(fnmatchcase(path, glob) for glob in globs)
            ]
            if len(names) > 1:
                raise ValueError(
                    f"{path} is matched by --domain {names[0]} and by --domain {names[1]}; a file "
                    "belongs to one domain: make the globs narrower"
                )
            return names[0] if names else None
        folders = [part for part in PurePosixPath(path).parts[:-1] if part not in _SPLIT_FOLDERS]
        if not folders:
            raise ValueError(
                f"{path} lies in no folder that names its domain; move it into one, or name the "
                "domains by --domain name=glob"
            )
        return folders[0]

    def _is_held_out(self, path: str) -> bool:
        if self.validation:
            return any(fnmatchcase(path, glob) for glob in self.validation)
        *folders, file = PurePosixPath(path).parts
        words = [word for word in re.split(r"[^a-z]+", file.partition(".")[0].lower()) if word]
        return (
            not HELD_OUT_FOLDERS.isdisjoint(folders)
            or not _HELD_OUT_WORDS.isdisjoint(words)
            or words == ["test"]
        )


def hold_out(domains: Sequence[DomainShards], fraction: float | None) -> list[DomainShards]:
    """Domains with validation: that of the files, or the last of their shards.

    Args:
        fraction: of a domain's tokens, where no file is held out; None refuses such a domain.

    Raises:
        ValueError: a domain has nothing to validate with.
    """
    settled = []
    for domain in domains:
        if not domain.validation and fraction is not None:
            domain = _hold_out_shards(domain, fraction)
        if not domain.validation:
            raise ValueError(
                f"domain {domain.name!r} has no validation shards; put some into a folder "
                "'validation', name them by --validation glob, or hold out whole shards by "
                "--validation 0.02"
            )
        settled.append(domain)
    return settled


def _hold_out_shards(domain: DomainShards, fraction: float) -> DomainShards:
    """Hold out the last shards: the fewest that have the fraction of the tokens."""
    if len(domain.train) < 2:
        raise ValueError(
            f"domain {domain.name!r} has one shard, and shards are held out whole; split it into "
            "several, or add a validation shard"
        )
    wanted = fraction * sum(shard.tokens for shard in domain.train)
    count, held = 0, 0
    while held < wanted and count < len(domain.train) - 1:
        count += 1
        held += domain.train[-count].tokens
    return replace(domain, train=domain.train[:-count], validation=domain.train[-count:])


def parse_domains(given: Sequence[str]) -> dict[str, list[str]]:
    """Globs by domain, from `name=glob` as often as it is given."""
    globs: dict[str, list[str]] = {}
    for text in given:
        name, equals, glob = text.partition("=")
        if not (re.fullmatch(DOMAIN_NAME, name) and equals and glob):
            raise ValueError(
                f"--domain {text!r}: expected name=glob, e.g. code='github/*.bin', the name of "
                "letters, digits, '.', '_' and '-'"
            )
        globs.setdefault(name, []).append(glob)
    return globs


def parse_validation(given: Sequence[str]) -> tuple[list[str], float | None]:
    """Globs, and the fraction to hold out where one is among them."""
    globs: list[str] = []
    fraction = None
    for text in given:
        try:
            fraction = float(text)
        except ValueError:
            globs.append(text)
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(
            f"--validation {fraction:g}: expected a fraction between 0 and 1, or a glob"
        )
    return globs, fraction
