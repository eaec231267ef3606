"""Where inputs lie: a path, or the URL of anything that fsspec reads (`s3://`, `gs://`, ...).

Names of hub data sets (`hf://name`) are no locations of files: `text` gives them to `datasets`.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import IO, Any

import fsspec

HUB_PREFIX = "hf://"


def is_url(location: str) -> bool:
    """Whether a location is read by fsspec; every other one is a local path or a hub name."""
    return "://" in location and not location.startswith(HUB_PREFIX)


def open_location(location: str) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened.
        ValueError: no file system is known for the URL.
    """
    if not is_url(location):
        return open(location, "rb")
    files, path = file_system(location)
    opened: IO[bytes] = files.open(path, "rb")
    return opened


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path within it.

    Raises:
        ValueError: the protocol is unknown, or its package is not installed.
    """
    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{url} cannot be read ({error}); install fsspec's package for this protocol (s3fs "
            "for s3://, gcsfs for gs://), or correct the URL"
        ) from error
    return files, path


def find_files(location: str) -> list[str]:
    """All files that a file, folder or glob stands for, sorted; none where nothing is there.

    Folders are searched to the bottom; a symbolic link to a folder is not followed. A link that
    leads nowhere is listed, so that opening it says so.
    """
    if is_url(location):
        return _find_by_url(location)
    if os.path.isdir(location):
        found = (Path(folder, name) for folder, _, names in os.walk(location) for name in names)
        return sorted(str(path) for path in found if path.is_file() or path.is_symlink())
    if os.path.exists(location):
        return [location]
    return []


def _find_by_url(url: str) -> list[str]:
    files, path = file_system(url)
    with named_errors(url):
        if has_magic(path):
            found = [match for match in files.glob(path) if files.isfile(match)]
        elif files.isdir(path):
            found = files.find(path)
        else:
            found = [path] if files.exists(path) else []
    return sorted(str(files.unstrip_protocol(each)) for each in found)


@contextmanager
def named_errors(location: str) -> Iterator[None]:
    """Turn what storage raises into one line that names the location."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise ValueError(
            f"{location} cannot be read ({reason}); check that it exists, and its permissions"
        ) from error


def file_size(location: str) -> int | None:
    """Bytes of a file; None where the storage does not say.

    Raises:
        ValueError: there is no such file, or what is there is no file.
    """
    with named_errors(location):
        if not is_url(location):
            found = os.stat(location)
            if not stat.S_ISREG(found.st_mode):
                kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
                raise ValueError(f"{location} is {kind}; expected a file: put it there")
            return found.st_size
        files, path = file_system(location)
        size = files.size(path)
    return None if size is None else int(size)


def file_stamp(location: str) -> str:
    """Size and time of a file: another stamp means that it was written anew."""
    with named_errors(location):
        if not is_url(location):
            found = os.stat(location)
            return f"{found.st_size} {found.st_mtime_ns}"
        files, path = file_system(location)
        about = files.info(path)
    times = [str(about[key]) for key in ("ETag", "mtime", "created", "updated") if key in about]
    return f"{about.get('size')} {' '.join(times)}"


def join(folder: str, relative: str) -> str:
    """Location of a file by its path from a folder; `/` separates."""
    return f"{folder.rstrip('/')}/{relative}" if is_url(folder) else str(Path(folder, relative))


def path_from(folder: str, location: str) -> str:
    """Path of a location from its folder, with `/`; both are paths, or URLs of one storage."""
    if not is_url(folder):
        return Path(os.path.relpath(location, folder)).as_posix()
    files, base = file_system(folder)
    root = str(files.unstrip_protocol(base)).rstrip("/") + "/"
    assert location.startswith(root), (root, location)
    return location.removeprefix(root)
