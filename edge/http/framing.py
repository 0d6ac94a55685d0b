"""Frames of HTTP/2 as they come, checked before they are kept."""

from h2.exceptions import FrameTooLargeError
from h2.frame_buffer import FrameBuffer
from hyperframe import frame as frames

_HEADER_BYTES = 9


class Frames(FrameBuffer):
    """Takes the bytes of one side of a connection apart.

    What h2 does otherwise: it keeps a frame until it is whole before it looks at its length, which may be
    said to be 16 MiB; and after a GOAWAY it has the connection closed, where RFC 9113, 6.8, lets what is
    open end. GOAWAY is taken out here.

    Attributes:
        last: the last stream that the other side will answer, once it has said goodbye.
    """

    def __init__(self, *, server: bool) -> None:
        super().__init__(server=server)
        self.last: int | None = None

    def __next__(self) -> frames.Frame:
        if len(self._data) >= _HEADER_BYTES and int.from_bytes(self._data[:3], "big") > self.max_frame_size:
            raise FrameTooLargeError("a frame is larger than was agreed")
        frame = super().__next__()
        if isinstance(frame, frames.GoAwayFrame):
            self.last = frame.last_stream_id
            return next(self)
        return frame
