"""Another package whose Cython code calls fastbn's C functions."""
from Cython.Build import cythonize
from setuptools import Extension, setup

import fastbn

OPENMP = ["-fopenmp"]
extension = Extension("tables", ["tables.pyx"], include_dirs=[fastbn.get_include()], extra_compile_args=OPENMP,
                      extra_link_args=OPENMP)
setup(ext_modules=cythonize([extension]))
