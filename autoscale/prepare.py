"""Text to tokenized shards: the first step, before any mixture is considered.

    read         every document once: its hash and its size           (documents, text)
    select       train, validation, dropped                           (selection)
    tokenizer    take one over, or train one on equal samples         (tokenizer)
    tokenize     validation, then training documents, into shards     (domain_shards)

What is written depends on the texts and the settings alone: not on the number of processes, nor on
whether the work was interrupted. The manifest is written last; what it does not name is removed.

    <output>/manifest.json                           what every later step reads
             prepare.json                            documents kept and dropped, by domain
             tokenizer-<key>/ and .json              loads with transformers.AutoTokenizer; its key
             shards/<domain>/<key>/train-00000.bin .idx, validation-00000.bin .idx, progress.json
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .config_data import PrepareConfig
from .documents import DomainText, Progress, batches, resolve_domain, scan_domains
from .domain_shards import (
    FORMAT,
    RECORD_FILE,
    ShardSettings,
    TokenizeProgress,
    write_domain_shards,
)
from .manifest import Manifest, TokenizerRecord
from .prepare_workers import PrepareWorkers
from .records import read_json, write_json
from .selection import (
    Fate,
    cap_validation,
    count_fates,
    keyed_hashes,
    settle_training,
    split_domains,
    validation_candidates,
)
from .tokenizer import (
    TextTokenizer,
    import_tokenizer,
    tokenizer_fingerprint,
    tokenizer_threads,
    train_tokenizer,
)

__all__ = ["Progress", "prepare"]

CAP_BYTES_PER_TOKEN = 16
"""Text considered for every token of the validation cap; text packs less than that into one."""


def prepare(config: PrepareConfig, *, progress: Progress | None = None) -> Path:
    """Tokenize the domains of `config` into shards under `config.output`.

    Finished work of an earlier call with the same texts and settings is kept.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: a source is missing, empty or unreadable, a document lacks its text, a domain
            has nothing to train on or to hold out, or the tokenizer does not fit.
    """
    report: Progress = progress or (lambda stage, done, total, /: None)
    _require_variables(config)
    inputs = [resolve_domain(source) for source in config.domains]
    output = Path(config.output)
    with _only_writer(output), PrepareWorkers(config.num_workers) as workers:
        domains = scan_domains(inputs, workers, report)
        _split(domains, config)
        tokenizer = _make_tokenizer(domains, config, workers.num_workers, report)
        if config.validation_tokens is not None:
            for domain in domains:
                _cap_validation(domain, config, tokenizer, workers)
        _settle(domains, deduplicate=config.deduplicate)
        settings = ShardSettings.of(output, tokenizer, shard_tokens=config.shard_tokens)
        tokenized = TokenizeProgress(domains, report)
        manifest = Manifest(
            dtype=settings.dtype,
            tokenizer=TokenizerRecord(
                path=tokenizer.folder.name,
                vocab_size=tokenizer.vocab_size,
                end_of_text_id=tokenizer.end_of_text_id,
                sha256=settings.tokenizer_sha256,
            ),
            domains=tuple(
                write_domain_shards(domain, settings, workers, tokenized) for domain in domains
            ),
            root=output,
        )
        _write_counts(domains, manifest, config)
        path = output / "manifest.json"
        manifest.save(path)
        _remove_unnamed(manifest, output)
    return path


def _require_variables(config: PrepareConfig) -> None:
    """Paths in an experiment keep the name of a variable that is not set; name it here."""
    for source in config.domains:
        for location in (*source.train, *source.validation):
            unset = re.search(r"\$\{?(\w+)", location)
            if unset is not None and not Path(location).exists():
                raise ValueError(
                    f"domain {source.name!r}: environment variable {unset[1]} is not set "
                    f"(found {location}); export it, or write the path into the experiment file"
                )


# --- select ---------------------------------------------------------------------------------------


def _split(domains: Sequence[DomainText], config: PrepareConfig) -> None:
    fates = split_domains(
        [domain.documents for domain in domains],
        fraction=config.validation_fraction,
        seed=config.seed,
        deduplicate=config.deduplicate,
    )
    for domain, fate in zip(domains, fates, strict=True):
        domain.fate = fate


def _settle(domains: Sequence[DomainText], *, deduplicate: bool) -> None:
    documents = [domain.documents for domain in domains]
    settle_training(documents, [domain.fate for domain in domains], deduplicate=deduplicate)


def _cap_validation(
    domain: DomainText, config: PrepareConfig, tokenizer: TextTokenizer, workers: PrepareWorkers
) -> None:
    """Admit held-out documents in keyed order, each that still fits under the cap."""
    cap = config.validation_tokens
    assert cap is not None
    candidates = validation_candidates(
        domain.documents, domain.fate, seed=config.seed, max_bytes=CAP_BYTES_PER_TOKEN * cap
    )
    texts = dict(domain.read(np.sort(candidates)))
    in_order = list(batches((index, texts[index]) for index in candidates.tolist()))
    kept: list[int] = []
    room = cap
    encoded = workers.encode(tokenizer.folder, (texts for _, texts in in_order))
    for (indices, _), batch in zip(in_order, encoded, strict=True):
        for index, length in zip(indices, batch.lengths.tolist(), strict=True):
            if length <= room:
                kept.append(index)
                room -= length
    if not kept:
        raise ValueError(
            f"domain {domain.name!r}: no validation document fits under validation_tokens {cap}; "
            "raise it, or cut the documents into shorter ones"
        )
    cap_validation(domain.documents, domain.fate, np.array(kept, dtype=np.int64))


# --- tokenizer ------------------------------------------------------------------------------------


def _make_tokenizer(
    domains: Sequence[DomainText], config: PrepareConfig, num_workers: int, report: Progress
) -> TextTokenizer:
    """Take over or train the tokenizer, in a folder named by what decides it."""
    output = Path(config.output)
    temporary = output / ".tokenizer.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    settings = config.tokenizer
    if settings.vocab_size is None:
        assert settings.path is not None
        import_tokenizer(settings.path, folder=temporary)
        key = tokenizer_fingerprint(temporary)
        folder = output / f"tokenizer-{key[:12]}"
    else:
        sample = _Sample(domains, settings.sample_bytes, config.seed)
        key = sample.key(settings.vocab_size)
        folder = output / f"tokenizer-{key[:12]}"
        if not _is_whole(folder, key):
            with tokenizer_threads(enabled=num_workers > 1):
                texts = sample.texts(report)
                train_tokenizer(texts, vocab_size=settings.vocab_size, folder=temporary)
    if not _is_whole(folder, key):
        fingerprint = tokenizer_fingerprint(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        record = {"key": key, "sha256": fingerprint}
        write_json(_record_of(folder), "prepared_tokenizer", record)
    shutil.rmtree(temporary, ignore_errors=True)
    return TextTokenizer.open(folder)


def _record_of(folder: Path) -> Path:
    """Says that a tokenizer folder is finished; it lies beside, as models take the folder along."""
    return folder.with_name(f"{folder.name}.json")


def _is_whole(folder: Path, key: str) -> bool:
    try:
        record = read_json(_record_of(folder), "prepared_tokenizer")
        return bool(record["key"] == key and record["sha256"] == tokenizer_fingerprint(folder))
    except Exception:  # tokenizers raises no narrower class for a damaged file
        return False


class _Sample:
    """Training text of the tokenizer: the same number of bytes from every domain trained on.

    Only documents that are trained on are sampled, in an order keyed by the seed.
    """

    def __init__(self, domains: Sequence[DomainText], sample_bytes: int, seed: int) -> None:
        settled = [replace(domain, fate=domain.fate.copy()) for domain in domains]
        _settle(settled, deduplicate=True)
        self._domains = [domain for domain in settled if domain.documents.is_trained_on]
        available = [domain.bytes_of(domain.select(Fate.TRAIN)) for domain in self._domains]
        self._bytes = min(sample_bytes, *available)
        self._chosen = [self._choose(domain, seed) for domain in self._domains]

    def _choose(self, domain: DomainText, seed: int) -> NDArray[np.int64]:
        """The fewest documents, in keyed order, that hold the sample."""
        train = domain.select(Fate.TRAIN)
        order = np.argsort(keyed_hashes(domain.documents.hashes[train], seed + 1), kind="stable")
        sizes = domain.documents.text_bytes[train[order]]
        return np.sort(train[order][np.cumsum(sizes) - sizes < self._bytes])

    def key(self, vocab_size: int) -> str:
        """Hash of everything that decides the trained tokenizer."""
        digest = hashlib.sha256(json.dumps([FORMAT, vocab_size, self._bytes]).encode())
        for domain, chosen in zip(self._domains, self._chosen, strict=True):
            digest.update(hashlib.sha256(domain.documents.hashes[chosen].tobytes()).digest())
        return digest.hexdigest()

    def texts(self, report: Progress) -> Iterator[str]:
        """The sampled texts; the last of a domain is cut where the sample is full."""
        done, total = 0, self._bytes * len(self._domains)
        report("train tokenizer", done, total)
        for domain, chosen in zip(self._domains, self._chosen, strict=True):
            room = self._bytes
            for _, text in domain.read(chosen):
                encoded = text.encode("utf-8")[:room]
                room -= len(encoded)
                done += len(encoded)
                yield encoded.decode("utf-8", "ignore")
                report("train tokenizer", done, total)


# --- bookkeeping ----------------------------------------------------------------------------------


@contextmanager
def _only_writer(output: Path) -> Iterator[None]:
    """Refuse a second `prepare` into the same folder; the lock ends with the process."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".prepare.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another prepare is writing into {output}; wait for it, or choose another output"
            ) from error
        yield


