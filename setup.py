"""Builds fastbn._core: the C core in csrc/ and its Cython face, in one extension module.

What pyproject.toml cannot say is here:
- each csrc/kernels_<isa>.c gets the flags of its instruction set and no other file does, so that everything else runs
  on any processor of the architecture, and the choice among the kernels is made at run time;
- instruction sets and OpenMP are tried on the compiler first and left out, with a printed line, where it refuses;
- no flag may change a result: no fused multiply-add made out of * and +, nothing of the fast-math family.

The extension is built for the limited API of CPython 3.11 (abi3), so that one wheel serves every later version: it was
measured to cost a call of the layer at (1, 64) some 20 ns of 430. Free-threaded CPython has no limited API and gets a
wheel of its own.

Nothing is made twice: C files and what Cython makes are named by a hash of all that they depend on and kept in
build/objects (see Store), since pip builds in another environment, with other paths, every time.

Environment: CC and CFLAGS as usual; FASTBN_NO_OPENMP=1 builds without threads; FASTBN_LIMITED_API=0 builds for the
running CPython alone; FASTBN_OBJECTS is a folder to use in place of build/objects. gcc and clang on Linux are tested; what is
marked "untested" follows the documentation of Apple clang and MSVC.
"""

import copy
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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

CYTHON_FILES = {".pyx", ".pxd", ".pxi"}

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


def project():
    return tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]


def readme_elsewhere(text, repository):
    """README.md as a package index shows it, where no file lies beside it: links and pictures lead to the repository.

    Without a repository links become their words, and pictures are left out.
    """
    def moved(found):
        picture, words, path = found.groups()
        if repository:
            return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/main/{path})"
        return "" if picture else words

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", moved, text)


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


def copy_whole(source, target):
    """Another build may read or write the target at the same time: it never sees a part of the file."""
    own_name = Path(f"{target}.{os.getpid()}")
    own_name.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, own_name)
    own_name.replace(target)


class Store:
    """Files made earlier, each named by a hash of all that it was made of.

    The files that were unused for longest go. The folder is an aid alone: where it cannot be read or written, everything
    is made anew.
    """

    LIMIT = 400  # files: a build has some 40

    def __init__(self):
        self.folder = Path(os.environ.get("FASTBN_OBJECTS") or "build/objects")

    def take(self, key, target):
        """Whether there was such a file; it is copied to target then. A key of None is that of no file."""
        with suppress(OSError):
            copy_whole(self.folder / str(key), target)
            os.utime(self.folder / key)
            return True
        return False

    def keep(self, key, source):
        with suppress(OSError):
            copy_whole(source, self.folder / key)

    def trim(self):
        with suppress(OSError):
            paths = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for path in paths[:-self.LIMIT]:
                path.unlink(missing_ok=True)


