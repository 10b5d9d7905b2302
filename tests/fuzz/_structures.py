"""Change the contents of a file by its format, so that its reader gets past its first check."""

from __future__ import annotations

import io
import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from opt_trt.backends.engine import seal

HOSTILE_TEXT = "\x1b]0;owned\x07\x1b[2J\n::error::injected\u202e"
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64 + 1, 10**400, -(10**30), 0.5, -1.5, 1e308, float("nan"),
    float("inf"), "", "x", "16", HOSTILE_TEXT, "a" * 100_000, "\ud800", "\0", "../../etc/passwd", "/dev/zero",
    [], [[]], {}, {"a": {}}, [1, 2.5, "x"], ["x"] * 1000, {"x" * 1000: 1},
)  # fmt: skip
HOSTILE_PICKLES = (  # pieces of a pickle that leave one value on the stack
    b"cposix\nsystem\n", b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R", b"()" + b"\x85" * 50_000,
    b"}(" + b"()\x85\x85\x85K\x01u", b"\x8f(K\x01\x90", b"((K\x01\x91", b"\x96" + struct.pack("<Q", 1 << 40),
    b"ctorch\nSize\n(K\x02K\x03tR", b"cenum\nE\n)R}b", b"\x8b" + struct.pack("<i", 2000) + b"\x7f" * 2000,
    b"N", b"\x88", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b"X\x04\x00\x00\x00a\x1b\nb", b"]", b"}", b")",
    b"ccollections\nOrderedDict\n)R", b"J\xff\xff\xff\xff", b"B\xff\xff\xff\x7f",
)  # fmt: skip


def change_bytes(data: bytes, random: Random) -> bytes:
    """Flip bits, cut, insert, repeat or overwrite, more often near the beginning and the end, where tables are."""
    if not data:
        return bytes(random.randrange(1, 20))
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 50))):
        at = random.choice((random.randrange(len(changed)), min(len(changed) - 1, int(random.expovariate(0.01)))))
        at = random.choice((at, at, len(changed) - 1 - at))
        piece = random.choice(
            (b"", b"\0", b"\xff" * 8, b"\n", b"{", bytes(random.randrange(64)), changed[at : at + 40])
        )
        kind = random.randrange(6)
        if kind == 0:
            changed[at : at + len(piece)] = piece
        elif kind == 1 and len(changed) < 10_000_000:
            changed[at:at] = piece * random.choice((1, 1, 3, 100))
        elif kind == 2 and random.random() < 0.2:
            del changed[at:]
        else:
            changed[at] ^= 1 << random.randrange(8)
        if not changed:
            break
    return bytes(changed)


