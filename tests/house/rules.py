"""The house rules as functions from one source file to what breaks them.

Applied by test_house.py, tried out by test_rules.py.

Not here: complexity, annotations and formatting (ruff, mypy) and the import contracts (import-linter).
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70

Function = ast.FunctionDef | ast.AsyncFunctionDef

SHELLS = {
    "chain.runtime": "gives the machines their time, makes keys, reads settings",
    "chain.node": "wiring of a chain node",
    "chain.explorer": "wiring of the explorer",
    "chain.cli": "commands read their environment",
    "broker.service": "wiring of the broker",
    "broker.bus": "starts the MQTT server as a child process and gives each connect its own deadline",
    "broker.rpc": "a signed request carries its own time and a nonce",
    "broker.cli": "commands read their environment",
    "provider.daemon": "wiring of the provider",
    "provider.sandbox": "measures what a job uses and ends it at its time limit",
    "provider.cli": "commands read their environment",
    "requester.client": "wiring of the client library",
    "requester.demo": "starts and times the parts",
    "requester.cli": "commands read their environment",
}

# Reading one of these makes an outcome depend on more than the arguments. A trailing dot bans all below.
AMBIENT = (
    "time.", "random.", "secrets.", "uuid.uuid1", "uuid.uuid4",
    "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today",
    "os.environ", "os.getenv", "os.urandom", "os.getrandom",
    "numpy.random.", "nacl.utils.random", "nacl.signing.SigningKey.generate",
    "cryptography.hazmat.primitives.asymmetric.ed25519.Ed25519PrivateKey.generate",
)  # fmt: skip

NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclass(frozen=True)
class Source:
    """One file: its dotted module name and its text."""

    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def comments(self) -> list[tuple[int, str, str]]:
        """(line number, whole line, comment) of each comment."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return [(one.start[0], one.line, one.string) for one in tokens if one.type == tokenize.COMMENT]

    @property
    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))


def find_long_file(source: Source) -> Iterator[str]:
    """A file has at most 500 lines."""
    lines = source.text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{lines} lines; at most {MAX_FILE_LINES}"


def find_long_functions(source: Source) -> Iterator[str]:
    """A function has at most 70 lines, its docstring counted."""
    for node in source.functions:
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield f"line {node.lineno}: {node.name} has {lines} lines; at most {MAX_FUNCTION_LINES}"


def find_missing_docstrings(source: Source) -> Iterator[str]:
    """Each public module, class, function and method says what it is for."""
    if any(part.startswith("_") for part in source.module.split(".")):
        return
    if not ast.get_docstring(source.tree):
        yield "line 1: the module has no docstring"
    yield from _find_undocumented(source.tree)


def _find_undocumented(parent: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        inherited = any(_last_name(one) in {"override", "overload", "setter", "deleter"} for one in node.decorator_list)
        if not inherited and not ast.get_docstring(node):
            yield f"line {node.lineno}: {node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from _find_undocumented(node)


def _last_name(node: ast.expr) -> str:
    return ast.unparse(node).partition("(")[0].rpartition(".")[2]


def find_ambient_reads(source: Source) -> Iterator[str]:
    """No clock, chance or environment is read outside the shells; those values come in as arguments."""
    if any(f"{source.module}.".startswith(f"{shell}.") for shell in SHELLS):
        return
    names = dict(_read_imports(source.tree))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            path = _resolve(node, names)
            if any(path == one or (one.endswith(".") and path.startswith(one)) for one in AMBIENT):
                yield f"line {node.lineno}: reads {path}; take it as an argument"


def _read_imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name in this file, dotted path it stands for) of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                root = one.name.partition(".")[0]
                yield (one.asname, one.name) if one.asname else (root, root)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for one in node.names:
                yield one.asname or one.name, f"{node.module}.{one.name}"


def _resolve(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted path of a name or attribute; "" where it does not begin with an import."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        before = _resolve(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    return ""


POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios"}


def find_unportable(source: Source) -> Iterator[str]:
    """What loads without its platform asked first loads everywhere. An import is guarded by `if` on sys.platform."""
    guarded: set[ast.AST] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.If) and "sys.platform" in ast.unparse(node.test):
            guarded |= set(ast.walk(node))
    for node in ast.walk(source.tree):
        if node in guarded or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in names:
            if name.partition(".")[0] in POSIX_ONLY:
                yield f"line {node.lineno}: imports {name}, which Windows has not, without asking sys.platform"


def find_nameless_module(source: Source) -> Iterator[str]:
    """A module is named for what is in it."""
    for part in source.module.split("."):
        if part in NAMELESS:
            yield f"a module called {part} says nothing of what is in it"


def find_leftovers(source: Source) -> Iterator[str]:
    """What is to be done stands in the issues, not in the code."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if match := re.search(r"\b(TODO|FIXME|XXX)\b", line):
            yield f"line {number}: {match[0]}"


def find_uncovered(source: Source) -> Iterator[str]:
    """Only what cannot run at run time is left out of coverage."""
    for number, line, comment in source.comments:
        if "pragma: no cover" in comment and not re.search(r"\b(TYPE_CHECKING|assert_never)\b", line):
            yield f"line {number}: pragma: no cover"


def find_bare_ignores(source: Source) -> Iterator[str]:
    """An ignored finding names its code and its reason: `# type: ignore[code]  # why`, `# noqa: code  # why`."""
    pattern = re.compile(r"type:\s*ignore(?P<type>\[[\w, -]+\])?|noqa(?P<noqa>:\s*[A-Z]+\d+(,\s*[A-Z]+\d+)*)?\b", re.I)
    for number, _, comment in source.comments:
        for match in pattern.finditer(comment):
            rest = comment[match.end() :].split("#", 1)[-1].strip(" -") if "#" in comment[match.end() :] else ""
            if not (match["type"] or match["noqa"]):
                yield f"line {number}: {match[0]} without a code"
            elif len(rest) < 8:
                yield f"line {number}: {match[0]} without a reason behind a second #"


Rule = Callable[[Source], Iterator[str]]
RULES: tuple[Rule, ...] = (
    find_long_file,
    find_long_functions,
    find_missing_docstrings,
    find_ambient_reads,
    find_nameless_module,
    find_leftovers,
    find_uncovered,
    find_bare_ignores,
)
RULES_FOR_TESTS: tuple[Rule, ...] = (find_leftovers, find_uncovered, find_bare_ignores)
