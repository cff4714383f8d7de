"""Files that lie: damaged, cut, of another kind, made to harm. One case is a kind and a seed.

Each kind is a function (home, lots) → outcome, "right" or "sentence"; any other end is an
AssertionError: a foreign error, a wrong number, too long, too much memory.
"""

import bz2
import gzip
import json
import os
import pickle
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import world
from toys import BATCHES, MNIST, USPS, archive, idx_file, libsvm_text, matlab, pixels
from world import Call, results, verdicts

from dither.errors import DitherError
from dither.lab.data import files, idx, readers
from dither.lab.page import picture, report

Lots = random.Random
SECONDS, BYTES = 20.0, 1_500_000_000  # for one file of a few kB


def damaged(payload: bytes, lots: Lots) -> bytes:
    """Some bytes, spoilt in one of many ways."""
    changed, n = bytearray(payload), len(payload)
    way = lots.randrange(9)
    if way == 0:
        return payload[: lots.randrange(n + 1)]
    if way == 1:
        return b""
    if way == 2:
        return lots.randbytes(lots.randrange(1, 2000))
    if way == 3:  # numbers become large, or negative
        for _ in range(lots.randint(1, 3)):
            at = lots.randrange(max(n - 8, 1))
            changed[at : at + 4] = struct.pack("<I", lots.choice((2**32 - 1, 2**31, 2**31 - 1, 0)))
        return bytes(changed)
    if way == 4:
        at = lots.randrange(n)
        return payload[:at] + payload[at:] * lots.randint(2, 50)
    if way == 5:
        at = lots.randrange(n)
        return payload[:at] + lots.randbytes(lots.randint(1, 30)) + payload[at:]
    for _ in range(lots.choice((1, 1, 1, 4, 50))):  # bits
        bit = lots.randrange(8 * n)
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def limited(act: Callable[[], object]) -> str:
    """Whether an act in a child gives an answer or a DitherError, within seconds and bytes."""
    read, write = os.pipe()
    begun = time.monotonic()
    if (pid := os.fork()) == 0:
        os.close(read)
        said = "a foreign exit"
        try:
            world.memory(BYTES)
            seconds = int(SECONDS) * 2
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            act()
            said = "right"
        except DitherError as error:
            said = "sentence" if "\n" not in str(error) else f"lines: {error}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, said.encode("utf-8", "replace")[:2000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    _, status, used = os.wait4(pid, 0)
    assert said in ("right", "sentence"), said or f"it died: {os.waitstatus_to_exitcode(status)}"
    seconds = used.ru_utime + used.ru_stime
    assert seconds < SECONDS, f"{seconds:.1f} s, {time.monotonic() - begun:.1f} by the clock"
    return said


def images(x: np.ndarray, y: np.ndarray) -> None:
    """Raises unless these are images and their labels."""
    assert x.dtype == np.uint8, x.dtype
    assert len(x) == len(y)
    assert not len(y) or 0 <= y.min() <= y.max() <= 9


def batch(home: Path, lots: Lots) -> str:
    """A pickle."""
    payload = lots.choice(list(BATCHES.values()))
    if lots.random() < 0.5:
        held = {b"data": pixels(2, 3072), b"labels": lots.choice(([1, 2], np.array([1, 2])))}
        payload = pickle.dumps(held, lots.choice((2, 3, 4, 5)))
    if lots.random() < 0.3:  # any operations in any order
        codes = [code for code in vars(pickle).values() if isinstance(code, bytes)]
        mixed = b"".join(lots.choice(codes) + lots.randbytes(lots.choice((0, 0, 1, 4)))
                         for _ in range(lots.randint(1, 60)))  # fmt: skip
        payload = payload[:-1] + mixed + b"."
    spoilt = damaged(payload, lots)
    return limited(lambda: images(*readers.unpickle(spoilt)))


def digits(home: Path, lots: Lots) -> str:
    """A file of USPS."""
    payload = libsvm_text(*lots.choice(list(USPS.values())))
    if lots.random() < 0.7:
        spoilt = bz2.compress(damaged(bz2.decompress(payload), lots))
    else:
        spoilt = damaged(payload, lots)
    return limited(lambda: images(*readers.libsvm(spoilt)))


def idx_files(home: Path, lots: Lots) -> str:
    """An idx file, gzipped or not, whose checksum is right."""
    payload = damaged(idx_file(lots.choice(list(MNIST.values()))), lots)
    if lots.random() < 0.3:
        packed = damaged(gzip.compress(payload), lots)
        path = home / "train-images-idx3-ubyte.gz"
        path.write_bytes(packed)
        return limited(lambda: files.read(path, "train-images-idx3-ubyte", "0" * 64))
    return limited(lambda: idx.parse(payload))


def archives(home: Path, lots: Lots) -> str:
    """An archive of CIFAR-10."""
    payload = archive(BATCHES)
    spoilt = gzip.compress(damaged(gzip.decompress(payload), lots), 1)
    path = home / readers.TAR
    path.write_bytes(spoilt if lots.random() < 0.7 else damaged(payload, lots))
    return limited(
        lambda: [images(*readers.unpickle(p)) for _, p, _ in readers._archived(path, None)]
    )


