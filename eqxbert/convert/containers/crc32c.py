"""CRC-32C, the checksum of TensorFlow's files.

A register goes through the data and changes linearly with each zero bit. So for large data many
registers can go side by side, each over its own column, to be added up.
"""

import functools

import numpy as np

_LANES = 1024


def masked_crc32c(data: np.ndarray) -> int:
    """The checksum of bytes as it is stored: rotated, plus a number."""
    rows = data[: data.size - data.size % (4 * _LANES)].view("<u4").reshape(-1, _LANES)
    register = 0xFFFFFFFF
    if len(rows):
        register = _after_rows(register, rows)
    for byte in data[rows.size * 4 :].tobytes():
        register = _BYTE_STEPS[(register ^ byte) & 0xFF] ^ (register >> 8)
    crc = register ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _after_rows(register: int, rows: np.ndarray) -> int:
    row_step, *folds = _word_steps()
    lanes = rows[0].copy()
    lanes[0] ^= register
    for row in rows[1:]:
        lanes = _stepped(lanes, row_step) ^ row
    for fold in folds:  # the left half is as many words behind the right one as it has
        left, right = np.split(lanes, 2)
        lanes = _stepped(left, fold) ^ right
    return int(_stepped(lanes, folds[-1])[0])


def _stepped(registers: np.ndarray, step: np.ndarray) -> np.ndarray:
    halves = registers.view(np.uint16)
    return step[0].take(halves[0::2]) ^ step[1].take(halves[1::2])


@functools.cache
def _word_steps() -> list[np.ndarray]:
    """What a register becomes after as many zero words as there are lanes, half as many and so on
    down to one: the sum of what table 0 has for its lower half and table 1 for its upper half.
    """
    after = np.array([_after_zeros(1 << bit, bits=32) for bit in range(32)], np.uint32)
    steps: list[np.ndarray] = []
    for _ in range(_LANES.bit_length()):
        step = np.zeros((2, 2**16), np.uint32)
        for bit, with_bit in enumerate(after.reshape(2, 16, 1).swapaxes(0, 1)):
            step[:, 1 << bit : 2 << bit] = step[:, : 1 << bit] ^ with_bit
        steps.insert(0, step)
        after = _stepped(after, step)
    return steps


def _after_zeros(register: int, *, bits: int) -> int:
    for _ in range(bits):
        register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register


_BYTE_STEPS = [_after_zeros(byte, bits=8) for byte in range(256)]
