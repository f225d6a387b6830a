"""A folder of the user's own images, with subfolders."""

from __future__ import annotations

import shutil
from pathlib import Path

from components.data.images import is_image_name
from pipeline.errors import UserError


class Folder:
    """Every file whose suffix is that of an image; hidden files and folders are left alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        if not self.path.is_dir():
            raise UserError(f"fetch.source: {self.path}: there is no such folder; use 'builtin' or a folder of images")
        files = [file.relative_to(self.path) for file in self.path.rglob("*") if file.is_file()]
        names = [
            file.as_posix()
            for file in files
            if is_image_name(file) and not any(part.startswith(".") for part in file.parts)
        ]
        if not names:
            raise UserError(
                f"fetch.source: {self.path}: {len(files)} files, none of them an image (png, jpg, bmp, tif, webp)"
            )
        return sorted(names)

    def copy(self, name: str, target: Path) -> None:
        try:
            shutil.copyfile(self.path / name, target)
        except OSError as error:
            raise UserError(f"{self.path / name}: cannot be copied ({error.strerror})") from error
