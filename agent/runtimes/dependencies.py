"""Virtual environments for instances, cached by what is installed in them.

Every instance gets one, also without requirements: a bare one still gives it a `python` of its own,
and keeps the platform's packages out of its sight.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

from agent.runtimes.base import StartFailed

TIMEOUT_SECONDS = 600.0
KEPT_SECONDS = 24 * 3600
_COMPLETE = ".complete"
_LOCAL = re.compile(r"^\s*(-[rce]\b|--requirement|--constraint|--editable|\.|/|file:)", re.MULTILINE)
_PASSED_ON = re.compile(r"PIP_.*|UV_.*|SSL_CERT_.*|REQUESTS_CA_BUNDLE|(https?|no|all)_proxy", re.IGNORECASE)


def base_path() -> list[str]:
    """Return where programs are looked for after the instance's own environment.

    The agent's own virtual environment is left out: its packages are the platform's, not the tenant's.
    """
    own = {os.path.join(sys.prefix, "bin")} if sys.prefix != sys.base_prefix else set()
    inherited = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    return [os.path.join(sys.base_prefix, "bin"), *(path for path in inherited if path not in own)]


class Environments:
    """The cache of virtual environments in one folder."""

    def __init__(self, folder: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._folder = folder
        self._timeout = timeout_seconds
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, app: Path, image: str, what: list[str], log: Path) -> Path:
        """Return the virtual environment for a program, made when it is not there yet.

        Args:
            app: the program's folder.
            image: reference of the snapshot that the folder was unpacked from.
            what: arguments of `pip install`, such as `-r requirements.txt`; empty: a bare environment.
            log: file that the installer's output is added to.

        Raises:
            StartFailed: the installer failed or took too long; the message has its last lines.
        """
        key = self._key(app, image, what)
        path = self._folder / key
        async with self._locks.setdefault(key, asyncio.Lock()):
            if not (path / _COMPLETE).exists():
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
                path.mkdir(parents=True)
                await self._make(path, app, what, log)
                (path / _COMPLETE).touch()
            os.utime(path / _COMPLETE)
        return path

    def drop_unfinished(self) -> None:
        """Remove what was never made to the end; called before the first is made."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if path.is_dir() and not (path / _COMPLETE).exists():
                shutil.rmtree(path, ignore_errors=True)

    def tidy(self, in_use: set[str], now: float) -> None:
        """Remove environments that no instance uses and none has asked for within a day.

        Args:
            in_use: names of folders that instances run from.
            now: Unix seconds.
        """
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                last = (path / _COMPLETE).stat().st_mtime
                if path.name not in in_use and last < now - KEPT_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _key(self, app: Path, image: str, what: list[str]) -> str:
        requirements = _read(app / "requirements.txt") if "requirements.txt" in what else b""
        asked = "\n".join(part for part in what if part not in ("-r", "requirements.txt"))
        local = _LOCAL.search(asked) or _LOCAL.search(requirements.decode("utf-8", "replace"))
        # What is installed from other files of the program depends on all of them.
        parts = [sys.version, sys.base_prefix, asked, image if local else ""]
        return hashlib.sha256("\0".join(parts).encode() + b"\0" + requirements).hexdigest()[:32]

    async def _make(self, path: Path, app: Path, what: list[str], log: Path) -> None:
        base = os.path.join(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
        python = base if os.path.exists(base) else sys.executable
        uv = shutil.which("uv")
        pip = [] if what and uv is None else ["--without-pip"]
        await run([python, "-m", "venv", *pip, str(path)], app, log, self._timeout, _environment())
        if not what:
            return
        own = str(path / "bin" / "python")
        installer = (
            [uv, "pip", "install", "--python", own, *what]
            if uv
            else [own, "-m", "pip", "install", "--no-input", *what]
        )
        await run(installer, app, log, self._timeout, _environment())


def _environment() -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    return {
        **passed,
        "PATH": ":".join(base_path()),
        "HOME": os.environ.get("HOME", "/"),
        "LANG": "C.UTF-8",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "UV_NO_PROGRESS": "1",
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return b""


async def run(
    command: list[str], folder: Path, log: Path, timeout_seconds: float, env: dict[str, str]
) -> None:
    """Run a command that prepares an instance, its output added to the log.

    Raises:
        StartFailed: it cannot be found, failed or took too long.
    """
    shown = " ".join(os.path.basename(command[0]) if part == command[0] else part for part in command)
    with log.open("ab", buffering=0) as output:
        output.write(f"[agent] {shown}\n".encode())
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(f"{command[0]} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_seconds):
                status = await process.wait()
        except TimeoutError:
            raise StartFailed(f"{shown} took longer than {timeout_seconds:.0f} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
    if status:
        raise StartFailed(f"{shown} ended with status {status}")
