"""Where known corpora keep their files, and how they tell the domain of a document.

    redpajama    local copy of togethercomputer/RedPajama-Data-1T (the hub lists URLs only)
    slimpajama   cerebras/SlimPajama-627B: train/chunk*/, domain in meta.redpajama_set_name
    pile         train/00.jsonl.zst to 29.jsonl.zst, domain in meta.pile_set_name
    dolma        local copy of Dolma (the hub lists URLs only): <source>/<source>-0000.json.gz
    fineweb      HuggingFaceFW/fineweb: data/<dump>/*.parquet, one domain
    fineweb-edu  HuggingFaceFW/fineweb-edu: the same
    jsonl        any tree of JSON lines: a domain is a folder of the first level, or a field

Only training splits are read: what a corpus publishes for validation can be handed to
`--decontaminate`. The order of a corpus's domains is the order of precedence when near-duplicates
are removed across domains; curated sources come before web crawls.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from datatrove.io import get_datafolder

FileFormat = Literal["jsonl", "parquet"]
DOMAIN_NAME = re.compile(r"[\w.-]*\w[\w.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a corpus lies in its folder.

    Attributes:
        files: globs below the root.
        format: of the files; compression is told by their names.
        text_field: field or column with the text.
        domain_field: keys that lead to the field with the domain; () where the first folder is the
            domain.
        domains: value of the field, or name of the folder, to name of the domain, in the order of
            precedence; {} where every folder is a domain.
        single: name of the only domain, where the corpus is one.
        hub: root on the Hugging Face hub, or None where the hub does not have the text.
    """

    files: tuple[str, ...]
    format: FileFormat = "jsonl"
    text_field: str = "text"
    domain_field: tuple[str, ...] = ()
    domains: Mapping[str, str] = field(default_factory=dict)
    single: str | None = None
    hub: str | None = None


_JSON_LINES = tuple(f"**/*.{suffix}{packed}" for suffix in ("jsonl", "ndjson", "json")
                    for packed in ("", ".gz", ".zst"))  # fmt: skip
_REDPAJAMA = ("book", "arxiv", "wikipedia", "stackexchange", "github", "c4", "common_crawl")
_SLIMPAJAMA = ("Book", "ArXiv", "Wikipedia", "StackExchange", "Github", "C4", "CommonCrawl")
_PILE = (
    "Gutenberg (PG-19)", "Books3", "BookCorpus2", "ArXiv", "PubMed Central", "PubMed Abstracts",
    "PhilPapers", "NIH ExPorter", "Wikipedia (en)", "FreeLaw", "USPTO Backgrounds",
    "StackExchange", "Github", "DM Mathematics", "EuroParl", "OpenSubtitles", "YoutubeSubtitles",
    "HackerNews", "Ubuntu IRC", "Enron Emails", "OpenWebText2", "Pile-CC",
)  # fmt: skip


def domain_name(raw: str) -> str:
    """A name that is also a folder's: 'Gutenberg (PG-19)' becomes 'gutenberg_pg-19'."""
    return re.sub(r"[^\w.-]+", "_", raw).strip("_.").lower()


