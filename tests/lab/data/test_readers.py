"""CIFAR-10, SVHN, USPS, MNIST: what small files in the true formats hold, and what is none."""

import bz2
import pickle

import numpy as np
import pytest
import torch
from toys import BATCHES, CIFAR, IMAGES, SVHN, TOYS, USPS, N, without_data, write

from dither.errors import DitherError
from dither.lab.data import needs, readers
from dither.lab.data.sets import Data, boxed


@pytest.fixture
def world(tmp_path, monkeypatch):
    without_data(tmp_path, monkeypatch)
    return tmp_path


class Examples(list):
    """Pairs of pixels and label, whose order does not count."""

    def __eq__(self, other):
        return sorted(self) == sorted(other)

    __hash__ = None


def examples(x, y) -> Examples:
    return Examples((one.tobytes(), int(label)) for one, label in zip(x, y, strict=True))


# -------------------------------------------------------------------------------------- contents


def test_cifar_is_read_as_python_2_wrote_it(world):
    write(world / "cache/cifar-10", "cifar-10")
    x_train, y_train, x_test, y_test = readers.load("cifar-10")
    *train, test = CIFAR.values()
    assert examples(x_train, y_train) == [e for part in train for e in examples(*part)]
    assert examples(x_test, y_test) == examples(*test)
    assert x_train.shape == (15, 3, 32, 32)
    image = x_train[0].tobytes()  # 3072 bytes are three planes of 32 rows
    assert x_train[0, 2, 1, 5] == image[2 * 1024 + 32 + 5]


def test_cifar_may_lie_there_unpacked(world, monkeypatch):
    monkeypatch.setenv("DITHER_DATA", str(world))
    folder = world / "cifar-10-batches-py"
    folder.mkdir()
    for name, payload in BATCHES.items():
        (folder / name).write_bytes(payload)
    assert readers.load("cifar-10")[0].shape == (15, 3, 32, 32)
    assert needs.found("cifar-10") == str(world)


@pytest.mark.parametrize("spoil", ["lost", "changed"])
def test_a_spoilt_unpacked_folder_says_which_batch(world, spoil):
    folder = world / "cache/cifar-10/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, payload in BATCHES.items():
        (folder / name).write_bytes(payload)
    bad = folder / "data_batch_4"
    if spoil == "lost":
        bad.unlink()
    else:
        bad.write_bytes(BATCHES["test_batch"])
    message = {
        "lost": r"cifar-10-batches-py lacks data_batch_4: unpack .* there again",
        "changed": r"data_batch_4 is not the file it should be: the md5 .* replace it",
    }
    with pytest.raises(DitherError, match=message[spoil]):
        readers.load("cifar-10")


def test_a_pickle_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    payload = pickle.dumps({b"data": Bomb(), b"labels": []})
    with pytest.raises(DitherError, match=r"no batch of CIFAR-10 \(it asks for io.open.*replace"):
        readers.unpickle(payload)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_may_not_hide_behind_numpys_name():
    payload = b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(U\x011}tR."
    with pytest.raises(DitherError, match=r"asks for numpy.testing\S+runstring"):
        readers.unpickle(payload)


def test_svhn_writes_zero_as_ten(world):
    write(world / "cache/svhn", "svhn")
    x_train, y_train, x_test, y_test = readers.load("svhn")
    assert (y_train.tolist(), y_test.tolist()) == ([0, 1, 9], [2, 0, 3])
    x, _ = SVHN["train_32x32.mat"]
    assert x_train.shape == (N, 3, 32, 32)
    # X[row, column, colour, image], as Matlab holds it
    held = x.transpose(2, 3, 1, 0)
    assert x_train[1, 2, 30, 4] == held[30, 4, 2, 1]
    assert x_test.dtype == np.uint8


def test_usps_has_labels_from_1_and_values_from_minus_1(world):
    write(world / "cache/usps", "usps")
    x_train, y_train, _, y_test = readers.load("usps")
    assert sorted(y_test.tolist()) == [1, 6, 9]
    assert examples(x_train, y_train) == examples(USPS["usps.bz2"][0], [0, 9, 4])


def test_what_a_line_of_libsvm_leaves_out_is_zero():
    x, y = readers.libsvm(bz2.compress(b"3 2:1 256:-1\n"))
    assert y.tolist() == [2]
    assert x.ravel()[[0, 1, 2, 255]].tolist() == [128, 255, 128, 0]


@pytest.mark.parametrize("name", TOYS)
def test_images_keep_their_channels_when_asked(world, name):
    write(world / "cache" / name, name)
    n, n_test, shape = IMAGES[name]
    data = Data(name, standardise=False, flat=False).load()
    assert data.x_train.shape == (n, *shape)
    assert data.x_test.shape == (n_test, *shape)
    flat = Data(name, standardise=False).load()
    assert torch.equal(flat.x_train, data.x_train.flatten(1))
    assert 0 <= data.x_train.min() < data.x_train.max() <= 1
    assert data.classes == 10
    assert not Data(name, subset_seed=None).per_seed
    few = Data(name, train=2, test=1, subset_seed=1, standardise=False).load()
    rows = {tuple(x): y for x, y in zip(flat.x_train.tolist(), flat.y_train.tolist(), strict=True)}
    assert [rows[tuple(x)] for x in few.x_train.tolist()] == few.y_train.tolist()


def test_usps_digits_sit_in_mnists_box(world):
    write(world / "cache/usps", "usps")
    x = Data("usps", standardise=False, flat=False).load().x_train
    assert x[:, :, :4].abs().sum() + x[:, :, 24:].abs().sum() == 0
    assert x[..., :4].abs().sum() + x[..., 24:].abs().sum() == 0
    ones = boxed(torch.ones(1, 1, 16, 16))
    assert ones.sum() == 20 * 20


def test_grey_images_become_three_equal_channels(world):
    write(world / "cache/mnist", "mnist")
    grey = Data("mnist", standardise=False, flat=False).load()
    colour = Data("mnist-rgb", standardise=False, flat=False).load()
    assert colour.x_train.shape == (N, 3, 32, 32)
    for channel in range(3):
        assert torch.equal(colour.x_test[:, channel, 2:30, 2:30], grey.x_test[:, 0])
    assert torch.isclose(colour.x_train.sum(), 3 * grey.x_train.sum())
    assert torch.equal(colour.y_train, grey.y_train)
    assert Data("mnist-rgb").load().x_train.shape == (N, 3072)
    assert needs.found("mnist-rgb") == needs.found("mnist")
