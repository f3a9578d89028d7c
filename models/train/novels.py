"""Takes the novels out of Debian's r-cran-janeaustenr, without R.

An R data package is a row of objects, each its size (4 bytes, big endian) and a zlib stream of R's serialization:
here always one vector of strings, the lines of a novel. Prints the novels, a form feed after each.
"""
import pathlib
import struct
import sys
import zlib

STRINGS = 16        # type of a vector of strings, in the low byte of its flags
N_HEADER = 3        # numbers after "X\\n": version of the serialization, of the writer, of the oldest reader


def objects(data):
    """The unpacked objects of a .rdb file."""
    at = 0
    while at < len(data):
        stream = zlib.decompressobj()
        yield stream.decompress(data[at + 4:])
        at = len(data) - len(stream.unused_data)


class Serialized:
    """Reads R's serialization in its big-endian form from the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        return self.data[self.at - n:self.at]

    def number(self):
        return struct.unpack(">i", self.take(4))[0]

    def string(self):
        self.number()       # flags: the encoding
        return self.take(max(0, self.number())).decode("utf-8")


def lines(data):
    reader = Serialized(data)
    if reader.take(2) != b"X\n":
        raise ValueError("no R object")
    numbers = [reader.number() for _ in range(N_HEADER)]
    if numbers[0] == 3:
        reader.take(reader.number())        # the native encoding's name
    if reader.number() & 255 != STRINGS:
        raise ValueError("no vector of strings")
    return [reader.string() for _ in range(reader.number())]


def main():
    for data in objects(pathlib.Path(sys.argv[1]).read_bytes()):
        sys.stdout.write("\n".join(lines(data)) + "\n\f\n")


if __name__ == "__main__":
    main()
