"""The real photographs that packages of the environment already carry, at full size."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage.folder import file_object, read_file
from pipeline.storage.objects import Listing, RemoteObject, Reply

# package -> its files. hubble, ihc and retina are no everyday photographs: params.yaml keeps them for training.
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
    """Photographs of scikit-image, scikit-learn and matplotlib; nothing is downloaded."""

    threads = 4
    is_local = True

    def names(self) -> list[str]:
        return sorted(Path(file).name for files in _PHOTOGRAPHS.values() for file in files)

    def listing(self) -> Listing:
        return Listing([file_object(name, self._path(name)) for name in self.names()])

    def read(self, item: RemoteObject, start: int, stop: int | None) -> Reply:
        return read_file(self._path(item.name), item, start, stop)

    def copy(self, name: str, target: Path) -> None:
        """Copies one photograph to a path whose folder exists."""
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
    """The folder of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"fetch.source: builtin: package {package} is not installed; run 'make run' again")
    return Path(spec.submodule_search_locations[0])
