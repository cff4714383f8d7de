"""A copy counts by what it holds, in whatever order and packing; anything else is refused."""

import bz2
import os
import pickle
import random

import numpy as np
import pytest
from toys import BATCHES, CIFAR, TOYS, archive, libsvm_text, without_data, write

from dither.errors import DitherError
from dither.lab.data import content, readers
from dither.lab.data.sets import Data


@pytest.fixture
def world(tmp_path, monkeypatch):
    without_data(tmp_path, monkeypatch)
    return tmp_path


def repacked(lot: int, spoil: bool = False) -> dict[str, bytes]:
    """The toys' batches, the training examples dealt out anew, pickled by today's Python."""
    deal = random.Random(lot)
    *train, test = CIFAR.values()
    pairs = [pair for x, y in train for pair in zip(x.copy(), y, strict=True)]
    if spoil:
        pairs[0][0][17] ^= 1
    deal.shuffle(pairs)
    cut = deal.randrange(1, 4)  # batches need not be of one size
    parts = [pairs[:cut], pairs[cut:6], pairs[6:9], pairs[9:12], pairs[12:]]
    batches = [(np.stack([x for x, _ in part]), [y for _, y in part]) for part in parts]
    return {
        name: pickle.dumps({b"data": x, b"labels": y}, protocol=4)
        for name, (x, y) in zip(CIFAR, [*batches, test], strict=True)
    }


def lay(world, batches: dict[str, bytes], packed: bool):
    """As an archive or unpacked, in the cache."""
    folder = world / "cache/cifar-10"
    folder.mkdir(parents=True, exist_ok=True)
    if packed:
        (folder / readers.TAR).write_bytes(archive(batches))
        return folder / readers.TAR
    (folder / "cifar-10-batches-py").mkdir(exist_ok=True)
    for name, payload in batches.items():
        (folder / "cifar-10-batches-py" / name).write_bytes(payload)
    return folder / "cifar-10-batches-py"


def read_anew():
    readers._cifar.cache_clear()
    readers._usps.cache_clear()
    return readers.load("cifar-10")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("lot", range(3))
def test_a_repacked_copy_is_read_and_gives_what_the_published_one_gives(world, packed, lot):
    lay(world, BATCHES, packed)
    expected = read_anew()
    subset = Data("cifar-10", train=4, test=2).load().x_train
    lay(world, repacked(lot), packed)
    for mine, theirs in zip(read_anew(), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert Data("cifar-10", train=4, test=2).load().x_train.equal(subset)


@pytest.mark.parametrize("packed", [True, False])
def test_one_changed_pixel_is_refused(world, packed):
    lay(world, repacked(0, spoil=True), packed)
    with pytest.raises(DitherError, match=r"is not the file it should be: the md5 .* replace it"):
        read_anew()


@pytest.mark.parametrize("packed", [True, False])
def test_the_content_is_computed_once_and_again_after_a_change(world, monkeypatch, packed):
    path, counted = lay(world, repacked(1), packed), []
    real = content.checksum
    monkeypatch.setattr(content, "checksum", lambda *a: counted.append(1) or real(*a))
    read_anew()
    assert len(counted) == 2  # both splits
    read_anew()
    assert len(counted) == 2
    changed = path if packed else path / "data_batch_2"
    os.utime(changed, ns=(1, 1))
    read_anew()
    assert len(counted) == 4
    lay(world, repacked(1, spoil=True), packed)
    with pytest.raises(DitherError, match="is not the file it should be"):
        read_anew()


@pytest.mark.parametrize("damage", ["", "[]", "null", "{", '{"splits": ["train"]}'])
def test_a_damaged_note_counts_for_nothing(world, damage):
    path = lay(world, repacked(1, spoil=True), packed=False)
    path.with_name(f".{path.name}.content.json").write_text(damage)
    with pytest.raises(DitherError, match="is not the file it should be"):
        read_anew()


def test_where_the_folder_cannot_be_written_the_note_is_in_the_cache(world, monkeypatch):
    path, counted = lay(world, repacked(2), packed=False), []
    path.with_name(f".{path.name}.content.json").mkdir()  # nothing can be written there
    read_anew()
    assert list((world / "cache/content").glob("*.json"))
    monkeypatch.setattr(content, "checksum", lambda *a: counted.append(1))
    read_anew()
    assert not counted


def test_usps_counts_by_its_pixels_too(world):
    write(world / "cache/usps", "usps")
    readers._usps.cache_clear()
    expected = readers.load("usps")
    for file, payload in TOYS["usps"].items():
        lines = bz2.decompress(payload).decode().splitlines()
        (world / "cache/usps" / file).write_bytes(
            bz2.compress("\n".join(line.replace(".000000", "") for line in lines[::-1]).encode())
        )
    readers._usps.cache_clear()
    for mine, theirs in zip(readers.load("usps"), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    x, y = np.zeros((3, 16, 16), np.uint8), [1, 2, 3]
    (world / "cache/usps/usps.bz2").write_bytes(libsvm_text(x, y))
    readers._usps.cache_clear()
    with pytest.raises(DitherError, match=r"usps.bz2 is not the file it should be"):
        readers.load("usps")
