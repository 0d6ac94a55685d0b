"""Secrets that are made on first start and kept in `var/secrets`, readable by their owner alone."""

import os
import secrets
from pathlib import Path


def private_folder(path: Path) -> Path:
    """Make a folder, and the missing ones above it, for their owner alone; one that exists is left as it is.

    Raises:
        OSError: it cannot be made.
    """
    if not path.is_dir():
        if path != path.parent:
            private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    return path


def read_or_make(folder: Path, name: str, nbytes: int = 32) -> str:
    """Return the secret `name` as hexadecimal text, making it when it is not there yet.

    Several processes may call this at once on first start: the file is written under a temporary
    name and linked into place, so all of them read the same complete secret.

    Args:
        folder: directory of the secrets, made with mode 0700.
        name: file name.
        nbytes: bytes of randomness; the text is twice as long.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / name
    if not path.exists():
        private_folder(folder)
        draft = folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(nbytes))
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
    return path.read_text().strip()