def mats(home: Path, lots: Lots) -> str:
    """A file of SVHN: refused by its checksum before it is parsed."""
    path = home / "train_32x32.mat"
    path.write_bytes(damaged(matlab(pixels(2, 3, 32, 32), [1, 2]), lots))
    said = limited(lambda: readers._svhn(path, "0" * 32))
    assert said == "sentence"
    return said


ORIGINAL: dict[str, object] = {}
FOREIGN = [
    b"[]", b"null", b"{}", b"3", b'"a"', b"[" * 50_000, b"\xff\xfe\x00", b"[[]]", b'{"a": [{}]}',
    b'{"format": 1}', b'{"format": 1, "seconds": "x", "machine": 3}', b'{"format": 1e999}',
    b'{"format": 1, "seconds": NaN, "commit": []}', b'{"format": 7}', b"NaN", b"PAR1" * 9,
    b"1" * 5000, b'[{"id": 3}]', b'[{"id": "T1", "claim": "c", "holds": 1, "numbers": {}}]',
]  # fmt: skip


def folder(home: Path, lots: Lots) -> str:
    """One damaged file in a folder of results: the other figure is there, and the end is told."""
    kept, out = home.parent / "kept", home / "out"
    if not kept.exists():
        assert Call(home, "reproduce", "toy2024", "--scale", "smoke", "--jobs", "1", "--out",
                    str(kept)).end().code == 0  # fmt: skip
    shutil.copytree(kept, out)
    before, rows = verdicts(out), results(out)
    paths = [path for path in sorted(out.rglob("*")) if path.is_file()]
    victim = lots.choice(paths)
    way = lots.randrange(8)
    if way == 0:
        victim.unlink()
        victim.mkdir()
        if lots.random() < 0.5:
            (victim / "more").write_text("more")
    elif way == 1:
        victim.chmod(0)
    elif way == 2:
        victim.write_bytes(lots.choice(FOREIGN))
    elif way == 3:
        other = lots.choice(paths)
        victim.write_bytes(other.read_bytes())
    elif way == 4:
        victim.unlink()
    else:
        victim.write_bytes(damaged(victim.read_bytes(), lots))
    if (sums := victim.with_name("sha256.json")).is_file() and lots.random() < 0.4:
        sums.unlink()  # as an earlier version left it
    words = lots.choice((("reproduce", "toy2024", "--scale", "smoke", "--jobs", "1"), ("report",)))
    ended = Call(home, *words, "--out", str(out), inside=world.unprivileged).end()
    assert not ended.foreign, f"{victim}: {ended.foreign}"
    assert ended.code in (0, 1), (victim, ended)
    assert ended.seconds < 60, ended.seconds
    if ended.code == 1:
        assert str(out) in ended.out + ended.err, f"{victim}: no file is named: {ended}"
    now = verdicts(out)
    if words[0] == "reproduce":
        if ended.code == 0:
            changed = {key for key, row in results(out).items() if rows[key] != row}
            unsealed = not victim.with_name("sha256.json").exists()
            assert not changed or unsealed, f"{victim}: changed in silence"
            assert now == before or unsealed, f"{victim}: {now}"
        assert any(now.get(figure) == before[figure] for figure in before), f"{victim}: both lost"
    return "sentence" if ended.code else "right"


STOPS = (
    "raise SystemExit(0)", "import sys; sys.exit()", "1 / 0", "raise MemoryError", "assert 0",
    "raise SystemExit('a\\nb')", "import nothing_of_this_name",
)  # fmt: skip
COMPARE = """import torch
import dither
from torch import nn

x, y = torch.randn(40, 3), torch.randint(2, (40,))
data = x[:20], y[:20], x[20:], y[20:]
methods = {"none": None, "noise": dither.Additive(0.1)}
settings = {"seeds": 2, "epochs": 1}


def make_model():
    return nn.Linear(3, 2)
"""


def compared(home: Path, lots: Lots) -> str:
    """A file for `dither compare` that is no Python, lacks a name, raises, or ends the process."""
    lines = COMPARE.splitlines(keepends=True)
    at, way = lots.randrange(len(lines)), lots.randrange(6)
    stop = lots.choice(STOPS)
    source = {
        0: COMPARE[: lots.randrange(len(COMPARE))].encode(),
        1: "".join(lines[:at] + lines[at + 1 :]).encode(),
        2: COMPARE.encode().replace(b"dither", bytes([lots.randrange(128, 256)]), 1),
        3: COMPARE.encode()[: lots.randrange(200)] + lots.randbytes(30),
        4: f"{COMPARE}\n{stop}\n".encode(),
        5: b"(" * lots.choice((50, 5000)),
    }[way]
    path = home / "problem.py"
    path.write_bytes(source)
    ended = Call(home, "compare", str(path), inside=lambda: world.memory(BYTES)).end()
    assert not ended.foreign, f"{source[-60:]!r}: {ended.foreign}"
    assert ended.code in (0, 1), (source[-60:], ended)
    return "sentence" if ended.code else "right"


