# What dir() and help() of public classes need not show, included by _core.pyx after all classes.
#
# Cython keeps the C functions of a class under the name __pyx_vtable__ in it, for extension modules that derive from
# the class; there are none. Builds without the limited API have classes that Python cannot change, hence the C.
cdef extern from *:
    """
    static int fbn_hide_vtable(PyObject *type) {
    #ifdef Py_LIMITED_API
        return PyObject_SetAttrString(type, "__pyx_vtable__", NULL);
    #else
        int status = PyDict_DelItemString(((PyTypeObject *) type)->tp_dict, "__pyx_vtable__");
        PyType_Modified((PyTypeObject *) type);
        return status;
    #endif
    }
    """
    int fbn_hide_vtable(object type) except -1

fbn_hide_vtable(LayerBase)
fbn_hide_vtable(Saved)
fbn_hide_vtable(Exchange)
fbn_hide_vtable(Extra)
