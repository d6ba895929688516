"""The examples of docs/protocol.md against the codec."""

import re
from pathlib import Path

import msgpack
import pytest

from streamrnn_client import errors, protocol

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^([<>]) ([0-9a-f ]+)\n  (.+)$", TEXT, re.MULTILINE)


def shown(value):
    """Write a value as the document writes it."""
    if isinstance(value, bytes):
        return f"bin {len(value)}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{shown(key)}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        return f'"{value}"'
    if value is None or isinstance(value, bool):
        return {None: "nil", True: "true", False: "false"}[value]
    return repr(value)


@pytest.mark.parametrize(("direction", "digits", "meaning"), EXAMPLES)
def test_examples_of_the_document_decode_as_described(direction, digits, meaning):
    message = bytes.fromhex(digits)
    assert shown(msgpack.unpackb(message, strict_map_key=False)) == meaning
    if direction == ">":
        protocol.decode_request(message)
    else:
        protocol.decode_response(message)


def test_every_method_and_every_code_is_described():
    assert len(EXAMPLES) == 23
    headings = " ".join(re.findall(r"^### (.*)$", TEXT, re.MULTILINE))
    for method in (*protocol.HOT_METHODS, *protocol.COLD_METHODS):
        assert re.search(rf"\b{method}\b", headings), method
    codes = re.findall(r"^\| `(\w+)` \|", TEXT[TEXT.index("## Errors") :], re.MULTILINE)
    assert codes == [code.wire for code in protocol.ErrorCode]


def test_the_table_of_hashes():
    rows = re.findall(
        r"^\| `(\"?[\w-]+\"?)` \| `([0-9a-f ]+)` \| `(\w{16})` \| (\d+) \|$", TEXT, re.MULTILINE
    )
    assert len(rows) == 6
    for shown_id, canonical, digest, slot in rows:
        stream = shown_id[1:-1] if shown_id.startswith('"') else int(shown_id)
        data = protocol.canonical_id(stream)
        assert data.hex(" ") == canonical
        assert f"{protocol.hash64(data):016x}" == digest
        assert protocol.hash_slot(stream) == int(slot)


def test_every_code_and_every_exception_of_the_client_is_explained():
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    for code in protocol.ErrorCode:
        assert f"| `{code.wire}` |" in page
    for name in (name for name in errors.__all__ if name[0].isupper()):
        assert f"`{name}`" in page
