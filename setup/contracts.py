"""An import-linter contract type: forbidden imports between modules of which some may not be written yet."""

from __future__ import annotations

from typing import Any

from grimp import ImportGraph
from importlinter import ContractCheck, fields
from importlinter.contracts.forbidden import ForbiddenContract


class PresentContract(ForbiddenContract):
    """As `forbidden`, but a module of ours that does not exist is passed over instead of being an error.

    That every module which does exist stands in the layers is checked by tests/house.
    """

    # The linter reads fields from the class's own namespace, so the inherited ones are named again. Each is a field
    # in the class and holds what the field parsed in an instance, which the type system can't say.
    source_modules: Any = fields.ListField(subfield=fields.ModuleExpressionField())
    forbidden_modules: Any = fields.ListField(subfield=fields.ModuleExpressionField())
    ignore_imports = ForbiddenContract.ignore_imports
    allow_indirect_imports = ForbiddenContract.allow_indirect_imports
    unmatched_ignore_imports_alerting = ForbiddenContract.unmatched_ignore_imports_alerting
    as_packages = ForbiddenContract.as_packages

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Checks what is present."""
        roots = self.session_options["root_packages"]
        written = graph.modules
        self.source_modules = [one for one in self.source_modules if one.expression in written]
        self.forbidden_modules = [
            one
            for one in self.forbidden_modules
            if one.expression in written or one.expression.partition(".")[0] not in roots
        ]
        return super().check(graph, verbose)
