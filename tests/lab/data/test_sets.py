"""Data: the parser against bytes written by hand, sources against checksums, sets against laws."""

import gzip
import hashlib
import math
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from dither.errors import DitherError
from dither.lab.data import files, idx
from dither.lab.data.sets import FREQUENCIES, NAMES, Data

ALARM = 1e-6  # how often a statistical test here may fail by chance

# ---------------------------------------------------------------------------------- idx files


def test_parse_reads_what_the_format_says():
    payload = bytes([0, 0, 0x08, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    array = idx.parse(payload)
    assert array.tolist() == [[1, 2, 3], [4, 5, 255]]
    assert array.dtype == np.uint8
    array[0, 0] = 9  # a copy of one's own
    assert payload[12] == 1


@pytest.mark.parametrize(
    ("code", "pack", "values"),
    [
        (0x09, "b", [-1, 2]),
        (0x0B, "h", [-300, 2]),
        (0x0C, "i", [-70000, 2]),
        (0x0D, "f", [0.5, -2]),
    ],
)
def test_parse_knows_the_other_types_and_their_byte_order(code, pack, values):
    payload = bytes([0, 0, code, 1]) + struct.pack(f">I2{pack}", 2, *values)
    array = idx.parse(payload)
    assert array.tolist() == values
    assert array.dtype.isnative


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "is no idx file: it starts with nothing"),
        (b"\x89PNG....", "is no idx file: it starts with 89 50 4e 47"),
        (bytes([0, 0, 0x07, 1, 0, 0, 0, 0]), "is no idx file"),
        (bytes([0, 0, 0x08, 3, 0, 0, 0, 1]), "is cut off: 8 bytes can't hold the sizes of 3"),
        (bytes([0, 0, 0x08, 1, 0, 0, 0, 4, 1, 2, 3]), r"should be 12 bytes long .* it has 11"),
        (bytes([0, 0, 0x08, 1, 0, 0, 0, 1, 1, 2]), r"should be 9 bytes long .* it has 10"),
    ],
)
def test_parse_refuses_what_is_not_idx(payload, message):
    with pytest.raises(DitherError, match=message):
        idx.parse(payload, "toy.idx")


# ------------------------------------------------------------------------------------ sources

N_TRAIN, N_TEST = 12, 5


def toy(shape: tuple[int, ...], seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 10, shape, dtype=np.uint8)
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()


TOYS = {
    "train-images-idx3-ubyte": toy((N_TRAIN, 28, 28), 0),
    "train-labels-idx1-ubyte": toy((N_TRAIN,), 1),
    "t10k-images-idx3-ubyte": toy((N_TEST, 28, 28), 2),
    "t10k-labels-idx1-ubyte": toy((N_TEST,), 3),
}


