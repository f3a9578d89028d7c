"""A minimal writer of GGUF files, version 3, little endian."""
import struct

import numpy as np

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9     # metadata value types
TENSOR_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}


def packed_string(text):
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def packed_value(kind, value):
    if kind == STRING:
        return packed_string(value)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


class Writer:
    def __init__(self):
        self.metadata = []
        self.tensors = []

    def add(self, key, kind, value):
        self.metadata.append(packed_string(key) + struct.pack("<I", kind) + packed_value(kind, value))

    def add_array(self, key, kind, values):
        body = b"".join(packed_value(kind, value) for value in values)
        self.metadata.append(packed_string(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + body)

    def add_tensor(self, name, array):
        """array in C order; GGUF lists its dimensions fastest first."""
        self.tensors.append((name, np.ascontiguousarray(array)))

    def write(self, path):
        infos, blobs, offset = [], [], 0
        for name, array in self.tensors:
            infos.append(packed_string(name) + struct.pack("<I", array.ndim)
                         + struct.pack(f"<{array.ndim}Q", *reversed(array.shape))
                         + struct.pack("<IQ", TENSOR_TYPES[array.dtype], offset))
            blob = array.tobytes()
            blobs.append(blob + bytes(-len(blob) % ALIGNMENT))
            offset += len(blobs[-1])
        header = (MAGIC + struct.pack("<IQQ", VERSION, len(self.tensors), len(self.metadata))
                  + b"".join(self.metadata) + b"".join(infos))
        with open(path, "wb") as out:
            out.write(header + bytes(-len(header) % ALIGNMENT))
            for blob in blobs:
                out.write(blob)