LAYOUTS: Mapping[str, Layout] = {
    "redpajama": Layout(
        files=("*/*.jsonl", "*/*.jsonl.zst", "common_crawl/*/*.jsonl.zst"),
        domains={name: name for name in _REDPAJAMA},
    ),
    "slimpajama": Layout(
        files=("train/chunk*/*.jsonl.zst",),
        domain_field=("meta", "redpajama_set_name"),
        domains={
            f"RedPajama{raw}": name for raw, name in zip(_SLIMPAJAMA, _REDPAJAMA, strict=True)
        },
        hub="hf://datasets/cerebras/SlimPajama-627B",
    ),
    "pile": Layout(
        files=("train/*.jsonl.zst",),
        domain_field=("meta", "pile_set_name"),
        domains={raw: domain_name(raw) for raw in _PILE},
        hub="hf://datasets/monology/pile-uncopyrighted",
    ),
    "dolma": Layout(files=("*/*.json.gz",)),
    "fineweb": Layout(
        files=("data/*/*.parquet",),
        format="parquet",
        single="fineweb",
        hub="hf://datasets/HuggingFaceFW/fineweb",
    ),
    "fineweb-edu": Layout(
        files=("data/*/*.parquet",),
        format="parquet",
        single="fineweb-edu",
        hub="hf://datasets/HuggingFaceFW/fineweb-edu",
    ),
    "jsonl": Layout(files=_JSON_LINES),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file of a corpus.

    Attributes:
        root: folder or URL that `path` is relative to.
        path: of the file.
        size: in bytes, or None where the file system does not tell.
        layout: how to read it; its domains are those that are wanted.
        domain: of all its documents, or None where each tells its own.
    """

    root: str
    path: str
    size: int | None
    layout: Layout
    domain: str | None

    def domain_of(self, record: Mapping[str, Any]) -> str | None:
        """Domain of a record, or None where it is not wanted.

        Raises:
            ValueError: the record does not tell its domain, or one that the corpus does not have.
        """
        if self.domain is not None:
            return self.domain
        value: Any = record
        for key in self.layout.domain_field:
            value = value.get(key) if isinstance(value, Mapping) else None
        if not isinstance(value, str):
            raise ValueError(
                f"{self.root}/{self.path}: a document has {value!r} as "
                f"{'.'.join(self.layout.domain_field)}; expected the name of its domain"
            )
        return self.layout.domains.get(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFiles:
    """Files of one corpus, and its domains in the order of precedence."""

    files: tuple[SourceFile, ...]
    domains: tuple[str, ...]


def find_files(
    corpus: str,
    source: str | None = None,
    *,
    domains: Sequence[str] = (),
    domain_field: str | None = None,
    text_field: str | None = None,
    files: Sequence[str] = (),
) -> CorpusFiles:
    """List the training files of a corpus.

    Args:
        corpus: a name of `LAYOUTS`.
        source: folder or fsspec URL in the corpus's layout; the hub's by default.
        domains: those to take, in their order of precedence; all by default.
        domain_field: for "jsonl": field with the domain, e.g. "meta.source"; needs `domains`.
        text_field: another field with the text.
        files: other globs below the root, e.g. "sample/10BT/*.parquet" for a part of a corpus.

    Raises:
        ValueError: there is no such corpus, domain or file, or the corpus needs a local copy.
    """
    layout = _layout(corpus, domains, domain_field, text_field, files)
    root = source or layout.hub
    if root is None:
        raise ValueError(
            f"corpus {corpus!r} has no text on the hub; download it as its page says, folders "
            "included, and give the folder with --source"
        )
    folder = get_datafolder(root)
    root = folder.resolve_paths("").rstrip("/")
    found: dict[str, int | None] = {}
    for pattern in layout.files:
        for path, info in folder.glob(pattern, detail=True).items():
            if info["type"] == "file":
                found[path] = info.get("size")
    if not found:
        raise ValueError(
            f"corpus {corpus!r}: no file below {root} matches {' or '.join(layout.files)}; give "
            "the folder that holds them with --source"
        )
    if layout.domain_field:
        names = tuple(layout.domains.values())
        return CorpusFiles(files=_files(root, found, layout, lambda path: None), domains=names)
    if layout.single is not None:
        single = layout.single
        return CorpusFiles(
            files=_files(root, found, layout, lambda path: single), domains=(single,)
        )
    return _by_folder(root, found, layout, corpus, domains)


def _layout(
    corpus: str,
    domains: Sequence[str],
    domain_field: str | None,
    text_field: str | None,
    files: Sequence[str],
) -> Layout:
    """The layout of a corpus with what the user asked for."""
    if corpus not in LAYOUTS:
        raise ValueError(f"corpus {corpus!r} is not known; expected one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[corpus]
    if text_field is not None:
        layout = replace(layout, text_field=text_field)
    if files:
        layout = replace(layout, files=tuple(files))
    if domain_field is not None:
        if not domains:
            raise ValueError(
                f"--domain-field {domain_field} needs --domains: the names to take, in their order"
            )
        layout = replace(
            layout,
            domain_field=tuple(domain_field.split(".")),
            domains={name: domain_name(name) for name in domains},
        )
    elif domains and layout.domains:
        by_name = {name: raw for raw, name in layout.domains.items()}
        unknown = [name for name in domains if name not in by_name]
        if unknown:
            raise ValueError(
                f"corpus {corpus!r} has no domain {unknown[0]!r}; it has {', '.join(by_name)}"
            )
        layout = replace(layout, domains={by_name[name]: name for name in domains})
    return layout


def _by_folder(
    root: str,
    found: Mapping[str, int | None],
    layout: Layout,
    corpus: str,
    domains: Sequence[str],
) -> CorpusFiles:
    """Files whose domain is the folder of the first level."""
    loose = sorted(path for path in found if "/" not in path)
    if loose:
        raise ValueError(
            f"corpus {corpus!r}: {root}/{loose[0]} lies in no folder; expected one folder a "
            "domain, or --domain-field"
        )
    folders = sorted({path.partition("/")[0] for path in found})
    wanted = list(layout.domains) or list(domains) or folders
    names = {raw: layout.domains.get(raw, domain_name(raw)) for raw in wanted}
    missing = [raw for raw in domains if raw not in folders]
    if missing:
        raise ValueError(
            f"corpus {corpus!r}: {root} has no folder {missing[0]!r} with such files; it has "
            f"{', '.join(folders)}"
        )
    kept = {path: size for path, size in found.items() if path.partition("/")[0] in names}
    files = _files(root, kept, layout, lambda path: names[path.partition("/")[0]])
    present = {file.domain for file in files}
    order = tuple(name for name in names.values() if name in present)
    if not order:
        raise ValueError(
            f"corpus {corpus!r}: {root} has the folders {', '.join(folders)}; expected some of "
            f"{', '.join(wanted)}"
        )
    return CorpusFiles(files=files, domains=order)


def _files(
    root: str, found: Mapping[str, int | None], layout: Layout, domain: Callable[[str], str | None]
) -> tuple[SourceFile, ...]:
    return tuple(
        SourceFile(root=root, path=path, size=found[path], layout=layout, domain=domain(path))
        for path in sorted(found)
    )
