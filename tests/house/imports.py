"""The graph of our own imports, hidden ones counted: those inside functions and those under TYPE_CHECKING."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from tests.house.rules import Source


def build_graph(sources: Iterable[Source]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports. A name imported from a package leads to its module of that name."""
    known = {one.module: one for one in sources}
    return {name: set(_read_targets(one, known)) - {name} for name, one in known.items()}


def _read_targets(source: Source, known: Mapping[str, Source]) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = _resolve_base(source, node, known)
            for one in node.names:
                full = f"{base}.{one.name}"
                target = full if full in known else base
                if target in known:
                    yield target


def _resolve_base(source: Source, node: ast.ImportFrom, known: Mapping[str, Source]) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(name.startswith(f"{source.module}.") for name in known)
    parts = source.module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def find_reachable(graph: Mapping[str, set[str]], roots: Iterable[str]) -> set[str]:
    """All modules that load when something below the roots is imported, the packages around each included."""
    ahead = [name for name in graph if any(f"{name}.".startswith(f"{root}.") for root in roots)]
    seen: set[str] = set()
    while ahead:
        name = ahead.pop()
        if name in graph and name not in seen:
            seen.add(name)
            ahead += [*graph[name], name.rpartition(".")[0]]
    return seen


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one import cycle in order, the first again as the last; [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def find_unlayered(modules: Iterable[str], layers: Iterable[str]) -> list[str]:
    """The names of the first two levels that stand in no layer of the contract."""
    listed = {name.strip(" ()") for line in layers for name in line.replace(":", "|").split("|")}
    second = {".".join(name.split(".")[:2]) for name in modules if "." in name}
    return sorted(second - listed)
