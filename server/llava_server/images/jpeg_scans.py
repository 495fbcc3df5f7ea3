"""Count the scans of a JPEG file without decoding it.

Each scan of a progressive JPEG can refine all pixels, but takes only a few bytes. Without a limit, decoding a
file of a few hundred KB can require minutes of CPU time (see "Two Issues with the JPEG Standard" by the
libjpeg-turbo project).
"""

from __future__ import annotations

import re

__all__ = ["num_scans"]

_SOI, _EOI, _SOS = b"\xff\xd8", 0xD9, 0xDA
_MARKER = re.compile(rb"\xff([^\xff\x00\x01\xd0-\xd7])")  # except markers without a length, and stuffed bytes


def num_scans(file: bytes, *, limit: int) -> int:
    """Return the number of scans in the first image of a JPEG file. Stop counting above ``limit``.

    Return 0 for other formats. Data after the image, such as the video of a motion photo, is ignored.
    """
    if not file.startswith(_SOI):
        return 0
    found, position = 0, len(_SOI)
    while found <= limit and (marker := _MARKER.search(file, position)) is not None:
        position = marker.end()
        code = marker[1][0]
        if code == _EOI:
            break
        found += code == _SOS
        position += int.from_bytes(file[position : position + 2], "big")  # length of the segment
    return found