def hash_of(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def identity(command):
    """What the compiler says of itself, its target and its defaults; -march=native is resolved in it."""
    # From the root folder, since clang prints where it was started.
    done = subprocess.run([*command, "-E", "-v", "-x", "c", os.devnull], cwd=os.path.abspath(os.sep), check=True,
                          capture_output=True)
    return done.stdout + done.stderr


class BuildExt(build_ext):
    """build_ext with flags for each source, chosen by asking the compiler."""

    def build_extension(self, ext):
        self.msvc = self.compiler.compiler_type == "msvc"
        self.isa_flags = self.find_isas()
        self.set_flags(ext)
        self.store = Store()
        ext.sources = [self.translated(source) if source.endswith(".pyx") else source for source in ext.sources]
        self.force = True  # file times do not tell of other flags, and the store makes it cheap
        self.plain_compiler = copy.copy(self.compiler)
        self.compiler.compile = self.compile_all
        super().build_extension(ext)
        self.store.trim()

    def translated(self, source):
        """The C file that Cython makes of a .pyx, beside it: the object contains this path, which has to stay the same."""
        import Cython
        import numpy
        from Cython.Build import cythonize

        texts = [path.read_bytes() for path in sorted(Path(source).parent.glob("**/*")) if path.suffix in CYTHON_FILES]
        key = hash_of(Cython.__version__, numpy.__version__, source, texts)
        target = Path(source).with_suffix(".c")
        if not self.store.take(key, target):
            cythonize(source, build_dir=self.build_temp, force=True, quiet=True)
            copy_whole(Path(self.build_temp, target), target)
            self.store.keep(key, target)
        return target.as_posix()

    def set_flags(self, ext):
        self.openmp_flags, openmp_link = self.find_openmp()
        ext.extra_compile_args = (MSVC_FLAGS if self.msvc else GNU_FLAGS) + self.openmp_flags
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

    def compile_all(self, sources, extra_postargs, **options):
        """Takes the place of the compiler's compile(): every file has its own flags, and all processors compile."""
        objects = [Path(name) for name in self.compiler.object_filenames(sources, output_dir=options["output_dir"])]
        files = [Source(self, source, extra_postargs, options) for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            keys = list(pool.map(Source.key, files))
            missing = [job for job in zip(files, keys, objects) if not self.store.take(*job[1:])]
            missing.sort(key=lambda job: job[0].size, reverse=True)  # the largest first: none is left for the end
            with self.told(missing):
                list(pool.map(self.compile_one, missing))
        return list(map(str, objects))

    def compile_one(self, job):
        file, key, target = job
        file.compile()
        if key is not None:
            self.store.keep(key, target)

    @contextmanager
    def told(self, missing):
        """Says what is compiled, and how long the kernels, which take nearly all of the time, took last time."""
        kernels = sum(isa_of(file.path) is not None for file, _, _ in missing)
        record, start = self.store.folder / "seconds", time.monotonic()
        last = f" ({record.read_text()} s last time)" if kernels and record.exists() else ""
        say(f"compiles {len(missing)} C files, {kernels} of them kernels{last}" if missing else "no C file has changed")
        yield
        if kernels:
            with suppress(OSError):
                record.write_text(f"{time.monotonic() - start:.0f}")

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        # CPython looks first for the name that carries its version: one left from before would hide the abi3 one.
        if LIMITED_API:
            Path("fastbn", "_core" + sysconfig.get_config_var("EXT_SUFFIX")).unlink(missing_ok=True)


class Source:
    """A C file and its flags. Those of the core know no Python and are compiled without its include paths.

    Kernels know no threads either: without OpenMP's flags they serve builds with and without.
    """

    def __init__(self, build, path, flags, options):
        self.path, self.options = path, dict(options)
        unneeded = build.openmp_flags if isa_of(path) else []
        self.flags = [flag for flag in flags if flag not in unneeded] + build.isa_flags.get(isa_of(path), [])
        self.compiler, self.size = copy.copy(build.plain_compiler), os.path.getsize(path)
        if Path(path).is_relative_to("csrc"):
            self.compiler.set_include_dirs([])
            self.options["include_dirs"] = ["csrc"]

    def compile(self):
        self.compiler.compile([self.path], extra_postargs=self.flags, **self.options)

    def key(self):
        """A hash of the compiler, the flags and the preprocessed text without paths; None for MSVC and where it fails."""
        if self.compiler.compiler_type != "unix":
            return None
        with suppress(OSError, subprocess.CalledProcessError):
            return self.hash_of_text()
        return None  # compiling will tell what is wrong

    def hash_of_text(self):
        command = (*self.compiler.compiler_so, *self.flags)
        defines = [f"-D{name}={value}" for name, value in self.options["macros"]]
        folders = [f"-I{folder}" for folder in self.options["include_dirs"] + self.compiler.include_dirs]
        done = subprocess.run([*command, *defines, *folders, "-E", "-P", self.path], check=True, capture_output=True)
        self.size = len(done.stdout)
        here = None if "-g0" in self.flags else os.getcwd()  # what a debugger is told
        return hash_of(identity(command), command, here, done.stdout)


def core_extension():
    import numpy  # here, so that nothing but a build needs it

    macros = [
        ("FASTBN_VERSION", c_string(project()["version"])),
        ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
        ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),  # that of NumPy 1.26, the oldest supported
    ]
    if LIMITED_API:
        macros.append(("Py_LIMITED_API", "0x030B0000"))
    return Extension(
        "fastbn._core",
        sources=["fastbn/_core.pyx", *sorted(path.as_posix() for path in Path("csrc").glob("**/*.c"))],
        include_dirs=["csrc", numpy.get_include()],
        define_macros=macros,
        py_limited_api=LIMITED_API,
    )


if __name__ == "__main__":
    refuse_fast_math()
    one_mac_architecture()
    copy_public_header()
    setup(
        long_description=readme_elsewhere(Path("README.md").read_text(encoding="utf-8"),
                                          project().get("urls", {}).get("Repository")),
        long_description_content_type="text/markdown",
        ext_modules=[core_extension()],
        cmdclass={"build_ext": BuildExt},
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
    )
