"""Builds and installs arkfast: the Python packages, among them the top-level ``kernels/<op>`` through their links, and the C++ extension.

The extension is optional. Without a working compiler the install succeeds and ``LogMel`` runs on its NumPy reference;
set ``ARKFAST_REQUIRE_EXT=1`` to make a failed build an error.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def check_links() -> None:
    """Stop where a folder of ``kernels/`` is not in ``arkfast/kernels``: it would be left out of what is built, in silence."""
    ops = sorted(path.parent.name for path in (ROOT / "kernels").glob("*/__init__.py"))
    lost = [op for op in ops if not (ROOT / "arkfast" / "kernels" / op / "__init__.py").is_file()]
    if lost:
        sys.exit(
            f"arkfast: error: arkfast/kernels has no link to {', '.join(f'kernels/{op}' for op in lost)}: this copy of the repository has "
            "lost its symbolic links; clone it with 'git clone -c core.symlinks=true' (on Windows turn on its Developer Mode before), or "
            "unpack an archive with a program that keeps links"
        )


class FreshBuildPy(build_py):
    """Empties the build's copy of the package first: a module that was renamed since the last build would live on in the wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            built = Path(self.build_lib) / "arkfast"
            if built.exists():
                shutil.rmtree(built)
        super().run()


class CMakeBuild(build_ext):
    """Runs CMake with Ninja in ``build/``, so that an unchanged rebuild takes a second or two."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI') or 'native'}"
        try:
            import pybind11

            configure = [
                "cmake", "-G", "Ninja", "-S", str(ROOT / "csrc"), "-B", str(build_dir),
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DPYTHON_EXECUTABLE={sys.executable}",
            ]  # fmt: skip
            if compiler := os.environ.get("CXX"):
                configure.append(f"-DCMAKE_CXX_COMPILER={compiler}")
            if subprocess.run(configure).returncode:
                # A cached generator, compiler or build tool of an earlier environment can be gone: configure once more from nothing.
                subprocess.run([*configure, "--fresh"], check=True)
            subprocess.run(["cmake", "--build", str(build_dir)], check=True)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("ARKFAST_REQUIRE_EXT") == "1":
                raise
            print(f"arkfast: no C++ extension ({error}); LogMel will run on its NumPy reference", file=sys.stderr)

    def get_source_files(self) -> list[str]:
        return []


check_links()
setup(
    packages=find_packages(include=["arkfast", "arkfast.*"]),
    package_data={"arkfast": ["py.typed", "*.pyi"], "arkfast.reports": ["templates/*"], "arkfast.serve.page": ["static/*"]},
    ext_modules=[Extension("arkfast._C", [], optional=True)],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshBuildPy},
)
