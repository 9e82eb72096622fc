"""What holds for the code as a whole: who imports what, what is generated, how long things are, what is not in git."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grpc_tools.protoc
import pytest

from common.trust.note import SigningKey

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "coordinator", "owner_client", "deploy", "protos")
LONGEST_FUNCTION = 60
LONGEST_FILE = 600

# Which of our own packages and modules a module may import: the first row that fits decides.
MAY_IMPORT = [
    (r"common\.errors", r"^$"),
    (r"common\.trust\..*", r"common\.(trust|errors)"),
    (r"common\.rpc\.auditor", r"common|protos"),
    (r"common\..*", r"common"),
    (r"coordinator\.(servicers|campaign_servicer)", r"common|coordinator|protos"),
    (r"owner_client\.(client|connection|fetching|uploading)", r"common|owner_client|protos"),
    (r"coordinator\..*", r"common|coordinator"),
    (r"owner_client\..*", r"common|owner_client"),
    (r"deploy\..*", r"common|coordinator|owner_client|deploy"),
    (r"concord", r"common"),
]
# Which modules alone may import a library.
ONLY_IN = {
    "grpc": r"common\.rpc\.channel|coordinator\.(servicers|campaign_servicer)|owner_client\.client",
    "sqlalchemy": r"coordinator\.(log|log_files|store|tables|postgresql|registry|live_history|cosigned|enrolment|reads|"
    r"campaign_states|"
    r"migrations\.versions\..*)",
    "flwr": r"coordinator\.flower_(server|control)|owner_client\.flower_(client|apps)"
    r"|deploy\.(simulation\.engine|examples\.flower\.server)",
    "httpx": r"coordinator\.flower_control",
    "psutil": r"deploy\..*",
    "transformers": r"common\.text_encoder",
    "torch": (
        r"common\.(job|loss|held_routing|training|tune|evaluate|embedder|text_encoder)"
        r"|common\.model\.(hf|moe|router_rows|transformer)"
        r"|owner_client\.(train|router_init|anchor|held_out_bias|extraction|expert_choice)|coordinator\.(pretrain|topics)|coordinator\.combine\..*"
    ),
    "safetensors": r"common\.(training|tune)|common\.model\.(hf|router_rows)|owner_client\.train",
    "sklearn": r"common\.text_classifier|owner_client\.expert_choice",
    "numpy": (
        r"common\.(packing|evaluate|ensemble|multiple_choice|text_classifier|embedder|text_encoder|resumable_sha256)"
        r"|common\.model\.(checkpoint|norms)|owner_client\.(own_kind|expert_choice|proxies)"
    ),
    "alembic": r"coordinator\.postgresql|coordinator\.migrations\..*",
    "nacl": r"common\.trust\.note",
    "cryptography": r"common\.trust\.(note|pki)",
}
TRUST_MAY_IMPORT = {"cryptography", "nacl", "orjson", "pydantic", "pydantic_core", "rfc8785", "typer"}
"""What an auditor installs; beside it, `typer` alone draws the command."""


@dataclass(frozen=True)
class Module:
    """One of our modules, parsed."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def imports(self) -> set[str]:
        """All names it imports, anywhere in it, in full."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name} imports relatively"
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        return found

    @property
    def ours(self) -> set[str]:
        """Its imports from our own packages."""
        return {name for name in self.imports if name.partition(".")[0] in PACKAGES}


@cache
def modules() -> list[Module]:
    """All modules of the product but the generated ones."""
    paths = [ROOT / "concord.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return [
        Module(name.removesuffix(".__init__"), path, ast.parse(path.read_text()))
        for path, name in names.items()
        if "_pb2" not in name
    ]


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_all_modules_are_looked_at() -> None:
    assert {"concord", "common.trust.note", "coordinator.daemon", "owner_client.daemon", "deploy.demo"} <= {
        module.name for module in modules()
    }


# Who imports what


def test_packages_import_what_the_layout_allows() -> None:
    wrong = []
    for module in modules():
        allowed = next((may for name, may in MAY_IMPORT if re.fullmatch(name, module.name)), r"^$")
        wrong += [f"{module.name} imports {name}" for name in module.ours if not re.match(rf"({allowed})(\.|$)", name)]
    assert wrong == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_in_its_places_alone(library: str) -> None:
    users = {module.name for module in modules() if any(re.match(rf"{library}(\.|$)", n) for n in module.imports)}
    assert {name for name in users if not re.fullmatch(ONLY_IN[library], name)} == set()


def test_trust_needs_little() -> None:
    libraries = {
        name.partition(".")[0]
        for module in modules()
        if module.name.startswith("common.trust")
        for name in module.imports
    }
    assert libraries - sys.stdlib_module_names - {"common"} <= TRUST_MAY_IMPORT


def test_daemons_are_imported_by_their_commands_alone() -> None:
    users = {module.name for module in modules() if any(".daemon" in name for name in module.ours)}
    assert users == {"coordinator.cli", "owner_client.cli"}


def test_no_import_cycles() -> None:
    names = {module.name for module in modules()}
    graph = {
        module.name: {known for name in at_start(module) for known in (name, name.rpartition(".")[0]) if known in names}
        for module in modules()
    }
    assert cycle_in(graph) is None


def at_start(module: Module) -> Iterable[str]:
    """What is imported when the module is: not within functions."""
    top = ast.Module([node for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    return Module(module.name, module.path, top).ours


def cycle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """Some cycle, or None."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        found = next((cycle for used in sorted(graph[name]) if (cycle := visit(used, [*path, name]))), None)
        done.add(name)
        return found

    return next((cycle for name in graph if (cycle := visit(name, []))), None)