EVIL = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "javascript:alert(1)",
    "</style><script>alert(1)</script>", "' onload='alert(1)", "{{ 7*7 }}", "{% raw %}", "&#60;b",
    "\x00\x1b[31m", "\u202e", "𝔘" * 300, "]]>", "<!--", "`<b>`", "../../x", "a" * 20_000, "\udc80",
]  # fmt: skip
SVGS = [
    '<svg width="9pt"><script>alert(1)</script></svg>', '<svg onload="alert(1)"><g/></svg>',
    '<svg><a href="javascript:alert(1)"><text>x</text></a></svg>', "<svg><foreignObject>",
    '<svg><image href="http://example.org/x.png"/></svg>', '<svg><use href="data:text/html,x"/>',
    '<svg><g style="}&lt;/style>&lt;script>alert(1)&lt;/script>"/></svg>', "<svg", "", "<svg>",
    '<svg><style><![CDATA[</style><script>alert(1)</script>]]></style></svg>', "<svg></svg><p>",
    '<svg><g style="background:url(http://example.org)"/></svg>', "<svg><g/onclick=alert(1)></svg>",
    '<svg><set attributeName="href" to="javascript:alert(1)"/></svg>', "<svg><title><p></svg>",
    '<svg width="1..2pt"><g/></svg>', '<svg><g style="&#64;import url(x)"/></svg>', "no picture",
    '<svg aria-label="><script>alert(1)</script>"></svg>', "<svg><g id='x' ONCLICK='a()'/></svg>",
    '<svg><path d="M 0 0" ONload="alert(1)"/></svg>', '<svg><g xlink:href="JaVaScript:a()"/></svg>',
]  # fmt: skip


class Scripts(HTMLParser):
    """What of a page could run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "foreignobject", "base", "form", "set"):
            self.found.append(tag)
        for name, value in attrs:
            given = (value or "").strip().lower()
            inside = given.startswith(("#", "data:image/", "data:,"))
            if name.startswith("on") or (name.endswith(("href", "src")) and not inside):
                self.found.append(f"{tag} {name}={given[:60]}")
            if "url(" in given.replace("url(#", ""):
                self.found.append(f"{tag} {name}={given[:60]}")


def labels(home: Path, lots: Lots) -> str:
    """Words and pictures from elsewhere, in the page: nothing of them runs or loads anything."""
    where = home / "out/figures/toy2024/fig1"
    where.mkdir(parents=True)

    def evil() -> str:
        return lots.choice(EVIL)

    about = {
        "name": "toy2024/fig1", "title": evil(), "caption": evil(), "scale": "smoke", "seeds": [0],
        "left out": [], "runs": 1, "problem": lots.choice(("", evil())), "missing": {"b": evil()},
        "failures": {"a": evil()}, "earlier": lots.choice(([], ["a"])), "departures": [evil()],
        "command": evil(), "seconds": lots.choice((1, 1e14, 0.0)), "machines": [evil()],
        "versions": [evil()], "commits": [evil()], "no picture": evil(),
    }  # fmt: skip
    numbers = {evil(): lots.choice((evil(), 1.0, float("nan"), None, [1, 2], {"mean": 1.0, "spread":
               float("inf")}, {"mean": evil(), "spread": 0.1, "kind": "sd"}))}  # fmt: skip
    claims = [{"id": evil(), "claim": evil(), "holds": lots.choice((True, False, None)),
               "numbers": numbers}]  # fmt: skip
    if lots.random() < 0.3:  # a field of another kind
        held = lots.choice((about, claims[0]))
        held[lots.choice(list(held))] = lots.choice(
            (None, 3, [], {}, [[]], {"a": 1}, 1e400, evil())
        )
    (where / "figure.json").write_text(json.dumps(about))
    (where / "claims.json").write_text(json.dumps(claims))
    svg = lots.choice(SVGS)
    (where / "figure.svg").write_text(svg, encoding="utf-8")
    if lots.random() < 0.3:
        (where / "figure.png").write_bytes(damaged(picture.PNG + bytes(40), lots))

    def page() -> None:
        text = report.write_page(home / "out").read_text(encoding="utf-8")
        found = Scripts()
        found.feed(text)
        assert not found.found, (svg, found.found)
        if problems := report.problems(home / "out"):
            raise DitherError(problems[0])

    return limited(page)


KINDS: dict[str, Callable[[Path, Lots], str]] = {
    "batch": batch, "digits": digits, "idx": idx_files, "archive": archives, "mat": mats,
    "results": folder, "compare": compared, "labels": labels,
}  # fmt: skip
SHARES = {"batch": 4, "results": 2, "labels": 3, "compare": 0.5}  # of others 1
