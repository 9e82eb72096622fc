"""Settings: TOML -> one frozen pydantic model; unknown keys are refused."""

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import MalformedError
from common.files import read_required


class Settings(BaseModel):
    """Base of all settings and job configs."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_Settings = TypeVar("_Settings", bound=BaseModel)


def load_toml(path: Path, kind: type[_Settings], *, hint: str) -> _Settings:
    """The settings in a TOML file.

    Raises:
        NotFoundError: there is no such file; the message ends with `hint`.
        MalformedError: not TOML, or a key or value that is not allowed.
    """
    data = read_required(path, hint=hint)
    try:
        return kind.model_validate(tomllib.loads(data.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MalformedError(f"{path}: {error}") from error
    except ValidationError as error:
        raise MalformedError(f"{path}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """The problems of a pydantic error on one line, field first."""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors())


def load_options(path: Path) -> dict[str, object]:
    """The keys of a TOML file that a job will check itself.

    Raises:
        NotFoundError, MalformedError: as `load_toml`.
    """
    data = read_required(path, hint="name a TOML file with the job's options")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MalformedError(f"{path}: {error}") from error
