"""What the machine code of the kernels, which `tests.cuda.compiled` makes, consists of."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass

import pytest

NUM_REGISTERS, FRAME_BYTES = 0x2F, 0x11
"""Of a kernel, as NVIDIA numbers what its files say; memory that spills need is in its frame."""

_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([\w.]+)(.*);")
_REGISTER = re.compile(r"\s*[-|]*R(\d+)\b\|?(\.reuse)?")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


def assemble(ptx: str) -> str:
    """Return what the assembler says about registers, memory and spills."""
    from cuda.bindings import nvjitlink

    [architecture] = re.findall(r"^\.target (\w+)", ptx, re.M)
    options = [f"-arch={architecture}", "-Xptxas=-v", "-verbose"]
    linker = nvjitlink.create(len(options), options)
    code = ptx.encode()
    nvjitlink.add_data(linker, nvjitlink.InputType.PTX, code, len(code), "kernel")
    nvjitlink.complete(linker)
    log = bytearray(nvjitlink.get_info_log_size(linker))
    nvjitlink.get_info_log(linker, log)
    nvjitlink.destroy(linker)
    return log.decode(errors="replace")


@dataclass(frozen=True)
class Loop:
    """The instructions from a label to the jump back to it: (``FFMA``, operands)."""

    instructions: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the instructions: ``FFMA``, ``LDS.128``."""
        return tuple(name for name, _ in self.instructions)

    def count(self, prefix: str) -> int:
        """Return how many instructions begin so."""
        return sum(name == prefix or name.startswith(prefix + ".") for name in self.names)

    def share(self, prefix: str) -> float:
        """Return their part of the loop."""
        return self.count(prefix) / len(self.names)

    def speed_of_registers(self) -> float:
        """Return the part of all cycles in which the registers' banks let an FFMA begin.

        Registers lie in two banks, even and odd, each of which gives one a cycle. What the FFMA
        before has marked ``.reuse`` in the same place is there already. On an H100 a loop of three
        new registers an instruction has run at 0.65 of the peak, and tiles as this says.
        """
        kept: dict[int, int] = {}
        num_cycles = num_products = 0
        for name, operands in self.instructions:
            if name != "FFMA":
                continue
            reads, marked = [0, 0], {}
            for place, operand in enumerate(operands.split(",")[1:]):
                if register := _REGISTER.match(operand):
                    number = int(register[1])
                    reads[number % 2] += kept.get(place) != number
                    if register[2]:
                        marked[place] = number
            kept = marked
            num_cycles += max(1, *reads)
            num_products += 1
        return num_products / max(1, num_cycles)


def disassemble(machine_code: bytes, entry: str) -> list[tuple[str, str]]:
    """Return a kernel's labels and instructions, (name, operands); a label has no operands.

    Skips the test where there is no disassembler.
    """
    from cuda import pathfinder

    tool = pathfinder.find_nvidia_binary_utility("nvdisasm")
    if tool is None:
        pytest.skip("needs nvdisasm: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        text = subprocess.check_output([tool, "-c", file.name], text=True)
    [section] = re.findall(
        rf"^\s*\.section\s+\.text\.{entry},.*?(?=^\s*\.section\s|\Z)", text, re.M | re.S
    )
    found = []
    for line in section.splitlines():
        if label := _LABEL.match(line):
            found.append((label[1] + ":", ""))
        elif instruction := _INSTRUCTION.match(line):
            found.append((instruction[1], instruction[2]))
    return found


def loops_of(code: list[tuple[str, str]]) -> list[Loop]:
    """Return the loops of a kernel that hold no other loop."""
    places, spans = {}, []
    for place, (name, operands) in enumerate(code):
        if name.endswith(":"):
            places[name[:-1]] = place
        elif name.startswith("BRA"):
            target = _TARGET.search(operands)
            if target and target[1] in places:
                spans.append((places[target[1]], place))
    inner = [
        (start, end)
        for start, end in spans
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in spans)
    ]
    return [
        Loop(tuple(each for each in code[start : end + 1] if not each[0].endswith(":")))
        for start, end in inner
    ]


def attribute_of(machine_code: bytes, entry: str, wanted: int) -> int:
    """Return what the ELF file says of a kernel: `NUM_REGISTERS`, or `FRAME_BYTES`."""
    sections = elf_sections(machine_code)
    text = sections[f".text.{entry}"]
    info = sections[".nv.info"]
    place, end = info[4], info[4] + info[5]
    while place < end:
        kind, attribute, size = struct.unpack_from("<BBH", machine_code, place)
        place += 4
        if kind == 4:
            if attribute == wanted:
                symbol, value = struct.unpack_from("<II", machine_code, place)
                if symbol == text[7] & 0xFFFFFF:
                    return int(value)
            place += size
    raise AssertionError(entry)


def elf_sections(machine_code: bytes) -> dict[str, tuple[int, ...]]:
    """Return the section headers of a 64-bit ELF file by their names."""
    [start] = struct.unpack_from("<Q", machine_code, 0x28)
    size, count, names = struct.unpack_from("<HHH", machine_code, 0x3A)
    headers = [
        struct.unpack_from("<IIQQQQIIQQ", machine_code, start + k * size) for k in range(count)
    ]
    texts = machine_code[headers[names][4] :]
    return {texts[h[0] : texts.index(b"\0", h[0])].decode(): h for h in headers}
