"""Entry point of `unkey`: reads the command line and turns every outcome into an exit status.

Exit status: 0 done; 1 it failed; 2 wrong usage; 3 not logged in or not allowed; 4 not found;
5 the API cannot be reached; 6 not finished in time; 130 interrupted.
"""

import argparse
import sys

from cli import VERSION, commands, config, contracts
from cli.client import BadAddress, Client, Refused, Unreachable
from cli.deploy import deploy
from cli.link import BadLink
from cli.terminal import Terminal

FAILED, USAGE, NOT_ALLOWED, NOT_FOUND, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 5, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    terminal = Terminal(as_json=options.json)
    status = _run(options, terminal)
    terminal.close(status)
    return status


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    try:
        if options.run == commands.login:
            return int(options.run(options, terminal))
        known = config.load(options.url, options.root_key)
        return int(options.run(Client(known.url, known.root_key), options, terminal))
    except (config.NotLoggedIn, BadLink, BadAddress) as error:
        return _fail(terminal, str(error), NOT_ALLOWED if isinstance(error, config.NotLoggedIn) else USAGE)
    except Unreachable as error:
        return _fail(terminal, str(error), UNREACHABLE, ["is the system up? `python manage.py up` starts it"])
    except Refused as refused:
        status = {401: NOT_ALLOWED, 403: NOT_ALLOWED, 404: NOT_FOUND}.get(refused.status, FAILED)
        details = [*refused.violations, f"{refused.code}  {refused.request_id}".strip()]
        return _fail(terminal, refused.detail or refused.title, status, details)
    except KeyboardInterrupt:
        return _fail(terminal, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except Exception as error:
        detail = getattr(error, "detail", None)  # a refusal of the packer: the folder cannot be a snapshot
        if detail is None and not isinstance(error, OSError):
            raise
        return _fail(terminal, str(detail or error), FAILED)


def _fail(terminal: Terminal, message: str, status: int, details: list[str] | None = None) -> int:
    terminal.error(message, details or [])
    return status


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON document")
    shared.add_argument("--url", help="base URL of the API (UNKEY_API_URL)")
    shared.add_argument("--root-key", help="root key (UNKEY_ROOT_KEY); better kept by `unkey login`")

    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--project", help="project, by slug or id (UNKEY_PROJECT; else unkey.json, else the folder's name)"
    )
    place.add_argument("--app", help="app, by slug or id (UNKEY_APP; default: default)")
    place.add_argument("--env", help="environment: production (default) or preview")

    parser = argparse.ArgumentParser(prog="unkey", description="Deploy programs and look after what runs.")
    parser.add_argument("--version", action="version", version=f"unkey {VERSION}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = verbs.add_parser("login", parents=[shared], help="keep a root key for this machine")
    command.set_defaults(run=commands.login)

    command = verbs.add_parser("deploy", parents=[shared, place], help="deploy a folder")
    command.add_argument(
        "folder", nargs="?", default=".", metavar="DIR", help="what to deploy (default: here)"
    )
    command.add_argument(
        "--wait", action=argparse.BooleanOptionalAction, default=True, help="wait until it is ready"
    )
    command.add_argument(
        "--timeout", type=float, default=900, metavar="SECONDS", help="how long to wait (900)"
    )
    command.set_defaults(run=deploy)

    for verb, run, text in (
        ("rollback", commands.rollback, "go back to an earlier deployment"),
        ("promote", commands.promote, "make a deployment the live one"),
    ):
        command = verbs.add_parser(verb, parents=[shared, place], help=text)
        command.add_argument("deployment", nargs="?", help="its id")
        command.add_argument(
            "--timeout", type=float, default=120, metavar="SECONDS", help="how long to wait (120)"
        )
        command.set_defaults(run=run)

    for verb, run, text in (
        ("stop", commands.stop, "stop a preview"),
        ("start", commands.start, "start a stopped preview again"),
        ("cancel", commands.cancel, "end a deployment that is not ready yet"),
        ("approve", commands.approve, "let a deployment begin that awaits approval"),
        ("redeploy", commands.redeploy, "deploy once more what was deployed, with today's settings"),
    ):
        command = verbs.add_parser(verb, parents=[shared, place], help=text)
        command.add_argument("deployment", nargs="?", help="its id (default: the newest that fits)")
        if verb in ("approve", "redeploy"):
            command.add_argument(
                "--wait", action=argparse.BooleanOptionalAction, default=True, help="wait until it is ready"
            )
        if verb == "redeploy":
            command.add_argument(
                "--force", action="store_true", help="also over a newer deployment of its branch"
            )
        command.add_argument(
            "--timeout", type=float, default=900, metavar="SECONDS", help="how long to wait (900)"
        )
        command.set_defaults(run=run)

    command = verbs.add_parser("ps", parents=[shared, place], help="list deployments")
    command.add_argument("--limit", type=int, default=20, help="how many (20)")
    command.set_defaults(run=commands.ps)

    command = verbs.add_parser("logs", parents=[shared, place], help="what a deployment wrote")
    command.add_argument("deployment", nargs="?", help="its id (default: the current one)")
    command.add_argument("--tail", type=int, default=100, help="last lines (100)")
    command.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    command.set_defaults(run=commands.logs)

    command = verbs.add_parser("spec", parents=[shared, place], help="the API that a deployment describes")
    command.add_argument("deployment", nargs="?", help="its id (default: the live one)")
    command.add_argument("-o", "--output", metavar="FILE", help="write it there")
    command.set_defaults(run=contracts.spec)

    command = verbs.add_parser("diff", parents=[shared, place], help="what changed between two APIs")
    command.add_argument("old", nargs="?", help="the earlier deployment (default: the live one)")
    command.add_argument("new", nargs="?", help="the later deployment (default: the newest that is ready)")
    command.add_argument("--format", choices=("text", "json", "markdown"), default="text")
    command.add_argument(
        "--fail-on",
        choices=("breaking", "warning", "any"),
        help="exit with 1 if there is a change of this level or worse",
    )
    command.set_defaults(run=contracts.diff)

    command = verbs.add_parser("settings", parents=[shared, place], help="what an environment demands")
    choice = command.add_mutually_exclusive_group()
    choice.add_argument(
        "--refuse-breaking-changes",
        dest="refuse",
        action="store_true",
        default=None,
        help="what breaks clients of the live API does not become live",
    )
    choice.add_argument("--allow-breaking-changes", dest="refuse", action="store_false", default=None)
    command.set_defaults(run=contracts.settings)

    environment = verbs.add_parser("env", help="variables of an environment")
    actions = environment.add_subparsers(title="actions", metavar="ACTION", required=True)
    command = actions.add_parser("list", parents=[shared, place], help="list variables")
    command.set_defaults(run=commands.env_list)
    command = actions.add_parser("set", parents=[shared, place], help="set variables")
    command.add_argument("assignments", nargs="+", metavar="NAME=VALUE")
    command.add_argument("--readable", action="store_true", help="let the value be read back")
    command.set_defaults(run=commands.env_set)
    command = actions.add_parser("rm", parents=[shared, place], help="remove variables")
    command.add_argument("names", nargs="+", metavar="NAME")
    command.set_defaults(run=commands.env_rm)
    return parser


if __name__ == "__main__":
    sys.exit(main())
