"""Builds fastbn._core: the C core in csrc/ and its Cython face, in one extension module.

What pyproject.toml cannot say is here:
- each csrc/kernels_<isa>.c gets the flags of its instruction set and no other file does, so that everything else runs
  on any processor of the architecture, and the choice among the kernels is made at run time;
- instruction sets and OpenMP are tried on the compiler first and left out, with a printed line, where it refuses;
- no flag may change a result: no fused multiply-add made out of * and +, nothing of the fast-math family.

The extension is built for the limited API of CPython 3.11 (abi3), so that one wheel serves every later version: it was
measured to cost a call of the layer at (1, 64) some 20 ns of 430. Free-threaded CPython has no limited API and gets a
wheel of its own.

Environment: CC and CFLAGS as usual; FASTBN_NO_OPENMP=1 builds without threads; FASTBN_LIMITED_API=0 builds for the
running CPython alone. gcc and clang on Linux are tested; what is marked "untested" follows the documentation of Apple
clang and MSVC.
"""

import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

LIMITED_API = os.environ.get("FASTBN_LIMITED_API") != "0" and not sysconfig.get_config_var("Py_GIL_DISABLED")
NO_OPENMP = os.environ.get("FASTBN_NO_OPENMP") == "1"

# -fno-math-errno lets sqrt be one instruction; it has the same bits.
GNU_FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-fno-math-errno"]
# Untested. /fp:strict is the one mode that no release contracts in: before Visual Studio 2022 /fp:precise did.
MSVC_FLAGS = ["/std:c11", "/experimental:c11atomics", "/O2", "/fp:strict"]
# These would reach every file through CFLAGS and break the numeric contract in csrc/fastbn.h.
FORBIDDEN_FLAGS = {"-Ofast", "-ffast-math", "-funsafe-math-optimizations", "-fassociative-math", "-freciprocal-math",
                   "-ffinite-math-only", "-fno-signed-zeros", "/fp:fast"}

MACHINES = {"x86_64": "defined(__x86_64__) || defined(_M_X64)", "aarch64": "defined(__aarch64__) || defined(_M_ARM64)"}


def isa_of(source):
    """The <isa> of kernels_<isa>.c; None for any other source."""
    stem = Path(source).stem
    return stem.removeprefix("kernels_") if stem.startswith("kernels_") else None


class Isa(NamedTuple):
    """What the head of a kernels_<isa>.c says: the machine that it is for, and the flags that it alone gets."""

    machine: str
    gnu_flags: list[str]
    msvc_flags: list[str]


