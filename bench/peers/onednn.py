"""oneDNN's batch normalization on plain layouts, by its C interface. float32 only.

Its relu is a flag (fuse_norm_relu), with a workspace between training and backward. Its batch normalization on
the CPU has nothing for a residual and relu (fuse_norm_add_relu).

Memory objects wrap the arrays' own memory. Descriptors, memory objects and the primitive are made in work(), so that a
call is one dnnl_primitive_execute; for "fresh" a new array is made before it, and its address given to the output's
memory object. On the CPU execute returns when all is computed: there is no stream to wait for. The comment after the
expression is oneDNN's name of the implementation that it chose.
"""
import math
from contextlib import contextmanager
from ctypes import c_byte
from dataclasses import replace

import numpy as np

from bench.cases import EPS
from bench.peers import dnnl
from bench.peers.work import Work


def _dims_and_strides(case):
    """The dimensions (N, C, ...) and the strides in elements, which tell the layout."""
    lying = case.array_shape
    strides = [math.prod(lying[i + 1:]) for i in range(len(lying))]
    if case.layout == "last":
        strides = [strides[0], strides[-1], *strides[1:-1]]
    return dnnl.Dims(*case.shape), dnnl.Dims(*strides)


class BatchNormalization:
    """A primitive and the memory it runs on; the large output is bound last, to an array or later to many."""

    def __init__(self, library, engine, case, arrays, output, workspace=None):
        self.library, self.engine = library, engine
        self.handles = dnnl.Handles(library)
        dims, strides = _dims_and_strides(case)
        self.data = self._describe(len(case.shape), dims, strides)
        self.parameter = self._describe(1, dnnl.Dims(case.features), dnnl.Dims(1))
        self.fuse = dnnl.FUSE_RELU if case.is_fused else 0
        self.description = getattr(self, case.plain)()
        self.primitive = self.handles.create("primitive_create", self.description)
        self.stream = self.handles.create("stream_create", engine, dnnl.IN_ORDER)
        memories = {argument: self._wrap(array) for argument, array in arrays.items()}
        self.workspace = self._make_workspace() if case.operation == "training_relu" else workspace
        if self.workspace is not None:
            memories[dnnl.WORKSPACE] = self.workspace
        self.output = memories[output] = self.handles.create("memory_create", self.data, engine, None)
        self.arguments = (dnnl.Argument * len(memories))(*memories.items())
        self.arrays = list(arrays.values())  # kept alive as long as the memory objects

    def _describe(self, ndim, dims, strides):
        return self.handles.create("memory_desc_create_with_strides", ndim, dims, dnnl.FLOAT32, strides)

    def _wrap(self, array):
        description = self.data if array.ndim > 1 else self.parameter
        return self.handles.create("memory_create", description, self.engine, array.ctypes.data)

    def _make_workspace(self):
        """Where training keeps what relu's backward needs."""
        description = self.library.dnnl_primitive_desc_query_md(self.description, dnnl.QUERY_WORKSPACE, 0)
        return self.handles.create("memory_create", description, self.engine, dnnl.ALLOCATE)

    def _forward(self, kind, flags):
        return self.handles.create("batch_normalization_forward_primitive_desc_create", self.engine, kind, self.data,
                                   self.data, EPS, flags | self.fuse, None)

    def inference(self):
        return self._forward(dnnl.FORWARD_INFERENCE, dnnl.USE_GLOBAL_STATS | dnnl.USE_SCALE_AND_SHIFT)

    def training(self):
        return self._forward(dnnl.FORWARD_TRAINING, dnnl.USE_SCALE_AND_SHIFT)

    def backward(self):
        return self.handles.create("batch_normalization_backward_primitive_desc_create", self.engine, dnnl.BACKWARD,
                                   self.data, self.data, self.data, EPS, dnnl.USE_SCALE_AND_SHIFT | self.fuse,
                                   self.training(), None)

    def set_output(self, array):
        self.arrays.append(array)
        self.library.dnnl_memory_set_data_handle(self.output, c_byte.from_buffer(array))

    def execute(self):
        return self.library.dnnl_primitive_execute(self.primitive, self.stream, len(self.arguments), self.arguments)


class OneDNN:
    name = "onednn"

    def __init__(self):
        self._library = dnnl.load()
        self._handles = dnnl.Handles(self._library)
        self._engine = self._handles.create("engine_create", dnnl.CPU, 0)

    def version(self):
        return dnnl.version_text(self._library)

    @contextmanager
    def session(self, threads):
        """By the OpenMP runtime that libdnnl itself calls: its handle gives the functions of what it depends on."""
        before = self._library.omp_get_max_threads()
        self._library.omp_set_num_threads(threads)
        try:
            yield
        finally:
            self._library.omp_set_num_threads(before)

    def can(self, case, output):
        return (case.plain in ("inference", "training", "backward") and not case.has_residual and output in case.outputs
                and case.dtype == "float32" and len(case.shape) <= dnnl.MOST_DIMENSIONS)

    def work(self, case, data, output, threads):
        bn, small = self._prepare(case, data)
        names = dict(execute=self._library.dnnl_primitive_execute, primitive=bn.primitive, stream=bn.stream,
                     count=len(bn.arguments), arguments=bn.arguments, small=small, keep_alive=bn)
        if output == "out=":
            names["y"] = data.empty()
            bn.set_output(names["y"])
            call = "execute(primitive, stream, count, arguments)"
        else:
            names.update(empty=np.empty, shape=case.array_shape, dtype=data.x.dtype, memory=bn.output, byte=c_byte,
                         set_data_handle=self._library.dnnl_memory_set_data_handle)
            call = ("set_data_handle(memory, byte.from_buffer(y := empty(shape, dtype))) "
                    "or execute(primitive, stream, count, arguments)")
        result = "(y, *small)" if case.plain == "backward" else "y"
        return Work(f"{call} or {result}  # {dnnl.implementation(self._library, bn.description)}", names)

    def _prepare(self, case, data):
        """The primitive on the arrays of the case, its large output left open; and its small results."""
        arrays = {dnnl.SRC: data.x, dnnl.SCALE: data.gamma, dnnl.SHIFT: data.beta, dnnl.MEAN: data.mean,
                  dnnl.VARIANCE: data.var}
        new = [np.empty_like(data.gamma) for _ in range(2)]
        if case.plain == "inference":
            return BatchNormalization(self._library, self._engine, case, arrays, dnnl.DST), ()
        if case.plain == "training":
            arrays.update(zip((dnnl.MEAN, dnnl.VARIANCE), new))
            return BatchNormalization(self._library, self._engine, case, arrays, dnnl.DST), new
        training = case.operation.replace("backward", "training")
        forward, statistics = self._prepare(replace(case, operation=training), data)
        forward.set_output(data.empty())
        if forward.execute():
            raise RuntimeError("oneDNN's forward call before backward failed")
        del arrays[dnnl.SHIFT]
        arrays.update(zip((dnnl.MEAN, dnnl.VARIANCE, dnnl.DIFF_SCALE, dnnl.DIFF_SHIFT), (*statistics, *new)))
        arrays[dnnl.DIFF_DST] = data.dy
        bn = BatchNormalization(self._library, self._engine, case, arrays, dnnl.DIFF_SRC, forward.workspace)
        bn.arrays.append(forward)  # the owner of the workspace
        return bn, new

    def arrays(self, case, result):
        """Each call of the library gives 0, so that the expression goes on to its arrays, or its status."""
        if isinstance(result, int):
            raise RuntimeError(f"oneDNN returned status {result}, expected 0")
        return tuple(result) if case.plain == "backward" else (result,)
