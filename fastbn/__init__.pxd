# cimport fastbn: the types and functions of fastbn.h for other packages' Cython code.
#
# The functions come from the extension module when the importing module is loaded, so there is nothing to link to; the
# types from the header, whose folder is fastbn.get_include().
from fastbn._core cimport *
