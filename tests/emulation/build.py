"""Compiles the CUDA half of the extension with a plain C++ compiler, to run it on the CPU.

``build()`` makes one shared library of ``csrc/*.cpp`` and ``csrc/cuda/*.cu``; ``load()`` brings it
into the process, where its operators are ``torch.ops.deepgen_ext_emulated``. Objects are kept in
``build/emulation`` under a hash of everything they depend on.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "emulation"
JOBS = 2

FLAGS = [
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-fno-strict-aliasing",
    "-DDEEPGEN_EMULATED",
    "-DDEEPGEN_NAMESPACE=deepgen_ext_emulated",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-unused-parameter",
    "-Wno-missing-field-initializers",
    "-Wno-address",
    "-Wno-sign-compare",
]
PLAIN_FLAGS = ["-O1", "-g1"]
SANITIZE_FLAGS = [
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=undefined",
]


class EmulationUnavailable(RuntimeError):
    """What the emulation needs is not on this machine; the message says what."""


def compiler() -> str:
    path = shutil.which(os.environ.get("DEEPGEN_EMULATION_CXX", "g++"))
    if path is None:
        raise EmulationUnavailable("the CUDA emulation needs g++")
    return path


@functools.cache
def cuda_include() -> Path:
    """The folder of NVIDIA's headers: from nvcc, CUDA_HOME, the usual place, or a wheel."""
    tops: list[Path] = []
    if nvcc := shutil.which("nvcc"):
        # nvcc may be a wrapper script anywhere: only it knows where its toolkit is.
        said = subprocess.run(
            [nvcc, "-v", "-E", "-x", "cu", "/dev/null"], capture_output=True, text=True
        )
        if found := re.search(r"\bTOP=(\S+)", said.stdout + said.stderr):
            tops.append(Path(found[1]))
    tops += [Path(os.environ[k]) for k in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(k)]
    tops.append(Path("/usr/local/cuda"))
    folders = [
        top / include
        for top in tops
        for include in ("include", f"targets/{platform.machine()}-linux/include")
    ]
    folders += sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/include"))
    for folder in folders:
        if all((folder / h).is_file() for h in ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h")):
            return folder.resolve()
    raise EmulationUnavailable(
        "the CUDA emulation needs the headers of a CUDA toolkit (cuda_runtime.h, cuda_bf16.h)"
    )


def _torch_flags() -> tuple[list[str], list[str]]:
    """Flags to compile and to link against the installed torch."""
    import torch
    from torch.utils.cpp_extension import include_paths

    library = Path(torch.__file__).parent / "lib"
    abi = int(torch.compiled_with_cxx11_abi())
    compile_flags = [f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    for path in include_paths():
        compile_flags += ["-isystem", path]
    link_flags = [f"-L{library}", f"-Wl,-rpath,{library}", "-ltorch_cpu", "-ltorch", "-lc10"]
    return compile_flags, link_flags


def _digest(*parts: bytes | str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(str(len(data)).encode() + b":" + data)
    return digest.hexdigest()[:20]


def _contents(depfile: Path) -> list[Path]:
    """The project's files that an object was made of, as the compiler listed them."""
    text = depfile.read_text().replace("\\\n", " ")
    return [Path(name) for name in text.split(":", 1)[1].split()]


def _object(depfile: Path) -> Path | None:
    """The object of the files as they are now; None when nothing is known of them."""
    if not depfile.exists():
        return None
    paths = _contents(depfile)
    if not all(p.is_file() for p in paths):
        return None
    digest = _digest(*(part for p in paths for part in (str(p), p.read_bytes())))
    return depfile.with_name(f"{depfile.stem}-{digest}.o")


def _run(command: list[str], target: Path) -> Path:
    """Runs a compiler that writes to a temporary name, so that no half-written file is found."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{os.getpid()}-{target.name}")
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    sys.stderr.write(done.stderr)  # warnings
    os.replace(partial, target)
    return target


def default_sources() -> list[Path]:
    """The glue and the CUDA kernels, without the CPU kernels and the Python module."""
    csrc = ROOT / "csrc"
    glue = [
        p
        for p in sorted(csrc.glob("*.cpp"))
        if p.name not in {"python_bindings.cpp", "gradient.cpp", "call_record.cpp"}
    ]
    return glue + sorted((csrc / "cuda").glob("*.cu"))


def build(sources: list[Path] | None = None, sanitize: bool = False) -> Path:
    """Compiles and links the sources (default: ``default_sources()``) into a shared library.

    ``.cu`` files are compiled as C++ with ``cuda_emulation.h`` included first; ``.cpp`` files see
    torch, and bring it into the link. Raises EmulationUnavailable without g++ or CUDA headers, and
    RuntimeError with the compiler's words when a source does not compile.
    """
    cxx, cuda = compiler(), cuda_include()
    sources = [Path(s).resolve() for s in (default_sources() if sources is None else sources)]
    if not sources:
        raise ValueError("build: no sources")
    torch_flags, torch_link = (
        _torch_flags() if any(s.suffix == ".cpp" for s in sources) else ([], [])
    )
    mode = SANITIZE_FLAGS if sanitize else PLAIN_FLAGS
    common = [*FLAGS, *mode, f"-I{ROOT / 'csrc'}", f"-I{EMULATION}", "-isystem", str(cuda)]
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
    if torch_flags:
        version += "torch " + sys.modules["torch"].__version__

    def compile_one(source: Path) -> Path:
        if source.suffix == ".cu":
            flags = [*common, "-include", str(EMULATION / "cuda_emulation.h"), "-x", "c++"]
        else:
            flags = [*common, *torch_flags]
        depfile = BUILD / f"{source.stem}-{_digest(str(source), *flags, version)}.d"
        known = _object(depfile)
        if known and known.exists():
            return known
        started = time.time()
        listed = depfile.with_name(f"{os.getpid()}-{depfile.name}")
        new = depfile.with_suffix(f".{os.getpid()}.o")
        _run([cxx, *flags, "-MMD", "-MF", str(listed), "-c", str(source)], new)
        os.replace(listed, depfile)
        target = _object(depfile)
        if target is None or any(p.stat().st_mtime > started for p in _contents(depfile)):
            # Edited while it was compiled: good for this call, found by no later one.
            target = depfile.with_name(f"{depfile.stem}-{started}.o")
        os.replace(new, target)
        return target

    with ThreadPoolExecutor(JOBS) as pool:
        objects = [str(o) for o in pool.map(compile_one, sources)]
    link = ["-shared", "-Wl,--no-undefined", *torch_link, *(mode if sanitize else [])]
    target = BUILD / f"library-{_digest(*objects, ' '.join(link), version)}.so"
    return target if target.exists() else _run([cxx, *objects, *link], target)


@functools.cache
def load(sanitize: bool = False) -> Path:
    """Builds the emulated extension and registers ``torch.ops.deepgen_ext_emulated``.

    With ``sanitize`` the process must have been started in ``sanitized_environment()``.
    """
    import torch  # noqa: F401  the library needs torch's symbols

    library = build(sanitize=sanitize)
    # Not torch.ops.load_library: it makes symbols global, and those of the extension are namesakes.
    ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    return library


def sanitized_environment() -> dict[str, str]:
    """The environment for a Python subprocess that loads a library built with ``sanitize``."""

    def runtime(name: str) -> str:
        path = subprocess.run(
            [compiler(), f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        if not Path(path).is_absolute():
            raise EmulationUnavailable(f"the compiler has no {name}")
        return str(Path(path).resolve())

    # libstdc++ too: without it ASan finds no __cxa_throw to wrap, and the first exception is fatal.
    preload = [runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:abort_on_error=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
