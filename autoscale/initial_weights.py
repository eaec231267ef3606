"""The weights that runs start from: a model folder as `save_pretrained` writes it.

What enters a run's identity is a digest of the tensor files, so that equal weights elsewhere are
the same run and a folder whose weights changed is another one.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .model_shape import shape_differences
from .records import read_json, write_json

_BLOCK_BYTES = 1 << 24


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, by name.

    Raises:
        ValueError: the folder holds none, or not all that its index lists.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(listed - {path.name for path in files})
        if missing:
            raise ValueError(
                f"model.start_from: {folder} lacks {missing[0]}, which its index lists"
            )
        files = [path for path in files if path.name in listed]
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    if not files:
        raise ValueError(
            f"model.start_from: {folder} holds no *.safetensors; expected the folder of a model "
            "(an exported one, or a download; save others with save_pretrained)"
        )
    return files


def weights_digest(folder: str | Path, cache: Path) -> str:
    """SHA-256 over the names and bytes of a model's tensor files.

    Args:
        cache: JSON file that keeps the digest while the files keep their sizes and times.
    """
    files = tensor_files(Path(folder))
    seen = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    known = read_json(cache, "weights")["digests"] if cache.is_file() else []
    for entry in known:
        if entry["files"] == seen:
            return str(entry["digest"])
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    others = [entry for entry in known if entry["files"][0][0] != seen[0][0]]
    entry = {"files": seen, "digest": digest.hexdigest()}
    write_json(cache, "weights", {"digests": [*others, entry]})
    return digest.hexdigest()


def require_fitting(
    folder: str | Path, model: Mapping[str, Any], *, vocab_size: int, tokenizer: Path | None
) -> None:
    """Refuse weights of another model, or of another tokenizer.

    Args:
        model: the transformers config of the run.
        vocab_size: of the data's tokenizer.
        tokenizer: folder of the data's tokenizer; None where the data came without one.

    Raises:
        ValueError: naming the field that differs.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"model.start_from: {path} does not exist; expected a model's folder")
    given = json.loads(path.read_text(encoding="utf-8"))
    for name, expected, found in shape_differences(model, given):
        raise ValueError(
            f"model.start_from: {name} is {found!r} in {path}, but the experiment's model has "
            f"{expected!r}; leave model.name out to take the model as it is, or override {name}"
        )
    own = _vocabulary(Path(folder))
    if own is None:
        return
    if model.get("mask_token_id") == vocab_size:  # which an exported model's tokenizer was given
        own = {token: index for token, index in own.items() if index != vocab_size}
    remedy = "prepare the data with the model's own tokenizer (prepare.tokenizer.path)"
    found_size = max(own.values()) + 1
    if found_size != vocab_size:
        raise ValueError(
            f"model.start_from: the tokenizer in {folder} has a vocabulary of {found_size}, but "
            f"that of the data has {vocab_size}; {remedy}"
        )
    if tokenizer is not None and _vocabulary(tokenizer) not in (None, own):
        raise ValueError(
            f"model.start_from: the tokenizer in {folder} has other tokens than that of the data "
            f"({tokenizer}); {remedy}"
        )


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """Token ids by token; None where the folder has no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
    return vocabulary | {added["content"]: added["id"] for added in content["added_tokens"]}
