"""Stage 1: the images of ``fetch.source`` -> data/raw, with a manifest of SHA-256 sums."""

from __future__ import annotations

import json

from components.data.packs import file_sha256
from pipeline.console import console, track
from pipeline.params import Params
from pipeline.paths import MANIFEST, RAW, replaced_folder
from pipeline.storage import open_source


def fetch(params: Params) -> None:
    """Copies every image of the source and records name, size and SHA-256 in ``manifest.json``."""
    source = open_source(params.fetch.source)
    names = source.names()
    images = []
    with replaced_folder(RAW) as folder:
        for name in track(names, "fetching"):
            target = folder / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source.copy(name, target)
            images.append({"name": name, "bytes": target.stat().st_size, "sha256": file_sha256(target)})
        manifest = {"source": params.fetch.source, "images": images}
        (folder / MANIFEST.name).write_text(json.dumps(manifest, indent=1) + "\n")
    console.print(f"{len(images)} images of '{params.fetch.source}' in {RAW}")