def _write_counts(domains: Sequence[DomainText], manifest: Manifest, config: PrepareConfig) -> None:
    counts = {}
    for domain, shards in zip(domains, manifest.domains, strict=True):
        counts[domain.name] = {
            "sources": len(domain.inputs.sources),
            "documents_read": len(domain.documents.hashes),
            "documents": count_fates(domain.fate),
            "train_tokens": sum(shard.tokens for shard in shards.train),
            "train_text_bytes": domain.bytes_of(domain.select(Fate.TRAIN)),
            "validation_tokens": sum(shard.tokens for shard in shards.validation),
            "validation_text_bytes": domain.bytes_of(domain.select(Fate.VALIDATION)),
        }
    settings = {
        "seed": config.seed,
        "deduplicate": config.deduplicate,
        "validation_fraction": config.validation_fraction,
        "validation_tokens": config.validation_tokens,
    }
    content = {"settings": settings, "domains": counts}
    write_json(Path(config.output) / "prepare.json", "prepare", content)


def _remove_unnamed(manifest: Manifest, output: Path) -> None:
    """Remove what earlier calls left and the manifest does not name; nothing else is touched."""
    named = {
        (output / shard.path).parent
        for domain in manifest.domains
        for shard in (*domain.train, *domain.validation)
    }
    for record in output.glob(f"shards/*/*/{RECORD_FILE}"):
        if record.parent not in named:
            shutil.rmtree(record.parent)
    for record in output.glob("tokenizer-*.json"):
        if record.stem != manifest.tokenizer.path:
            shutil.rmtree(record.with_suffix(""), ignore_errors=True)
            record.unlink()
    for folder in output.glob("shards/*"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