def _json(data: bytes, random: Random) -> bytes:
    """Replace, remove, rename or repeat a value anywhere in the tree."""
    tree = {"": json.loads(data)}
    for _ in range(random.choice((1, 1, 2))):
        _change_tree(tree, random)
    text = json.dumps(tree.get(""), ensure_ascii=random.random() < 0.9)
    if random.random() < 0.05:
        text = random.choice(("[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, text + text, "1e999", "9" * 5000))
    return text.encode("utf-8", "surrogatepass")


def _change_tree(tree: dict[str, Any], random: Random) -> None:
    places: list[tuple[Any, Any]] = []
    stack: list[Any] = [tree]
    while stack and len(places) < 5000:
        node = stack.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                stack.append(node[key])
    node, key = random.choice(places)
    kind = random.randrange(8)
    if kind == 0 and len(places) > 1:
        del node[key]
    elif kind == 1 and isinstance(node, dict) and node is not tree:
        node[random.choice((HOSTILE_TEXT, "", "x", f"{key}.x"))] = node.pop(key)
    elif kind == 2:
        other, other_key = random.choice(places)
        node[key] = other[other_key] if not isinstance(other[other_key], dict | list) else json.loads("[1]")
    elif kind == 3 and type(node[key]) is int:
        node[key] += random.choice((-1, 1, 2**31, 10**9, -node[key]))
    else:
        node[key] = random.choice(ODD)


def _engine_config(data: bytes, random: Random) -> bytes:
    """Change the configuration of an engine; more often with the seal that fits the change."""
    changed = _json(data, random)
    values = json.loads(changed)
    return json.dumps(seal(values)).encode() if isinstance(values, dict) and random.random() < 0.8 else changed


def _json_lines(data: bytes, random: Random) -> bytes:
    lines = data.splitlines()
    at = random.randrange(len(lines))
    lines[at] = _json(lines[at], random)
    return b"\n".join(lines)


def _safetensors(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = random.randrange(4)
    if kind == 0:
        return random.choice((0, 1, length + 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little") + header + body
    if kind == 1:
        return data[: 8 + length] + change_bytes(body, random)
    header = _json(header, random)
    if random.random() < 0.1:
        header = header.replace(b'"shape":[', b'"shape":[' + b"1," * random.choice((70, 20_000)), 1)
    return len(header).to_bytes(8, "little") + header + body


def _zip(data: bytes, random: Random) -> bytes:
    """Change the pickle or another record of an archive of torch, and keep the archive whole."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = random.choice([name for name in records if name.endswith("data.pkl")] * 5 + sorted(records))
    if name.endswith("data.pkl"):
        records[name] = _pickle(records[name], random)
    else:
        records[name] = random.choice((b"", records[name] * 2, records[name][:-2], b"big", b"\xff\x7f" * 50))
    if random.random() < 0.1:
        records[random.choice(("x/../../y", name + "2", HOSTILE_TEXT.replace("\0", "")))] = records.pop(name)
    buffer = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if random.random() < 0.03 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return buffer.getvalue()


def _pickle(data: bytes, random: Random) -> bytes:
    """Remove, repeat, swap or replace instructions; or change bytes."""
    if random.random() < 0.2:
        return change_bytes(data, random)
    places = [place for _, _, place in pickletools.genops(data)] + [len(data)]
    pieces = [data[start:end] for start, end in pairwise(places)]
    for _ in range(random.choice((1, 1, 2, 5))):
        at, other = random.randrange(len(pieces)), random.randrange(len(pieces))
        kind = random.randrange(6)
        if kind == 0:
            pieces[at] = b""
        elif kind == 1:
            pieces[at] *= random.choice((2, 3, 1000))
        elif kind == 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif kind == 3:
            pieces[at] = pieces[other]
        elif kind == 4 and pieces[at][:1] in (b"K", b"M", b"J"):
            pieces[at] = random.choice(
                (b"K\0", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"\x88", b"G?\xf0" + bytes(6))
            )
        else:
            pieces[at] = random.choice(HOSTILE_PICKLES)
    return b"".join(pieces)


def _older(data: bytes, random: Random) -> bytes:
    """Change the pickle of an older file of torch: its numbers follow, so only the beginning is changed."""
    start = data.index(b"}", 100)
    return data[:start] + change_bytes(data[start : start + 3000], random) + data[start + 3000 :]


def _npy(data: bytes, random: Random) -> bytes:
    """Change words of the header, and keep its length."""
    length = int.from_bytes(data[8:10], "little")
    words = re.split(rb"(\W)", data[10 : 10 + length])
    for _ in range(random.choice((1, 1, 2))):
        odd = (b"1e9", b"-1", b"True", b"[]", b"{", b"(", b"10" * 20, b"'O'", b"0", b"1.5", b"\xff", b"1is 2", b"|S9")
        words[random.randrange(len(words))] = random.choice(odd)
    header = b"".join(words)
    return data[:8] + struct.pack("<H", len(header) & 0xFFFF) + header + data[10 + length :]


def _text(data: bytes, random: Random) -> bytes:
    """Change words and lines."""
    words = re.split(rb"(\W)", data)
    for _ in range(random.choice((1, 2, 10))):
        odd = (
            b"",
            b"-1",
            b"9" * 5000,
            b'"',
            b"\0",
            b"\xff",
            b",",
            b"\n",
            b"x",
            b"1e5",
            HOSTILE_TEXT.encode(),
            b"," * 2000,
        )
        words[random.randrange(len(words))] = random.choice(odd)
    return b"".join(words)


def _suffix(*suffixes: str) -> Callable[[Path, bytes], bool]:
    return lambda path, data: path.suffix in suffixes


STRUCTURES: tuple[tuple[Callable[[Path, bytes], bool], Callable[[bytes, Random], bytes]], ...] = (
    (lambda path, data: path.name == "config.json" and b'"fingerprint"' in data, _engine_config),
    (_suffix(".json", ".cache"), _json),
    (_suffix(".jsonl"), _json_lines),
    (_suffix(".safetensors"), _safetensors),
    (lambda path, data: data.startswith(b"PK\x03\x04"), _zip),
    (lambda path, data: data.startswith(b"\x93NUMPY"), _npy),
    (_suffix(".bin", ".pt"), _older),
    (_suffix(".csv", ".txt"), _text),
)
