"""Files made to harm: each ends in one sentence, within bounds that are said, and runs nothing."""

import bz2
import gc
import gzip
import io
import pickle
import socket
import struct
import tarfile
import threading
import time

import numpy as np
import pytest
from toys import BATCHES, pixels, python2_batch, without_data, write

from dither.errors import DitherError
from dither.lab.data import files, idx, pickled, readers

MANY = struct.pack("<I", 2**32 - 1)
BATCH = b"\x80\x02}(U\x04data%sU\x06labels](K\x01eu."  # data is to be put in
ARRAY = b"cnumpy\n_reconstruct\n)R(K\x01%scnumpy\ndtype\n(U\x02%stR\x89%stb"


def array(shape: bytes = b"M\x00\x0c\x85", kind: bytes = b"u1", raw: bytes = b"U\x01a") -> bytes:
    return BATCH % (ARRAY % (shape, kind, raw))


def doubling(end: bytes) -> bytes:
    """A tuple of 2⁶⁰ leaves in 300 bytes."""
    return b"\x80\x02}N" + b"\x85q\x00h\x00\x86" * 60 + end


ONE = python2_batch(pixels(1, 3072), [1])
LABEL = b"](\x8a\x09" + b"\x7f" * 9  # of nine bytes

PICKLES = {
    "a memo of 2³² entries": (b"\x80\x02Nr" + MANY + b".", "no batch"),
    "a text of 2⁶³ bytes": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fab.", "no batch"),
    "a frame of 2⁶² bytes": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x3fN.", "no batch"),
    "a key that takes for ever": (doubling(b"Ns."), "a key is no word"),
    "keys that take for ever": (b"\x80\x02}(N" + doubling(b"")[4:] + b"Nu.", "a key is no word"),
    "a giant array": (array(b"J\xff\xff\xff\x7f" * 2 + b"\x86"), "no batch"),
    "255 dimensions": (array(b"(" + b"K\x01" * 255 + b"t"), "no batch"),
    "a shape of its own": (array(b"U\x02ab"), "not of whole numbers"),
    "an array of objects": (array(kind=b"O8"), "not of whole numbers"),
    "an array of floats": (array(kind=b"f8"), "not of whole numbers"),
    "a state for a function": (b"\x80\x02cnumpy\n_reconstruct\n}U\x01aK\x01sb.", "no batch"),
    "a state for a list": (b"\x80\x02]}b.", "no batch"),
    "what is no operation": (b"\x80\x02\xf3.", r"it uses the operation b'\xf3'"),
    "objects": (b"\x80\x02)\x81.", "it uses the operation"),
    "a saved name": (b"\x80\x02\x82\x01.", "it uses the operation"),
    "steps without end": (b"\x80\x04" + b"]" * 300_000 + b".", "more than 200000 steps"),
    "no end": (ONE[:-40], "no batch"),
    "a label like no other": (ONE.replace(b"](J\x01\0\0\0", LABEL), "labels are object"),
}  # fmt: skip


@pytest.mark.parametrize(("payload", "said"), PICKLES.values(), ids=PICKLES)
def test_a_pickle_is_refused_in_a_sentence(payload, said):
    with pytest.raises(DitherError, match="toy") as refused:
        readers.unpickle(payload, "toy")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_class_of_numpys_sees_a_pickle():
    assert pickled.load(b"\x80\x02cnumpy\nndarray\n.") is None


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("labels", [[0, 9], np.array([0, 9]), np.array([0, 9], dtype=">u2")])
def test_a_repacked_batch_is_read(protocol, labels):
    x = np.asfortranarray(pixels(2, 3072))
    payload = pickle.dumps({b"data": x, b"labels": labels, b"more": [None, 1.5, "word"]}, protocol)
    found, y = readers.unpickle(payload)
    assert np.array_equal(found.reshape(2, 3072), x)
    assert y.tolist() == [0, 9]


IDX = {
    "255 dimensions": b"\0\0\x08\xff" + b"\0\0\0\x01" * 255 + b"a",
    "a giant empty shape": b"\0\0\x08\x03" + b"\0" * 4 + b"\xff" * 8,
    "a giant shape": b"\0\0\x08\x03" + b"\xff" * 12 + b"a",
}


@pytest.mark.parametrize("payload", IDX.values(), ids=IDX)
def test_an_idx_file_is_refused(payload):
    with pytest.raises(DitherError, match=r"255 dim|is empty|should be \d+ bytes"):
        idx.parse(payload, "toy")


