#!/usr/bin/env python3
"""Writes reference.bin: blocks of random bytes of each quantised GGUF type, and what they stand for.

    pip install gguf==0.19.0 && python3 make.py reference.bin

For each type, little-endian: u32 its ggml number, u32 blocks, the blocks' bytes, then their values
as f32 by `gguf.quants.dequantize`. Scales are between 0.001 and 0.02 in magnitude; every other bit is
random.
"""

import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType, quants

# Byte offsets of the f16 numbers of a block; elements and bytes of a block.
TYPES = {
    "Q4_0": ([0], 32, 18),
    "Q4_1": ([0, 2], 32, 20),
    "Q8_0": ([0], 32, 34),
    "Q5_0": ([0], 32, 22),
    "Q5_1": ([0, 2], 32, 24),
    "Q2_K": ([80, 82], 256, 84),
    "Q3_K": ([108], 256, 110),
    "Q4_K": ([0, 2], 256, 144),
    "Q5_K": ([0, 2], 256, 176),
    "Q6_K": ([208], 256, 210),
    "IQ4_NL": ([0], 32, 18),
    "IQ4_XS": ([0], 256, 136),
}

random = np.random.default_rng(20)
with open(sys.argv[1], "wb") as out:
    for name, (halves, elements, size) in TYPES.items():
        kind = GGMLQuantizationType[name]
        count = 1024 // elements
        blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
        for at in halves:
            scales = random.uniform(0.001, 0.02, count) * random.choice([-1, 1], count)
            blocks[:, at : at + 2] = scales.astype("<f2").view(np.uint8).reshape(count, 2)
        values = quants.dequantize(blocks, kind).astype("<f4")
        assert values.size == 1024
        out.write(struct.pack("<II", kind.value, count))
        out.write(blocks.tobytes())
        out.write(values.tobytes())
