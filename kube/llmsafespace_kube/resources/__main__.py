"""Write the CustomResourceDefinitions: `python -m llmsafespace_kube.resources [folder]`."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from llmsafespace_kube.resources.crds import RESOURCES, Resource, definition

FOLDER = Path("deploy/helm/llmsafespace/crds")
_HEADER = "# Made by `python -m llmsafespace_kube.resources` out of resources/types.py and crds.py.\n"


class _Dumper(yaml.SafeDumper):
    """Writes repeated values in full, without YAML anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def text(resource: Resource) -> str:
    """Return the content of the file of one kind."""
    body = yaml.dump(definition(resource), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    return _HEADER + body


def write(folder: Path) -> None:
    """Write one file for each kind, named after its plural."""
    folder.mkdir(parents=True, exist_ok=True)
    for resource in RESOURCES:
        (folder / f"{resource.kind.plural}.yaml").write_text(text(resource))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