def test_a_cycle_would_be_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("coordinator.daemon", "torch numpy transformers flwr owner_client"),
        ("coordinator.cli", "torch numpy transformers flwr grpc owner_client"),
        ("common.model.assembly", "torch numpy transformers flwr grpc sqlalchemy owner_client"),
        ("coordinator.intake", "torch numpy transformers flwr grpc owner_client"),
        ("coordinator.releases", "torch numpy transformers flwr grpc owner_client"),
        ("owner_client.daemon", "torch numpy transformers flwr sqlalchemy coordinator"),
        ("owner_client.cli", "torch numpy transformers flwr sqlalchemy coordinator"),
        ("common.audit_cli", "torch numpy transformers flwr grpc sqlalchemy google coordinator owner_client"),
        ("common.trust.verify", "torch numpy transformers flwr grpc sqlalchemy google typer rich coordinator"),
        ("deploy.demo_cli", "torch transformers flwr grpc"),
    ],
)
def test_a_process_never_loads(module: str, never: str) -> None:
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(never.split()) & set(loaded.stdout.split()) == set()


# Generated code


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    protos = sorted((ROOT / "protos").glob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    names = [str(path.relative_to(ROOT)) for path in protos]
    assert grpc_tools.protoc.main(["protoc", f"-I{ROOT}", *outputs, *names]) == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "protos").iterdir()}
    assert len(made) == 3 * len(protos)
    assert made == {path.name: path.read_bytes() for path in (ROOT / "protos").glob("*_pb2*.py*")}


# Size and words


def test_functions_are_short() -> None:
    long = [
        f"{module.name}.{function.name}: {function.end_lineno - function.lineno + 1} lines"
        for module in modules()
        for function in functions(module)
        if function.end_lineno is not None and function.end_lineno - function.lineno >= LONGEST_FUNCTION
    ]
    assert long == []


def test_files_are_short() -> None:
    assert [m.name for m in modules() if len(m.path.read_text().splitlines()) > LONGEST_FILE] == []


def test_everything_public_says_what_it_is() -> None:
    silent = [where for module in modules() for where in without_docstring(module)]
    assert silent == []


def without_docstring(module: Module) -> Iterator[str]:
    """What is public in a module, is not nested in a function, and has no docstring.

    Properties that name a place in a home speak for themselves, as do the methods of a servicer or of a class that is
    not public: their interface is described where it is declared.
    """
    if not ast.get_docstring(module.tree) and module.path.name != "__init__.py":
        yield module.name
    for node in module.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{module.name}.{node.name}"
            if isinstance(node, ast.ClassDef) and not described_elsewhere(node):
                yield from (f"{module.name}.{node.name}.{name}" for name in silent_methods(node))


def described_elsewhere(node: ast.ClassDef) -> bool:
    """Whether the class implements what a proto file, or a class among its bases or a protocol, describes."""
    return node.name.endswith(("Servicer", "Home", "Reporter")) or any(
        isinstance(base, ast.Attribute) and base.attr == "Function" for base in node.bases
    )


def silent_methods(node: ast.ClassDef) -> Iterator[str]:
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and not ast.get_docstring(each):
            yield each.name


# What is not in git

SECRETS = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}",
    "an AWS key": rb"\bAKIA[0-9A-Z]{16}\b",
    "a GitHub token": rb"\bgh[pousr]_[A-Za-z0-9]{36}\b",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}\b",
    "an API key": rb"\bsk-[A-Za-z0-9_-]{32,}\b",
    "a Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a password in an address": rb"[a-z]+://[^/\s:@{}]+:[^/\s:@{}]+@",
}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()  # noqa: S607
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("kind", SECRETS)
def test_git_holds_no(kind: str) -> None:
    assert [path for path in tracked_files() if re.search(SECRETS[kind], path.read_bytes())] == []


def test_a_private_key_would_be_found() -> None:
    assert re.search(SECRETS["a private key"], SigningKey.generate("secret.test/key").to_pem())


def test_git_holds_no_state_of_a_consortium() -> None:
    state = re.compile(r"\.(key|sqlite|invitation|safetensors)$|(^|/)(tls\.pem|server\.pem|ledger\.jsonl)$")
    assert [path for path in tracked_files() if state.search(path.name)] == []
