"""aws-chunked, unsigned: `<hex size>[;extension]\\r\\n<data>\\r\\n … 0\\r\\n<trailer>: <value>\\r\\n\\r\\n`. Pure."""

LINE_MAX_BYTES = 4_096


class ChunkedError(Exception):
    """The body is not aws-chunked."""


class ChunkedDecoder:
    """Takes the coded bytes in pieces of any size; gives the decoded ones, and at the end the trailers (names lower case)."""

    __slots__ = ("_buffer", "_left", "_line_after", "done", "trailers")

    def __init__(self) -> None:
        self.trailers: dict[bytes, bytes] = {}
        self.done = False
        self._buffer = bytearray()
        self._left: int | None = None  # of the chunk under way; None between chunks; -1 among the trailers
        self._line_after = False  # the line end that closes a chunk is still to come

    def feed(self, data: bytes) -> list[bytes]:
        """The decoded pieces that `data` completes. ChunkedError if it cannot be."""
        self._buffer += data
        decoded: list[bytes] = []
        while self._step(decoded):
            pass
        return decoded

    def _step(self, decoded: list[bytes]) -> bool:
        if self.done:
            return False
        if self._left is not None and self._left > 0:
            return self._take_data(decoded)
        line = self._line()
        if line is None:
            return False
        if self._left == -1:
            self._trailer(line)
        elif self._line_after:
            self._end_of_chunk(line)
        else:
            self._size(line)
        return True

    def _take_data(self, decoded: list[bytes]) -> bool:
        assert self._left is not None
        piece = bytes(self._buffer[: self._left])
        if not piece:
            return False
        del self._buffer[: len(piece)]
        decoded.append(piece)
        self._left -= len(piece)
        if self._left == 0:
            self._left, self._line_after = None, True
        return True

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > LINE_MAX_BYTES:
                raise ChunkedError("a line without an end")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _size(self, line: bytes) -> None:
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise ChunkedError("a chunk without a size") from None
        if size < 0:
            raise ChunkedError("a chunk of negative size")
        self._left = size or -1

    def _end_of_chunk(self, line: bytes) -> None:
        if line:
            raise ChunkedError("a chunk longer than its size")
        self._line_after = False

    def _trailer(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if line and not colon:
            raise ChunkedError("a trailer without a value")
        if line:
            self.trailers[name.strip().lower()] = value.strip()
        else:
            self.done = True
