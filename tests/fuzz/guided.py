"""One target under atheris: `python -m tests.fuzz.guided TARGET CORPUS [libFuzzer options]`."""

import sys

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["common"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
