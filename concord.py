"""The `concord` command: five groups of commands, each imported only when it is used."""

import importlib
import sys
from typing import Final

VERSION: Final = "0.1.0"
_GROUPS: Final = {
    "coordinator": ("coordinator.cli", "Run a consortium: publish the public model, invite owners, make releases."),
    "owner": ("owner_client.cli", "Take part with your own data: enrol, consent, train at home, submit, opt out."),
    "audit": ("common.audit_cli", "Check a consortium's published files and log, trusting nobody."),
    "witness": (
        "common.witness_cli",
        "Watch consortiums' logs: cosign what continues what was seen, take revocations.",
    ),
    "demo": ("deploy.demo_cli", "A whole consortium on this machine, end to end, in about two minutes."),
    "simulate": ("deploy.simulation.cli", "Hundreds of owners on this machine, with tiny experts: how cost grows."),
}
_OURS: Final = ("common", "coordinator", "owner_client", "deploy", "protos")
_HELP: Final = """Usage: concord [--version] [--help] COMMAND ...

  One strong language model from many owners' data, every owner's data at home.

Commands:
{commands}

Try `concord demo`, or `concord COMMAND --help`.
"""


def main() -> None:
    """Run `concord`. Help and version need no imports, so that they come at once."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, _GROUPS))
        commands = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in _GROUPS.items())
        print(_HELP.format(commands=commands), end="")
    elif arguments[0] == "--version":
        print(f"concord {VERSION}")
    elif arguments[0] in _GROUPS:
        try:
            _run_group(arguments[0], arguments[1:])
        except KeyboardInterrupt:  # while modules were still being imported: nothing has begun
            sys.exit(130)
    else:
        print(f"Error: no command {arguments[0]!r}; there are: {', '.join(_GROUPS)}", file=sys.stderr)
        sys.exit(2)


def _run_group(name: str, arguments: list[str]) -> None:
    try:
        module = importlib.import_module(_GROUPS[name][0])
        import typer

        from common.cli import run

        command = typer.main.get_command(module.app)
        run(lambda: command.main(args=arguments, prog_name=f"concord {name}", standalone_mode=False))
    except ModuleNotFoundError as error:  # of a group, or of a command that imports what it alone needs
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        extra = f"pip install 'concord-moe[{name}]'"
        print(f"Error: {error.name} is not installed; run: {extra}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
