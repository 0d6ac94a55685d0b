#!/usr/bin/env python
"""Django's command line."""

import os
import sys


def main() -> None:
    """Run a management command; what is wrong with the machine or a setting is said in one line."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "unkey.settings")
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from unkey.complaints import explain

        line = explain(error)
        if line is None or "--traceback" in sys.argv:
            raise
        sys.exit(f"error: {line}")


if __name__ == "__main__":
    main()
