# A recipe for Spack: `spack repo create persia`, then this file as packages/py_persia_hpc/package.py of that.
# Spack before 1.0: py-persia-hpc as the folder, and without the line that imports PythonPackage.
from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyPersiaHpc(PythonPackage):
    """Hybrid training of recommendation models on MPI, with embedding tables larger than any GPU."""

    homepage = "https://arxiv.org/abs/2111.05897"  # the paper of the method
    git = "file:///path/of/your/checkout"  # put it here

    license("Apache-2.0 AND BSD-3-Clause AND CC-BY-4.0")

    version("main", branch="main")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.20:", type="build")
    depends_on("ninja", type="build")
    depends_on("py-scikit-build-core@0.10:", type="build")
    depends_on("py-pybind11@2.13:", type="build")

    depends_on("python@3.10:", type=("build", "link", "run"))
    depends_on("mpi", type=("build", "run"))
    depends_on("py-h5py@3.10:", type=("build", "run"))
    depends_on("py-hdf5plugin@4.4:", type=("build", "run"))
    depends_on("py-mpi4py@4.0:", type=("build", "run"))
    depends_on("py-numpy@1.26:", type=("build", "run"))
    depends_on("py-polars@1.30:", type=("build", "run"))
    depends_on("py-tomli@2.0:", type=("build", "run"), when="^python@:3.10")
    depends_on("py-torch@2.4:", type=("build", "run"))
