# The handlers of csrc/adapters/xla.c for JAX, included by _core.pyx. JAX is not needed for them, only to call them.

cdef extern from "adapters/xla.h":
    ctypedef struct fbn_xla_frame
    ctypedef struct fbn_xla_error
    fbn_xla_error *fbn_xla_training(fbn_xla_frame *frame)
    fbn_xla_error *fbn_xla_backward(fbn_xla_frame *frame)
    fbn_xla_error *fbn_xla_double_backward(fbn_xla_frame *frame)
    fbn_xla_error *fbn_xla_inference(fbn_xla_frame *frame)
    fbn_xla_error *fbn_xla_update_running(fbn_xla_frame *frame)

ctypedef fbn_xla_error *(*xla_handler)(fbn_xla_frame *frame)


cdef object xla_capsule(xla_handler handler):
    return PyCapsule_New(<void *> handler, "xla._CUSTOM_CALL_TARGET", NULL)


def xla_handlers():
    """{name: PyCapsule}, as jax.ffi.register_ffi_target takes them."""
    return {"fastbn_training": xla_capsule(fbn_xla_training), "fastbn_backward": xla_capsule(fbn_xla_backward),
            "fastbn_double_backward": xla_capsule(fbn_xla_double_backward),
            "fastbn_inference": xla_capsule(fbn_xla_inference),
            "fastbn_update_running": xla_capsule(fbn_xla_update_running)}