def read_isa(path):
    """The Isa of a kernels_<isa>.c; None for the kernels of any machine."""
    found = dict(re.findall(r"^ \* (machine|flags|flags of MSVC):(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
    return Isa(found["machine"].strip(), found["flags"].split(), found["flags of MSVC"].split()) if found else None


CSRC = Path(__file__).resolve().parent / "csrc"
ISAS = {isa_of(path): read_isa(path) for path in sorted(CSRC.glob("kernels_*.c")) if read_isa(path)}

OPENMP_SAMPLE = """#include <omp.h>
int f(void)
{
    int n = 0;
#pragma omp parallel
    n = omp_get_num_threads();
    return n;
}
"""


def openmp_candidates(msvc):
    """(compiler flags, linker flags), the preferred pair first."""
    if msvc:
        return [(["/openmp"], [])]  # untested
    candidates = [(["-fopenmp"], ["-fopenmp"])]
    if sys.platform == "darwin":  # untested: Apple clang has no -fopenmp of its own and takes libomp from outside
        for prefix in ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"):
            candidates.append((["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"], [f"-L{prefix}/lib", "-lomp"]))
        candidates.append((["-Xpreprocessor", "-fopenmp"], ["-lomp"]))
    return candidates


def one_mac_architecture():
    """Builds for the running architecture alone, where a "universal2" Python would ask for two. Untested.

    The flags of an instruction set fit one architecture only, so a build for both would have no kernels but the generic
    ones. ARCHFLAGS, where it is set, is left as it is.
    """
    if sys.platform == "darwin" and "ARCHFLAGS" not in os.environ:
        machine = platform.machine()
        os.environ["ARCHFLAGS"] = f"-arch {machine}"
        os.environ.setdefault("_PYTHON_HOST_PLATFORM", sysconfig.get_platform().replace("universal2", machine))


def refuse_fast_math():
    """No result may depend on CFLAGS."""
    found = sorted(FORBIDDEN_FLAGS.intersection(os.environ.get("CFLAGS", "").split()))
    if found:
        raise SystemExit(f"fastbn: CFLAGS contains {' '.join(found)}, which would change results; build without it")


def copy_public_header():
    """get_include() names fastbn/include, in a wheel and in an editable install alike; the source is in csrc/."""
    source, target = Path("csrc/fastbn.h"), Path("fastbn/include/fastbn.h")
    if not target.exists() or target.read_bytes() != source.read_bytes():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def project_version():
    return tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def c_string(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def say(text):
    print(f"fastbn: {text}", flush=True)


@contextmanager
def captured_output():
    """Takes what this process and its children print; yields a function that gives the first line naming an error."""
    with tempfile.TemporaryFile() as log:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = [os.dup(1), os.dup(2)]
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

        def first_error():
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            return next((line.strip() for line in lines if "error" in line.lower()), "no message")

        try:
            yield first_error
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, copy in zip((1, 2), saved):
                os.dup2(copy, target)
                os.close(copy)


class BuildExt(build_ext):
    """build_ext with flags for each source, chosen by asking the compiler."""

    def build_extension(self, ext):
        self.msvc = self.compiler.compiler_type == "msvc"
        self.isa_flags = self.find_isas()
        self.set_flags(ext)
        # File times do not tell of other flags: what the last build in this folder used is kept beside its objects.
        stamp, settings = Path(self.build_temp, "fastbn-settings.txt"), self.settings(ext)
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != settings:
            self.force = True
        compile_in_turn = self.compiler.compile
        self.compiler.compile = self.compile_side_by_side(compile_in_turn)
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_in_turn
        stamp.write_text(settings, encoding="utf-8")

    def set_flags(self, ext):
        openmp_compile, openmp_link = self.find_openmp()
        ext.extra_compile_args = (MSVC_FLAGS if self.msvc else GNU_FLAGS) + openmp_compile
        # Python's own flags bring -g: five times the size and half as much time again. CFLAGS=-g brings it back.
        if not self.msvc and "CFLAGS" not in os.environ:
            ext.extra_compile_args.append("-g0")
        # pthread_atfork was in a library of its own before glibc 2.34, and OpenMP would bring it only where it is used.
        ext.extra_link_args = openmp_link + (["-pthread"] if sys.platform.startswith("linux") else [])
        ext.sources = [source for source in ext.sources if isa_of(source) in {None, "generic", *self.isa_flags}]
        ext.define_macros += [(f"FBN_HAVE_{isa.upper()}", "1") for isa in self.isa_flags]
        ext.define_macros.append(("FBN_BUILD_FLAGS", c_string(self.describe_flags(ext))))

    def find_isas(self):
        """{name: flags} of the instruction sets that the compiler accepts for its target, perhaps another machine."""
        found = {}
        for name, isa in ISAS.items():
            guard = f"#if !({MACHINES[isa.machine]})\n#error other architecture\n#endif\n"
            if self.refusal(guard, []):
                continue
            flags = isa.msvc_flags if self.msvc else isa.gnu_flags
            reason = self.refusal(f'#include "{(CSRC / "vec" / f"vec_{name}.h").as_posix()}"\n', flags)
            if reason is None:
                found[name] = flags
            else:
                say(f"no {name} kernels: the compiler refuses {' '.join(flags) or 'their intrinsics'} ({reason})")
        return found

    def find_openmp(self):
        if NO_OPENMP:
            say("built without OpenMP, as FASTBN_NO_OPENMP=1 asks: every call runs on one thread")
            return [], []
        reasons = []
        for compile_flags, link_flags in openmp_candidates(self.msvc):
            reason = self.refusal(OPENMP_SAMPLE, compile_flags, link_flags)
            if reason is None:
                return compile_flags, link_flags
            reasons.append(reason)
        say(f"built without OpenMP, which the compiler does not offer: every call runs on one thread ({reasons[0]})")
        return [], []

    def refusal(self, source, compile_flags, link_flags=None):
        """None where the compiler (and, given link_flags, the linker) takes the source, else its first error."""
        with tempfile.TemporaryDirectory() as folder, captured_output() as first_error:
            path = Path(folder, "sample.c")
            path.write_text(source, encoding="utf-8")
            try:
                objects = self.compiler.compile([str(path)], output_dir=folder, extra_postargs=compile_flags)
                if link_flags is not None:
                    self.compiler.link_shared_object(objects, str(Path(folder, "sample.so")), extra_postargs=link_flags)
            except (CompileError, LinkError):
                return first_error()
        return None

    def describe_flags(self, ext):
        own = [f"{isa}: {' '.join(flags)}" for isa, flags in self.isa_flags.items() if flags]
        general = [*os.environ.get("CFLAGS", "").split(), *ext.extra_compile_args]
        return "; ".join([" ".join(general), *own])

    def settings(self, ext):
        tools = [getattr(self.compiler, name, None) for name in ("compiler_so", "linker_so")]
        return repr((tools, ext.extra_compile_args, ext.extra_link_args, ext.define_macros, self.isa_flags))

    def compile_side_by_side(self, compile_in_turn):
        """A compile() that gives every kernel file its own flags and uses all processors."""

        def compile_one(source, extra_postargs, options):
            flags = extra_postargs + self.isa_flags.get(isa_of(source), [])
            return compile_in_turn([source], extra_postargs=flags, **options)

        def compile_all(sources, extra_postargs=None, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [pool.submit(compile_one, source, extra_postargs or [], options) for source in sources]
                return [name for job in jobs for name in job.result()]

        return compile_all

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        # CPython looks first for the name that carries its version: one left from before would hide the abi3 one.
        if LIMITED_API:
            Path("fastbn", "_core" + sysconfig.get_config_var("EXT_SUFFIX")).unlink(missing_ok=True)


def core_extension():
    import numpy  # here, so that nothing but a build needs it

    macros = [
        ("FASTBN_VERSION", c_string(project_version())),
        ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
        ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),  # that of NumPy 1.26, the oldest supported
    ]
    if LIMITED_API:
        macros.append(("Py_LIMITED_API", "0x030B0000"))
    folder = Path("csrc")
    depends = ["setup.py", "pyproject.toml", *sorted(path.as_posix() for path in Path("fastbn").glob("*.px[di]"))]
    for pattern in ("**/*.h", "**/*.inc"):
        depends += sorted(path.as_posix() for path in folder.glob(pattern))
    return Extension(
        "fastbn._core",
        sources=["fastbn/_core.pyx", *sorted(path.as_posix() for path in folder.glob("**/*.c"))],
        include_dirs=["csrc", numpy.get_include()],
        define_macros=macros,
        depends=depends,
        py_limited_api=LIMITED_API,
    )


if __name__ == "__main__":
    refuse_fast_math()
    one_mac_architecture()
    copy_public_header()
    setup(
        ext_modules=[core_extension()],
        cmdclass={"build_ext": BuildExt},
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
    )