TEXTS = {
    "an index of 1e20": b"1 100000000000000000000:0.5\n",
    "a label of a thousand digits": b"1" * 5000 + b" 1:1\n",
    "lines without end": b"1 1:1\n" * 30_000,
    "one long line": b"1 " + b"1:1 " * 10_000 + b"\n",
    "no features": b"1\n",
    "not a number": b"1 1:nan\n",
    "no text": b"\xff\xfe\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_libsvm_file_is_refused(text):
    with pytest.raises(DitherError, match=r"toy: values in|toy is no file of USPS .* replace it"):
        readers.libsvm(bz2.compress(text), "toy")


def tar_of(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    return buffer.getvalue()


def sparse() -> bytes:
    """An archive whose file is said to hold 2⁶⁰ zeros."""
    member = tarfile.TarInfo("data_batch_1")
    names = ("major", "minor", "name", "size", "realsize", "map", "numblocks")
    values = ("0", "1", member.name, str(2**60), str(2**60), "0,0", "1")
    member.pax_headers = {f"GNU.sparse.{n}": v for n, v in zip(names, values, strict=True)}
    return tar_of(member)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (tar_of(*(tarfile.TarInfo(f"f{i}") for i in range(200))), "more than 100 files"),
        (sparse(), "data_batch_1"),
        (gzip.compress(b"") * 20_000, "more than 10000 parts"),
    ],
    ids=["many files", "a sparse file", "many parts"],
)
def test_an_archive_is_refused(tmp_path, payload, said):
    path = tmp_path / "cifar.tar"
    path.write_bytes(payload)
    with pytest.raises(DitherError, match=rf"no archive of CIFAR-10 .*{said}"):
        list(readers._archived(path, None))


def test_a_file_of_the_wrong_size_is_not_loaded(tmp_path, monkeypatch):
    without_data(tmp_path, monkeypatch)
    monkeypatch.setattr(files, "LARGEST", 1000)
    for name in ("svhn", "cifar-10"):
        write(tmp_path / "cache" / name, name)
        with pytest.raises(DitherError, match=r"bytes, more than 1000; replace it or delete it"):
            readers.load(name)


def test_a_matlab_file_is_not_parsed_before_its_checksum(tmp_path, monkeypatch):
    without_data(tmp_path, monkeypatch)
    write(tmp_path / "cache/svhn", "svhn", **{"train_32x32.mat": b"MATLAB 5.0"})
    monkeypatch.setattr(readers, "mat", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(DitherError, match="is not the file it should be"):
        readers.load("svhn")


# --------------------------------------------------------------------------------------- mirrors


@pytest.fixture
def mirror():
    """mirror(answer) → the address of a server that sends the pieces of this iterable."""
    servers, before, over = [], set(threading.enumerate()), threading.Event()

    def start(pieces):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve():
            try:
                connection, _ = server.accept()
                with connection:
                    connection.recv(10_000)
                    for piece in pieces:
                        if over.is_set():
                            break
                        connection.sendall(piece)
            except OSError:
                pass  # the other side has enough

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/file"

    yield start
    over.set()
    for server in servers:
        server.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    gc.collect()  # here, where a socket that was cut off may be unclosed


cut_off = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def slowly(head, piece):
    yield head
    while True:
        time.sleep(0.05)
        yield piece


OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "too many bytes": (slowly(OK + b"\r\n", bytes(300_000)), "more than 1000000 bytes"),
    "a byte at a time": (slowly(OK + b"\r\n", b"a"), "longer than 0.5 s"),
    "a head at a time": (slowly(OK, b"X: a\r\n"), "longer than 0.5 s"),
}


@pytest.mark.parametrize(("pieces", "said"), ENDLESS.values(), ids=ENDLESS)
@cut_off
def test_a_mirror_without_end_is_given_up(mirror, tmp_path, monkeypatch, pieces, said):
    monkeypatch.setattr(files, "LARGEST", 1_000_000)
    monkeypatch.setattr(files, "LONGEST", 5 if "bytes" in said else 0.5)
    with pytest.raises(OSError, match=said):
        files.download(mirror(pieces), tmp_path / "file")


@cut_off
def test_a_mirror_that_packs_a_bomb_is_given_up(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 1_000_000)
    packed = gzip.compress(bytes(30_000_000))
    head = f"Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    with pytest.raises(OSError, match="more than 1000000 bytes"):
        files.download(mirror([OK + head + packed]), tmp_path / "file")


def test_every_batch_of_the_toys_is_read():
    for payload in BATCHES.values():
        assert readers.unpickle(payload)[0].shape == (3, 3, 32, 32)
