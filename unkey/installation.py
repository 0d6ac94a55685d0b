"""One installation on one machine: its run folder, the lock on it, and what may have outlived it."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from unkey.keyfiles import private_folder
from unkey.supervisor import MARK


class AlreadyRunning(RuntimeError):
    """Another `up` runs in this folder."""


class Installation:
    """The system that runs, or may run, in a folder.

    Args:
        var: the folder UNKEY_VAR.
    """

    def __init__(self, var: Path) -> None:
        self.var = var
        self.run_folder = var / "run"
        self._lock = self.run_folder / "up.pid"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one supervisor; the kernel lets go when the process ends, however it does.

        Raises:
            AlreadyRunning: another one holds it.
            OSError: the folder cannot be written.
        """
        private_folder(self.run_folder)
        with open(self._lock, "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyRunning(
                    f"already running in {self.var} (pid {self.supervisor()}): "
                    "`manage.py down` stops it, UNKEY_VAR chooses another folder"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            self._forget()
            try:
                yield
            finally:
                lock.truncate(0)
                self._forget()

    def _forget(self) -> None:
        """Remove what was written for others to read, also by a supervisor that was killed."""
        for file in self.run_folder.iterdir():
            if file != self._lock:
                file.unlink(missing_ok=True)

    def supervisor(self) -> int | None:
        """Return the pid of the running supervisor, or None."""
        try:
            with open(self._lock) as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read().strip() or 0) or None
        except FileNotFoundError:
            return None
        return None

    def stop(self, *, patience: float) -> bool:
        """Stop the supervisor and everything below it, then whatever an earlier one left.

        Args:
            patience: seconds until it is told to hurry.

        Returns:
            Whether anything ran.
        """
        pid = self.supervisor()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            if not self._gone_within(patience):
                os.kill(pid, signal.SIGTERM)
                if not self._gone_within(10):
                    os.kill(pid, signal.SIGKILL)
        left = self.end_leftovers(instances=True)
        return pid is not None or left > 0

    def end_leftovers(self, *, instances: bool) -> int:
        """End processes whose supervisor was killed.

        Args:
            instances: end the instances, too; False leaves them to the next agent, which knows them.

        Returns:
            How many there were.
        """
        left = [process for process in psutil.process_iter() if self._is_ours(process, instances)]
        for process in left:
            try:
                process.terminate()
            except psutil.NoSuchProcess:
                continue
        _, stubborn = psutil.wait_procs(left, timeout=5)
        for process in stubborn:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(stubborn, timeout=5)
        return len(left)

    def _is_ours(self, process: psutil.Process, instances: bool) -> bool:
        if process.pid == os.getpid():
            return False
        try:
            if process.environ().get(MARK) == str(self.var):
                # Instances may have inherited the mark; they stand in a folder of the agent.
                return instances or not self._stands_in_agents_folder(process)
            return instances and self._stands_in_agents_folder(process)
        except (psutil.Error, OSError):
            return False

    def _stands_in_agents_folder(self, process: psutil.Process) -> bool:
        return Path(process.cwd()).is_relative_to(self.var / "agent")

    def _gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.supervisor() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True
