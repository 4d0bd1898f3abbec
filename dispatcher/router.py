"""Which way a payload travels. Pure, and the same answer for the same job every time.

Inline takes 1 to 128,000 bytes; an empty payload cannot be said inline (no Body and an empty Body are one request), so it
goes by S3 like everything larger. A share of the inline-eligible jobs, picked by their identity, goes by S3 as well, so
that the two paths are compared on the same sizes.
"""

from collections.abc import Callable

from dispatcher.model import INLINE_MAX_BYTES, SizeClass, Transport

_BOUNDS = (
    (1_024, SizeClass.LE_1K),
    (4_096, SizeClass.LE_4K),
    (16_384, SizeClass.LE_16K),
    (65_536, SizeClass.LE_64K),
    (INLINE_MAX_BYTES, SizeClass.LE_128K),
)


def size_class(size_bytes: int) -> SizeClass:
    """The class whose sizes this payload is compared with."""
    for bound, name in _BOUNDS:
        if size_bytes <= bound:
            return name
    return SizeClass.GT_128K


def fits_inline(size_bytes: int) -> bool:
    """Whether the service takes a payload of this size in the request."""
    return 1 <= size_bytes <= INLINE_MAX_BYTES


def route(size_bytes: int, wanted: Transport | None, point: Callable[[], float], *, share: float) -> Transport:
    """INLINE or S3 for a payload of our own. `wanted` is what the line asks for; `share` is 0 where nothing can be staged.

    `point` says where in 0 to 1 the job's identity puts it; it is asked only where that decides.
    """
    if wanted is not None:
        return wanted
    if not fits_inline(size_bytes) or (share > 0 and point() < share):
        return Transport.S3
    return Transport.INLINE
