"""Files that proofs build once: kept under build/ by a name that says what they were made of, shared by processes."""

import fcntl
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path


def digest(*parts: object) -> str:
    """The part of a file's name that stands for all that it is made of."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def kept(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made first where it is missing; of processes and threads that want it, one makes it and the others wait.

    make: makes the file or folder, in a folder that exists, under the path that it is given.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / f".{path.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                    made = Path(scratch, path.name)
                    make(made)
                    made.rename(path)
    return path
