"""Photographs that are included in installed packages, at full size."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import UserError
from pipeline.sources.kinds.folder import file_object, read_file
from pipeline.sources.source import Listing, RemoteObject, Reply

# package -> its files. hubble, ihc and retina are not everyday photographs; params.yaml uses them for training only.
_PHOTOGRAPHS = {
    "skimage": (
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/hubble_deep_field.jpg",
        "data/ihc.png",
        "data/motorcycle_left.png",
        "data/motorcycle_right.png",
        "data/retina.jpg",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}


class BuiltinPhotographs:
    """A source of the photographs in scikit-image, scikit-learn and matplotlib; nothing is downloaded."""

    threads = 4
    is_local = True

    def names(self) -> list[str]:
        """Returns the file names, sorted."""
        return sorted(Path(file).name for files in _PHOTOGRAPHS.values() for file in files)

    def listing(self) -> Listing:
        """Lists all photographs."""
        return Listing([file_object(name, self._path(name)) for name in self.names()])

    def read(self, item: RemoteObject, start: int) -> Reply:
        """Reads a photograph from a byte on; see `Source.read`."""
        return read_file(self._path(item.name), item, start)

    def copy(self, name: str, target: Path) -> None:
        """Copies one photograph to ``target``, whose folder must exist."""
        shutil.copyfile(self._path(name), target)

    def _path(self, name: str) -> Path:
        package, file = next(
            (package, file) for package, files in _PHOTOGRAPHS.items() for file in files if Path(file).name == name
        )
        path = _package_folder(package) / file
        if not path.is_file():
            raise UserError(f"{path}: missing from the installed package; install {package} again")
        return path


def _package_folder(package: str) -> Path:
    """Returns the folder of an installed package without importing the package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"fetch.source: builtin: package {package} is not installed; run 'make run' again")
    return Path(spec.submodule_search_locations[0])
