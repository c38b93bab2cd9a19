"""Build of deepgen_ext: C++ always, CUDA wherever an nvcc is found.

The C++ half goes through torch's BuildExtension (ninja, dependency tracking). The CUDA half is compiled by nvcc
here, because CUDAExtension refuses to work beside a CPU build of torch; the kernels include nothing of torch, so
that they compile in seconds and link against any torch.

Environment: DEEPGEN_CUDA=0 skips CUDA; DEEPGEN_CUDA_ARCHS="80;90" chooses the architectures; MAX_JOBS bounds the
parallel compilers.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
MINIMUM_GXX = (11, 0)
MINIMUM_NVCC = (12, 0)
DEFAULT_ARCHS = "80;90"


def stop(sentence):
    sys.exit(f"\ndeepgen_ext: {sentence}\n")


try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    stop(
        f"torch cannot be imported by the Python that builds ({error}). Install torch first, then run "
        "`pip install --no-build-isolation .` so that the build sees it."
    )


def version_tuple(text):
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def check_compiler():
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        stop(
            f"no C++ compiler: `{compiler}` is not on PATH. Install g++ {MINIMUM_GXX[0]} or newer."
        )
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    first_line = said.splitlines()[0] if said else compiler
    if "clang" not in first_line.lower():
        dumped = subprocess.run(
            [compiler, "-dumpfullversion"], capture_output=True, text=True
        ).stdout.strip()
        if dumped and version_tuple(dumped) < MINIMUM_GXX:
            stop(
                f"{compiler} {dumped} is too old: C++20 needs g++ {MINIMUM_GXX[0]} or newer "
                "(point CXX at one)."
            )
    return first_line


class Nvcc:
    """The CUDA compiler, its version and the toolkit it belongs to."""

    def __init__(self, path):
        self.path = path
        said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        match = re.search(r"release (\d+\.\d+)", said)
        self.version = match.group(1) if match else "unknown"
        # nvcc may be a wrapper script, so its own location says nothing: ask it where its toolkit is.
        dry_run = subprocess.run(
            [path, "-v", "-E", "-x", "cu", "/dev/null"], capture_output=True, text=True
        )
        top = re.search(r"TOP=(.+)", dry_run.stdout + dry_run.stderr)
        self.toolkit = Path(top.group(1).strip()) if top else Path(path).resolve().parents[1]

    @property
    def include(self):
        return self.toolkit / "include"

    @property
    def static_runtime(self):
        for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            library = self.toolkit / folder / "libcudart_static.a"
            if library.exists():
                return library
        return None


def find_nvcc():
    """The nvcc to use and, where there is none, the reason in words."""
    if os.environ.get("DEEPGEN_CUDA", "1") == "0":
        return None, "DEEPGEN_CUDA=0"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = str(Path(home, "bin", "nvcc")) if home and Path(home, "bin", "nvcc").exists() else None
    path = path or shutil.which("nvcc")
    if path is None and Path("/usr/local/cuda/bin/nvcc").exists():
        path = "/usr/local/cuda/bin/nvcc"
    if path is None:
        return None, "no nvcc on PATH or under CUDA_HOME"
    nvcc = Nvcc(path)
    if nvcc.version != "unknown" and version_tuple(nvcc.version) < MINIMUM_NVCC:
        return None, f"nvcc {nvcc.version} is older than {MINIMUM_NVCC[0]}.{MINIMUM_NVCC[1]}"
    if not (nvcc.include / "cuda_runtime.h").exists() or nvcc.static_runtime is None:
        return (
            None,
            f"the toolkit of nvcc {nvcc.version} has no cuda_runtime.h or libcudart_static.a",
        )
    return nvcc, None


def architectures():
    text = os.environ.get("DEEPGEN_CUDA_ARCHS", DEFAULT_ARCHS)
    archs = [part.strip().replace(".", "") for part in re.split(r"[;, ]+", text) if part.strip()]
    if not archs or not all(re.fullmatch(r"\d{2,3}a?", arch) for arch in archs):
        stop(f'DEEPGEN_CUDA_ARCHS must look like "80;90", not {text!r}.')
    return archs


def parallel_jobs():
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    # A compiler takes up to 1.5 GB: never start more of them than memory holds.
    try:
        gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        gigabytes = 4
    return max(1, min(os.cpu_count() or 1, int(gigabytes / 2)))


class Build(BuildExtension):
    """BuildExtension, preceded by our own nvcc and followed by a record of what was built."""

    def finalize_options(self):
        super().finalize_options()
        # pip would take a temporary folder and compile everything anew each time.
        python = f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
        self.build_temp = str(ROOT / "build" / python)

    def build_extensions(self):
        compiler = check_compiler()
        nvcc, reason = find_nvcc()
        archs = architectures() if nvcc else []
        extension = self.extensions[0]
        if "clang" not in compiler.lower():
            # GCC threads jumps past a clamp, computes its two ends apart, and vectorises that: half the speed.
            extension.extra_compile_args.append("-fno-thread-jumps")
        os.environ.setdefault("MAX_JOBS", str(parallel_jobs()))
        if nvcc:
            extension.extra_objects += self.compile_cuda(nvcc, archs)
            extension.define_macros.append(("DEEPGEN_WITH_CUDA", "1"))
            extension.include_dirs.append(str(nvcc.include))
            # The static runtime: no libcudart to find at run time, none to clash with torch's.
            extension.extra_link_args += [str(nvcc.static_runtime), "-ldl", "-lrt", "-lpthread"]
        else:
            print(f"deepgen_ext: building the CPU kernels only ({reason}).")
        super().build_extensions()
        self.write_record(
            {
                "torch": torch.__version__,
                "compiler": compiler,
                "nvcc": nvcc.version if nvcc else None,
                "cuda_archs": archs,
                "no_cuda_because": reason,
                "ops": {  # those that have a kernel of ours, and where
                    source.stem: ["cpu"] + ["cuda"] * bool(nvcc and source.parent.name == "cpu")
                    for source in sorted(ROOT.glob("csrc/cpu*/*.cpp"), key=lambda s: s.stem)
                },
            }
        )

    def compile_cuda(self, nvcc, archs):
        folder = Path(self.build_temp).resolve() / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        flags = [
            "-O3",
            "-std=c++20",
            "-Xcompiler",
            "-fPIC,-fvisibility=hidden",
            f"-I{ROOT / 'csrc'}",
        ]
        flags += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        newest = archs[-1]
        flags.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        if os.environ.get("DEEPGEN_PTXAS_INFO"):
            flags.append("-Xptxas=-v")
        (folder / "flags.txt").touch()
        same_flags = (folder / "flags.txt").read_text() == " ".join([nvcc.version, *flags])

        def compile_one(source):
            target = folder / f"{source.stem}.o"
            if not (same_flags and is_newer_than_its_inputs(target)):
                command = [nvcc.path, *flags, "-MMD", "-c", str(source), "-o", str(target)]
                print(" ".join(command))
                if subprocess.run(command).returncode:
                    stop(f"nvcc could not compile {source.relative_to(ROOT)} (see above).")
            return str(target)

        with ThreadPoolExecutor(parallel_jobs()) as pool:
            objects = list(pool.map(compile_one, sorted(ROOT.glob("csrc/cuda/*.cu"))))
        (folder / "flags.txt").write_text(" ".join([nvcc.version, *flags]))
        return objects

    def run(self):
        # setuptools clears `inplace` while it builds, and copies the library afterwards.
        self.in_tree = self.inplace or getattr(self, "editable_mode", False)
        super().run()

    def write_record(self, record):
        package = (ROOT if self.in_tree else Path(self.build_lib)) / "deepgen_ext"
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(record, indent=1) + "\n")

    def get_source_files(self):
        return [
            *super().get_source_files(),
            *(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.*")),
        ]


def is_newer_than_its_inputs(target):
    """Whether an object file is newer than all files that the compiler noted to have read for it."""
    note = target.with_suffix(".d")
    if not (target.exists() and note.exists()):
        return False
    _, _, names = note.read_text().replace("\\\n", " ").partition(" : ")
    if not names.strip():
        return False
    inputs = [Path(name.replace("\\ ", " ")) for name in re.split(r"(?<!\\)\s+", names.strip())]
    built = target.stat().st_mtime
    return all(path.exists() and path.stat().st_mtime < built for path in inputs)


def cpp_extension():
    sources = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu*/*.cpp")]
    return CppExtension(
        "deepgen_ext._C",
        sorted(str(source.relative_to(ROOT)) for source in sources),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=[
            *("-O3", "-std=c++20", "-g0", "-fopenmp", "-fvisibility=hidden", "-Wall"),
            # Vector code needs these two; -ffast-math would set flush-to-zero for the whole process.
            *("-fno-math-errno", "-fno-trapping-math"),
            # Vectors are passed to functions that are inlined, never through a call.
            "-Wno-psabi",
        ],
        extra_link_args=["-fopenmp", "-Wl,-s", *no_undefined_symbols()],
    )


def no_undefined_symbols():
    """Report a missing symbol at link time, where libpython is a library that can be linked against."""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return []
    folder, version = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDVERSION")
    return ["-Wl,--no-undefined", f"-L{folder}", f"-lpython{version}"]


setup(ext_modules=[cpp_extension()], cmdclass={"build_ext": Build})
