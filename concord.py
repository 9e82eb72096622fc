"""The `concord` command."""


def main() -> None:
    raise SystemExit("concord: being assembled")
