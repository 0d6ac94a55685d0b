"""A contract for import-linter: an app's doors are its own."""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class Doors(Contract):
    """No app imports another app's `api`, `admin` or `tasks`: those face outwards.

    Options:
        apps: the package of all apps.
        doors: names of the modules that no other app may import.
    """

    apps = fields.StringField()
    doors = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at every direct import between two apps."""
        apps = str(self.apps)
        breaches = []
        for importer in sorted(graph.find_descendants(apps)):
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                if self._is_foreign_door(importer.split("."), imported.split(".")):
                    breaches.append(f"{importer} imports {imported}")
        return ContractCheck(kept=not breaches, metadata={"breaches": breaches})

    def _is_foreign_door(self, importer: list[str], imported: list[str]) -> bool:
        if imported[0] != self.apps or len(imported) < 3 or importer[1] == imported[1]:
            return False
        return imported[2] in list(self.doors)  # type: ignore[call-overload]

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each breach."""
        for breach in check.metadata["breaches"]:
            output.print_error(breach)
