"""The content of a data set: a checksum that does not depend on the order or the packing of files.

    content = sha256 of the sorted sha256(label byte + pixel bytes, channel first) of all images

A repacked or re-sorted copy of a set has other checksums of its files and the same content. It
takes a second to compute the content, so the result is noted once: next to the copy if that folder
can be written, else in the cache. A note is valid for one path, and one size and time of change of
each file.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dither.lab.data import files

CONTENT = {
    "cifar-10": {
        "train": "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
        "test": "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f",
    },
    "usps": {  # pixels −1 … 1 rounded to 0 … 255, labels 0 … 9
        "train": "e93c5364cd4da866326a0b301f9aeeff2a195a7b7ba0d91e58559845501f1191",
        "test": "80efb4a7716a158b03330f10fc695170f967cc6fbf942274cb59fc0b1e083c5c",
    },
}


def checksum(images: np.ndarray, labels: np.ndarray) -> str:
    """The content of uint8 images [n, c, h, w] and labels [n]."""
    each = sorted(
        hashlib.sha256(bytes([label]) + image.tobytes()).digest()
        for image, label in zip(images, labels, strict=True)
    )
    return hashlib.sha256(b"".join(each)).hexdigest()


def settled(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same examples in a canonical order: sorted by pixels, then shuffled with a fixed seed. So
    copies in different orders give the same subset to the same seed.
    """
    first = np.argsort(labels, kind="stable")  # of two equal images the one with the lower label
    rows = np.ascontiguousarray(images.reshape(len(images), -1)[first])
    order = first[np.argsort(rows.view(f"V{rows.shape[1]}").ravel(), kind="stable")]
    del rows
    order = order[np.random.RandomState(0).permutation(len(order))]
    return images[order], labels[order]


class Copy:
    """A copy of a set, or of one of its splits, at a path: one file, or a folder with its files."""

    def __init__(self, name: str, path: Path, parts: Sequence[Path]) -> None:
        self.name, self.path, self.parts = name, path.resolve(), parts

    def known(self) -> bool:
        """Whether a note says that this copy, unchanged since, holds the set."""
        for note in self._places():
            try:
                held = json.loads(note.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                continue
            if held == self._note(held.get("splits") if isinstance(held, dict) else None):
                return True
        return False

    def holds(self, **splits: tuple[np.ndarray, np.ndarray]) -> bool:
        """Whether each split, (images, labels), has the content of the set; noted if it has."""
        right = CONTENT.get(self.name, {})
        if any(checksum(*split) != right.get(which) for which, split in splits.items()):
            return False
        text = json.dumps(self._note(sorted(splits)), indent=1)
        for note in self._places():
            try:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(text, encoding="utf-8")
            except OSError:
                continue
            break
        return True

    def _note(self, splits: object) -> dict[str, object]:
        stats = [(part.name, part.stat()) for part in self.parts]
        return {
            "set": self.name,
            "splits": splits,
            "path": str(self.path),
            "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "content": [CONTENT[self.name].get(s) for s in splits] if splits else [],  # pyright: ignore
        }

    def _places(self) -> list[Path]:
        """The paths of a note: next to the copy, and in the cache if there is one."""
        here = hashlib.sha256(str(self.path).encode()).hexdigest()[:16]
        beside = self.path.with_name(f".{self.path.name}.content.json")
        cache = files.cache_folder()
        return [beside, *([cache / "content" / f"{here}.json"] if cache.is_absolute() else [])]
