"""The rules of the tree: who may import whom, what lies where, and how large a file may grow.

The direction of imports is a contract of import-linter in pyproject.toml; the other rules are read off the
sources here. Only files that git knows, or would add, count.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("service", "workers", "memory_store", "protos")
TOP_LEVEL = {
    *PACKAGES,
    *("deploy", "tests", "benchmarks", "findings", "examples", "docs"),
    *("docker-compose.yml", "mkdocs.yml", "pyproject.toml", "Makefile"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
}
MAX_LINES = 425
# What an extra brings, and the files that may import it: one that goes on without, or those that are loaded where it is used.
OPTIONAL = {
    "workers/gpu/compilation.py": {"triton"},
    "memory_store/spans.py": {"opentelemetry"},
    "memory_store/span_file.py": {"opentelemetry"},
    "memory_store/traced_requests.py": {"opentelemetry"},
    "workers/step_spans.py": {"opentelemetry"},
}
# Code that goes into exported folders, for libraries that only their readers need.
EXPORTED = Path("workers/exported")
# Ray and gRPC stay at the rim of the value table: everything else in it is arrays and messages.
RIM = re.compile(r"memory_store/(actor|carriers/grpc)\w*\.py")


def project_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("these rules are about a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [Path(name) for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


def sources(*folders: str) -> list[Path]:
    """Return the hand-written Python files, all of them or those under the given folders."""
    found = [path for path in project_files() if path.suffix == ".py" and "_pb2" not in path.name]
    return [path for path in found if not folders or path.parts[0] in folders]


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the dotted name of every module that a file imports, wherever in the file that happens."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def top_level_imports(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imported_modules(path)}


def imported_when_loaded(statements: list[ast.stmt]) -> Iterator[str]:
    """Yield what a module imports as soon as it is loaded: not within functions, nor for the checking of types alone."""
    for statement in statements:
        match statement:
            case ast.Import():
                yield from (alias.name for alias in statement.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield from (module, *(f"{module}.{alias.name}" for alias in statement.names))
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from imported_when_loaded(statement.orelse)
            case ast.If() | ast.Try() | ast.With() | ast.ClassDef():
                handlers = [line for handler in getattr(statement, "handlers", []) for line in handler.body]
                orelse = [*getattr(statement, "orelse", []), *getattr(statement, "finalbody", [])]
                yield from imported_when_loaded([*statement.body, *handlers, *orelse])


def test_what_writes_spans_is_loaded_for_traces_alone():
    writers = {path for path, needed in OPTIONAL.items() if "opentelemetry" in needed}
    modules = {path.removesuffix(".py").replace("/", ".") for path in writers}
    loading = {
        (str(path), module)
        for path in sources(*PACKAGES)
        if str(path) not in writers
        for module in imported_when_loaded(ast.parse((ROOT / path).read_text()).body)
        if module in modules or module.partition(".")[0] == "opentelemetry"
    }
    assert loading == set()


def test_imports_never_point_left():
    program = "from importlinter.cli import lint_imports_command as lint; lint()"
    linter = [sys.executable, "-c", program, "--no-cache"]
    report = subprocess.run(linter, cwd=ROOT, capture_output=True, text=True)
    assert report.returncode == 0, report.stdout + report.stderr


def test_importing_the_value_table_does_not_load_torch():
    program = "import memory_store, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_core_of_the_value_table_knows_neither_ray_nor_grpc():
    core = [path for path in sources("memory_store") if not RIM.fullmatch(path.as_posix())]
    assert {str(path) for path in core if top_level_imports(path) & {"ray", "grpc"}} == set()


def test_nothing_is_pickled():
    pickles = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    assert {str(path) for path in sources(*PACKAGES) if top_level_imports(path) & pickles} == set()


def test_every_import_is_a_declared_dependency():
    declared = {
        re.split(r"[^\w.-]", requirement)[0].lower()
        for requirement in requires("pkm") or []
        if "extra ==" not in requirement
    }
    distributions = packages_distributions()
    known = {*sys.stdlib_module_names, *PACKAGES}
    undeclared = {
        (str(path), module)
        for path in sources(*PACKAGES)
        if path.parent != EXPORTED
        for module in top_level_imports(path) - known - OPTIONAL.get(str(path), set())
        if not declared & {name.lower().replace("_", "-") for name in distributions.get(module, [])}
    }
    assert undeclared == set()


def test_exported_code_needs_nothing_of_this_project():
    allowed = {"torch", "safetensors", "tokenizers", "transformers", "lm_eval", "pkm_model"}
    found = {
        module for path in sources("workers") if path.parent == EXPORTED for module in top_level_imports(path)
    }
    assert found - set(sys.stdlib_module_names) == allowed
    plain = top_level_imports(EXPORTED / "pkm_model.py") - set(sys.stdlib_module_names)
    assert plain == {"torch", "safetensors", "tokenizers"}


def test_the_top_level_shows_the_architecture():
    names = {path.parts[0] for path in project_files()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_no_file_is_too_long():
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in sources()}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_says_what_it_is():
    silent = [
        str(path)
        for path in sources(*PACKAGES, "benchmarks", "findings", "examples")
        if (tree := ast.parse((ROOT / path).read_text())).body and not ast.get_docstring(tree)
    ]
    assert silent == []


def test_generated_modules_are_what_protoc_writes(tmp_path: Path):
    protos = sorted(path.name for path in (ROOT / "protos").glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}"]
    command += [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, *(f"protos/{name}" for name in protos)], cwd=ROOT, check=True)
    fresh = {path.name: path.read_text() for path in (tmp_path / "protos").iterdir()}
    checked_in = {path.name: path.read_text() for path in (ROOT / "protos").glob("*_pb2*")}
    assert protos
    assert fresh == checked_in