def write(folder, *, level: int = 9, **replaced: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, payload in TOYS.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(replaced.get(name, payload), level))


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A machine without data: the set is four toy files, all folders are empty, no mirror."""
    sums = {name: hashlib.sha256(payload).hexdigest() for name, payload in TOYS.items()}
    monkeypatch.setitem(files.SUMS, "fashion-mnist", sums)
    monkeypatch.setattr(files, "PACKAGED", {"fashion-mnist": tmp_path / "packaged"})
    monkeypatch.setitem(files.MIRRORS, "fashion-mnist", ())
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("DITHER_DATA", raising=False)
    return tmp_path


@pytest.fixture
def serve(monkeypatch):
    """serve(folder, …): mirrors of these folders, in this order; → what was asked of them."""
    servers, asked = [], []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    def start(*folders):
        urls = []
        for folder in folders:
            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
            urls.append(f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setitem(files.MIRRORS, "fashion-mnist", tuple(urls))
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def loaded() -> list[np.ndarray]:
    return list(idx.load("fashion-mnist"))


def assert_toys(arrays) -> None:
    for array, payload in zip(arrays, TOYS.values(), strict=True):
        assert array.tobytes() == payload[4 + 4 * payload[3] :]


@pytest.mark.parametrize("place", ["packaged", "cache/fashion-mnist", "mine", "mine/fashion-mnist"])
def test_files_are_found_wherever_they_may_be(world, monkeypatch, place):
    monkeypatch.setenv("DITHER_DATA", str(world / "mine"))
    write(world / place)
    assert_toys(loaded())


def test_own_folder_comes_before_the_package(world, monkeypatch):
    monkeypatch.setenv("DITHER_DATA", str(world / "mine"))
    write(world / "mine")
    write(world / "packaged", **dict.fromkeys(TOYS, b"never read"))
    assert_toys(loaded())


def test_the_content_is_checked_however_it_is_compressed(world):
    write(world / "packaged", level=1)
    name = "t10k-labels-idx1-ubyte"
    (world / "packaged" / f"{name}.gz").unlink()
    (world / "packaged" / name).write_bytes(TOYS[name])
    assert_toys(loaded())


def test_a_wrong_file_is_an_error_never_replaced(world, serve):
    write(world / "good")
    asked = serve(world / "good")
    write(world / "packaged", **{"train-labels-idx1-ubyte": toy((N_TRAIN,), 99)})
    with pytest.raises(DitherError, match=r"train-labels-idx1-ubyte.gz is not the file .* replace"):
        loaded()
    assert not asked


def test_a_damaged_file_is_an_error(world):
    write(world / "packaged")
    path = world / "packaged" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DitherError, match=r"train-images-idx3-ubyte.gz is damaged .* replace it"):
        loaded()


def test_fetched_files_are_kept(world, serve):
    write(world / "mirror")
    asked = serve(world / "mirror")
    assert_toys(loaded())
    assert len(asked) == len(TOYS)
    assert_toys(loaded())
    assert len(asked) == len(TOYS)  # from the cache now


def test_the_next_mirror_serves_what_the_first_lacks_or_spoils(world, serve):
    (world / "empty").mkdir()
    write(world / "wrong", **dict.fromkeys(TOYS, toy((3,), 7)))
    write(world / "good")
    serve(world / "empty", world / "wrong", world / "good")
    assert_toys(loaded())


def test_no_wrong_file_reaches_the_cache(world, serve):
    write(world / "wrong", **dict.fromkeys(TOYS, toy((3,), 7)))
    serve(world / "wrong")
    with pytest.raises(DitherError, match=r"can't be fetched .* is not the file it should be"):
        loaded()
    assert not [path for path in (world / "cache").rglob("*") if path.is_file()]


def test_missing_files_say_where_they_belong(world):
    with pytest.raises(
        DitherError,
        match=r"packaged, .*cache.* put train-images-idx3-ubyte.gz, .* into one of these",
    ):
        loaded()


def test_files_are_decoded_once(world, monkeypatch):
    write(world / "packaged")
    first = loaded()
    monkeypatch.setattr(files, "read", None)
    assert all(a is b for a, b in zip(first, loaded(), strict=True))


def test_images_and_labels_must_match(world, monkeypatch):
    labels = toy((N_TRAIN - 1,), 1)
    sums = files.SUMS["fashion-mnist"] | {
        "train-labels-idx1-ubyte": hashlib.sha256(labels).hexdigest()
    }
    monkeypatch.setitem(files.SUMS, "fashion-mnist", sums)
    write(world / "packaged", **{"train-labels-idx1-ubyte": labels})
    with pytest.raises(DitherError, match="12 training images, but 11 labels"):
        loaded()


# --------------------------------------------------------------------------------------- sets


@pytest.fixture(scope="module")
def fashion():
    if files.locate("fashion-mnist", "train-images-idx3-ubyte") is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    return Data("fashion-mnist").load()


def test_fashion_mnist_is_standardised_by_one_mean_and_one_std(fashion):
    assert fashion.x_train.shape == (60_000, 784)
    assert fashion.x_test.shape == (10_000, 784)
    assert fashion.y_train.bincount().tolist() == [6000] * 10
    x = fashion.x_train.double()
    assert abs(x.mean()) < 1e-5
    assert abs(x.std(unbiased=False) - 1) < 1e-5
    raw = Data("fashion-mnist", standardise=False).load()
    pixels = raw.x_train.double()
    expected = (raw.x_test.double() - pixels.mean()) / pixels.std(unbiased=False)
    torch.testing.assert_close(fashion.x_test.double(), expected, atol=1e-5, rtol=1e-5)


def test_images_keep_their_shape_and_range_when_asked(world):
    write(world / "packaged")
    data = Data("fashion-mnist", standardise=False, flat=False).load()
    assert data.x_train.shape == (N_TRAIN, 1, 28, 28)
    pixels = np.frombuffer(TOYS["train-images-idx3-ubyte"], np.uint8, offset=16)
    torch.testing.assert_close(data.x_train.flatten(), torch.tensor(pixels / 255).float())


def test_subsets_follow_their_seed(world):
    write(world / "packaged")
    whole = Data("fashion-mnist", standardise=False).load()
    fixed, free = (Data("fashion-mnist", 6, 3, subset_seed=s, standardise=False) for s in (4, None))
    a, b, c, d = fixed.load(0), fixed.load(1), free.load(0), free.load(1)
    assert torch.equal(a.x_train, b.x_train)
    assert not torch.equal(c.x_train, d.x_train)
    assert (fixed.per_seed, free.per_seed) == (False, True)
    assert a.x_test.shape == (3, 784)
    pairs = {
        (tuple(x), y) for x, y in zip(whole.x_train.tolist(), whole.y_train.tolist(), strict=True)
    }
    chosen = {(tuple(x), y) for x, y in zip(a.x_train.tolist(), a.y_train.tolist(), strict=True)}
    assert len(chosen) == 6
    assert chosen < pairs  # images still carry their own labels


def test_corruption_is_levis_equation_8(world):
    write(world / "packaged")
    clean, s = Data("fashion-mnist").load(3), 0.4
    data = Data("fashion-mnist", corrupt=s)
    noisy, again = data.load(3), data.load(3)
    delta = (noisy.x_train - math.sqrt(1 - s**2) * clean.x_train) / s
    n = delta.numel()
    z = torch.tensor([delta.mean() * n**0.5, (delta.square().mean() - 1) * (n / 2) ** 0.5])
    assert z.abs().max() < two_sided(ALARM / 2)
    assert torch.equal(noisy.x_train, again.x_train)
    assert torch.equal(noisy.x_test, clean.x_test)


def two_sided(alarm: float) -> float:
    return -torch.special.ndtri(torch.tensor(alarm / 2, dtype=torch.float64)).item()


def test_sinusoids_have_amplitude_one_at_their_frequencies_and_nothing_else():
    data = Data("sinusoids").load(5)
    assert data.x_train.shape == data.y_train.shape == (200, 1)
    torch.testing.assert_close(data.x_train[:, 0], torch.arange(200) / 200)
    amplitude = 2 * torch.fft.rfft(data.y_train[:, 0].double(), norm="forward").abs()
    expected = torch.zeros(101, dtype=torch.float64)
    expected[list(FREQUENCIES)] = 1
    torch.testing.assert_close(amplitude, expected, atol=1e-6, rtol=0)
    assert FREQUENCIES == (5, 10, 15, 20, 25, 30, 35, 40, 45, 50)
    assert not torch.equal(data.y_train, Data("sinusoids").load(6).y_train)


def test_planted_targets_come_from_the_first_features():
    data = Data("planted", features=10, planted=2).load(1)
    assert data.x_train.shape == (40, 10)
    beta = torch.linalg.lstsq(data.x_train.double(), data.y_train.double()).solution[:, 0]
    torch.testing.assert_close(beta[:2].abs(), torch.ones(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(beta[2:], torch.zeros(8).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x_test @ beta.float(), data.y_test[:, 0], atol=1e-5, rtol=0)


def test_planted_noise_has_the_std_that_was_asked_for():
    clean, noisy = (Data("planted", test=20_000, noise=s).load(2) for s in (0.0, 0.5))
    residual = noisy.y_test - clean.y_test
    n = residual.numel()
    z = (residual.square().mean() / 0.25 - 1) * (n / 2) ** 0.5
    assert abs(z) < two_sided(ALARM)


@pytest.mark.parametrize("name", ["mnist-5000", "boston"])
def test_sets_in_one_piece_are_split_without_overlap(name):
    data = Data(name, standardise=False).load()
    rows = torch.cat([data.x_train, data.x_test])
    assert len(rows) == {"mnist-5000": 5000, "boston": 506}[name]
    assert len(data.x_test) == round(len(rows) / 5)
    held_out = {tuple(x) for x in data.x_test.tolist()}
    assert not held_out & {tuple(x) for x in data.x_train.tolist()}


def test_boston_is_standardised_per_column():
    data = Data("boston").load()
    for values in (data.x_train, data.y_train):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        std = values.std(0, unbiased=False)
        torch.testing.assert_close(std, torch.ones(values.shape[1]), atol=1e-5, rtol=0)


HERE = [name for name in NAMES if name not in (*files.SUMS, "mnist-rgb")]


@pytest.mark.parametrize("name", ["fashion-mnist", *HERE])
def test_loading_leaves_torchs_generator_alone(name, world):
    write(world / "packaged")
    before = torch.get_rng_state()
    Data(name, subset_seed=None, corrupt=0.1).load(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "emnist"}, "no set is called 'emnist'; there are fashion-mnist, mnist, usps"),
        ({"name": "planted", "train": 0}, "train = 0 leaves no example"),
        ({"name": "planted", "planted": 11}, "planted = 11 of 10 features"),
        ({"name": "fashion-mnist", "corrupt": 1.5}, r"corrupt = 1.5 is not in \[0, 1\]"),
        ({"name": "sinusoids", "test": 7}, "leave test out"),
    ],
)
def test_bad_specs_say_what_is_wrong(fields, message):
    with pytest.raises(DitherError, match=message):
        Data(**fields)


def test_asking_for_more_than_there_is_says_so(world):
    write(world / "packaged")
    with pytest.raises(DitherError, match="train = 13 examples were asked for, it has 12"):
        Data("fashion-mnist", train=13).load()
