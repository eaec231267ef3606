"""Text to token ids: train a byte-level BPE tokenizer, or take over one of transformers.

Either way the result is a folder that `transformers.AutoTokenizer.from_pretrained` loads, and that
`TextTokenizer.open` loads with the `tokenizers` package alone, so that worker processes start
without transformers. Every document ends with the end-of-text token, and that token only ever
comes from the end of a document: a text that spells it out is encoded like any other text.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"
MIN_VOCAB_SIZE = 257
"""Every byte, and the end-of-text token."""
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Documents as one run of token ids, each document closed by end-of-text."""

    tokens: NDArray[np.int32]
    """Shape (sum of lengths,)."""
    lengths: NDArray[np.int64]
    """Tokens of each document, end-of-text included; shape (documents,)."""

    def documents(self) -> Iterator[NDArray[np.int32]]:
        ends = np.cumsum(self.lengths)
        for length, end in zip(self.lengths, ends, strict=True):
            yield self.tokens[end - length : end]


class TextTokenizer:
    """A tokenizer folder, ready to encode."""

    def __init__(self, folder: Path, backend: Tokenizer, end_of_text: str) -> None:
        self.folder = folder
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # special tokens spelled out in a text stay text
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        end_of_text_id = backend.token_to_id(end_of_text)
        if end_of_text_id is None:
            raise ValueError(
                f"tokenizer {folder}: its end-of-text token {end_of_text!r} is not in its "
                "vocabulary; add it to the tokenizer"
            )
        self.end_of_text_id: int = end_of_text_id
        self._check_plain(end_of_text)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Load a folder written by `train_tokenizer` or `import_tokenizer`."""
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        end_of_text = settings["eos_token"]
        if isinstance(end_of_text, dict):
            end_of_text = end_of_text["content"]
        return cls(folder, Tokenizer.from_file(str(folder / TOKENIZER_FILE)), end_of_text)

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Token ids of every text, each followed by end-of-text."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        lengths = np.array([len(encoding) + 1 for encoding in encodings], dtype=np.int64)
        tokens = np.full(int(lengths.sum()), self.end_of_text_id, dtype=np.int32)
        start = 0
        for encoding, length in zip(encodings, lengths, strict=True):
            tokens[start : start + length - 1] = encoding.ids
            start += length
        if np.count_nonzero(tokens == self.end_of_text_id) != len(lengths):
            self._refuse_end_of_text("a document")
        return EncodedTexts(tokens, lengths)

    def _check_plain(self, end_of_text: str) -> None:
        for text in (end_of_text, f"a{end_of_text}b", f" {end_of_text} "):
            if self.end_of_text_id in self._backend.encode(text, add_special_tokens=False).ids:
                self._refuse_end_of_text(repr(text))

    def _refuse_end_of_text(self, what: str) -> None:
        raise ValueError(
            f"tokenizer {self.folder}: encoding {what} as plain text gives its end-of-text id "
            f"{self.end_of_text_id}; expected only ids of ordinary tokens, since that id marks "
            "where documents end; use a tokenizer whose end-of-text token is a special token"
        )


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, folder: Path) -> TextTokenizer:
    """Train a byte-level BPE tokenizer; the same texts give the same bytes on disk.

    Raises:
        ValueError: `vocab_size` cannot hold every byte, or is more than the texts give merges for.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"tokenizer.vocab_size is {vocab_size}; expected at least {MIN_VOCAB_SIZE} (every byte "
            "and the end-of-text token)"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(iter(texts), trainer)
    found = backend.get_vocab_size()
    if found != vocab_size:
        raise ValueError(
            f"tokenizer.vocab_size is {vocab_size}, but the sampled text yields only {found} "
            "tokens; lower it, or add text (the sample of every domain is as large as the "
            "smallest domain, and at most tokenizer.sample_bytes)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / TOKENIZER_FILE))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return TextTokenizer.open(folder)


def import_tokenizer(name_or_path: str, *, folder: Path) -> TextTokenizer:
    """Copy a tokenizer, by hub name or local folder, into `folder`; its own code is never run.

    Raises:
        ValueError: transformers cannot load it, it is not backed by `tokenizers`, or it has no
            end-of-text token.
    """
    from transformers import AutoTokenizer  # only here: it imports torch where torch is installed

    try:
        loaded: Any = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(
            f"tokenizer.path {name_or_path!r}: transformers cannot load it ({error}); expected a "
            "folder with tokenizer.json and tokenizer_config.json, or a hub name"
        ) from error
    if not getattr(loaded, "is_fast", False):
        raise ValueError(
            f"tokenizer.path {name_or_path!r} is a {type(loaded).__name__} without tokenizer.json; "
            "save_pretrained of its Fast class writes one: give that folder"
        )
    if loaded.eos_token is None:
        raise ValueError(
            f"tokenizer.path {name_or_path!r} has no end-of-text token; set eos_token in its "
            "tokenizer_config.json"
        )
    loaded.save_pretrained(str(folder))
    return TextTokenizer.open(folder)


def tokenizer_fingerprint(folder: Path) -> str:
    """Sha256 of what decides the token ids: tokenizer.json and the end-of-text token."""
    tokenizer = TextTokenizer.open(folder)
    content = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    decisive = {**content, "truncation": None, "padding": None}
    text = json.dumps([decisive, tokenizer.end_of_text_id], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def mask_token_id(folder: Path) -> int | None:
    """Id of a tokenizer's mask token; None where it has none, or where there is no tokenizer."""
    path = folder / SETTINGS_FILE
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    token = settings.get("mask_token")
    if token is None:
        return None
    content = token["content"] if isinstance(token, dict) else token
    found: int | None = Tokenizer.from_file(str(folder / TOKENIZER_FILE)).token_to_id(content)
    return found


def add_mask_token(folder: Path, token_id: int) -> None:
    """Give the tokenizer of an exported model the mask token that the model was trained with.

    Nothing is done where the folder has no tokenizer, or one with a mask token. Where ids are
    missing below `token_id` the tokenizer cannot hold it, which is logged.
    """
    if not (folder / TOKENIZER_FILE).is_file() or mask_token_id(folder) is not None:
        return
    backend = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    backend.add_special_tokens([MASK])
    if backend.token_to_id(MASK) != token_id:
        logger.info("%s: the mask token %d is not in the tokenizer", folder, token_id)
        return
    backend.save(str(folder / TOKENIZER_FILE))
    path = folder / SETTINGS_FILE
    settings = json.loads(path.read_text(encoding="utf-8")) | {"mask_token": MASK}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@contextmanager
def tokenizer_threads(enabled: bool) -> Iterator[None]:
    """Whether `tokenizers` may use its own threads inside the block."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true" if enabled else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
