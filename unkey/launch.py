"""Becomes another program that is told when its parent dies: `launch.py SIGNAL PARENT command…`.

Run with `python -I -S`, so that it starts in a few milliseconds and imports nothing of the project.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept over exec


def main() -> None:
    """Ask the kernel for the signal, make sure that the parent still lives, and exec the command."""
    signal_number, parent, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != int(parent):
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
