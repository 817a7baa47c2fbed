# The statuses of the C core as exceptions, included by _core.pyx.

cdef int check(fastbn_status status) except -1:
    if status == FASTBN_OK:
        return 0
    if status == FASTBN_ERROR_MEMORY:
        raise MemoryError("fastbn: scratch memory could not be allocated")
    if status == FASTBN_ERROR_ISA_UNKNOWN or status == FASTBN_ERROR_ISA_UNSUPPORTED:
        raise RuntimeError(isa_message(os.environ.get("FASTBN_ISA", ""), status))
    raise ValueError(f"fastbn: {fastbn_status_text(status).decode()}")


def isa_message(name, fastbn_status status):
    here = ", ".join(n for n in isa_names() if isa_supported(n))
    return (f"FASTBN_ISA={name!r}: {fastbn_status_text(status).decode()}; it may be one of {', '.join(isa_names())}, and "
            f"this build runs {here} on this processor (unset it to take the best)")
