"""Memory between two pages that nobody may touch: an access one byte beyond either end is a segmentation fault."""
import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
_FORBIDDEN = 0  # PROT_NONE, which Python's mmap has no name for
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def guarded_bytes(count, right):
    """So many bytes, as uint8, that end where a page ends (right) or begin where one begins. Freed with the array."""
    room = -(-max(count, 1) // PAGE) * PAGE
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    whole = np.frombuffer(mmap.mmap(-1, room + 2 * PAGE, flags=private), np.uint8)
    address = whole.__array_interface__["data"][0]
    for guard in (address, address + PAGE + room):
        if _LIBC.mprotect(guard, PAGE, _FORBIDDEN):
            raise OSError(ctypes.get_errno(), "mprotect")
    first = PAGE + (room - count if right else 0)
    return whole[first:first + count]
