"""The state of a rank as a copy in host memory, taken from DeepSpeed where it would write files."""

import copy
from pathlib import Path
from typing import Any

import torch


class Snapshots:
    """Stands for DeepSpeed's checkpoint engine: keeps copies in host memory, writes nothing.

    An error is kept too: raised, it would leave the other ranks in DeepSpeed's barriers.
    """

    def __init__(self, inner: str) -> None:
        self._inner = inner
        self.files: dict[str, Any] = {}
        self.problem: str | None = None

    def save(self, state_dict: Any, path: str) -> None:
        try:
            self.files[str(Path(self._inner) / Path(path).name)] = snapshot(state_dict)
        except Exception as error:
            self.problem = described(error)

    def create(self, info: Any) -> None:
        pass

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:
        pass

    def commit(self, info: Any) -> bool:
        return True

    def is_decoupled(self) -> bool:
        return False


def snapshot(state: Any) -> Any:
    """A copy in host memory that training does not change; what shared a tensor still does."""
    return _copied(state, {})


def _copied(state: Any, copies: dict[Any, torch.Tensor]) -> Any:
    if isinstance(state, torch.Tensor):
        storage = state.untyped_storage().data_ptr()
        key = (storage, state.storage_offset(), state.shape, state.stride(), state.dtype)
        if key not in copies or not state.numel():
            copies[key] = state.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(state, dict):
        copied = copy.copy(state)  # keeps the class, and the version that a state dict carries
        for name, value in state.items():
            copied[name] = _copied(value, copies)
        return copied
    if type(state) in (list, tuple):
        return type(state)(_copied(value, copies) for value in state)
    return copy.deepcopy(state)


def tensor_bytes(state: Any) -> int:
    """Bytes of the tensors in a snapshot; shared ones count once."""
    sizes: dict[int, int] = {}
    waiting = [state]
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            sizes[id(item)] = item.numel() * item.element_size()
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return sum(sizes.values())


def described(error: Exception) -> str:
    """An error in one line; those of the system name the file and the cause."""
    if isinstance(error, OSError):
        return str(error)
    return f"{type(error).__name__}: {error}"
