"""Feetech servos on a serial line, without the servos: the other end of a pseudo-terminal speaks for them.

Protocol 0 of the STS series, as far as lerobot uses it: FF FF, id, length, instruction, parameters, checksum.
"""

import os
import threading
import tty
from collections.abc import Iterator, Mapping
from select import select

PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 1, 2, 3, 0x82, 0x83
MODEL = (3, 777)  # address and number of an STS3215
MIN_POSITION, MAX_POSITION, HOMING = 9, 11, 31
TORQUE, GOAL, PRESENT = 40, 42, 56


class Servo:
    """256 bytes of registers. While it has torque it is at once where it should be."""

    def __init__(self) -> None:
        self.registers = bytearray(256)
        self.put(*MODEL)

    def get(self, address: int) -> int:
        """Two bytes."""
        return int.from_bytes(self.registers[address : address + 2], "little")

    def put(self, address: int, value: int) -> None:
        self.registers[address : address + 2] = value.to_bytes(2, "little")

    def write(self, address: int, data: bytes) -> None:
        self.registers[address : address + len(data)] = data
        if address == GOAL and self.registers[TORQUE]:
            self.put(PRESENT, self.get(GOAL))


class Line:
    """Use it as a context; a master opens `port`.

    silent: servos that hear and do, but do not answer. heard: instructions so far.
    """

    def __init__(self, servos: Mapping[int, Servo]) -> None:
        self.servos, self.silent, self.heard = servos, set[int](), list[int]()
        self._end, self._other = os.openpty()
        tty.setraw(self._other)
        self.port = os.ttyname(self._other)
        self._over, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Line":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._wake)  # makes the pipe's other end readable
        self._thread.join()
        for end in (self._end, self._other, self._over):
            os.close(end)

    def _serve(self) -> None:
        waiting = b""
        while self._over not in select([self._end, self._over], [], [])[0]:
            waiting += os.read(self._end, 4096)
            while len(waiting) >= 4 and len(waiting) >= 4 + waiting[3]:
                packet, waiting = waiting[: 4 + waiting[3]], waiting[4 + waiting[3] :]
                assert packet[:2] == b"\xff\xff"
                assert sum(packet[2:]) & 0xFF == 0xFF, "checksum"
                for answer in self._answers(packet[2], packet[4], packet[5:-1]):
                    os.write(self._end, answer)

    def _answers(self, to: int, instruction: int, data: bytes) -> Iterator[bytes]:
        self.heard.append(instruction)
        if instruction == SYNC_WRITE:
            address, size = data[:2]
            for i in range(2, len(data), 1 + size):
                self.servos[data[i]].write(address, data[i + 1 : i + 1 + size])
        elif instruction == SYNC_READ:
            for number in data[2:]:
                yield self._answer(number, self.servos[number].registers[data[0] : data[0] + data[1]])
        elif to in self.servos:
            if instruction == WRITE:
                self.servos[to].write(data[0], data[1:])
            read = self.servos[to].registers[data[0] : data[0] + data[1]] if instruction == READ else b""
            yield self._answer(to, read)

    def _answer(self, number: int, data: bytes) -> bytes:
        if number in self.silent:
            return b""
        body = bytes([number, len(data) + 2, 0, *data])
        return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])
