"""Builds and installs ipython1."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "ipython1" / "__init__.py").read_text(), re.MULTILINE)
README = HERE / "README.rst"

setup(
    name="ipython1",
    version=VERSION[1],
    description="Interactive parallel computing: a controller, engines, and clients that drive them",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/x-rst",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["ipython1", "ipython1.*"]),
    package_data={"ipython1": ["py.typed"], "ipython1.kernel": ["py.typed"], "ipython1.web": ["static/*"]},
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        "click>=8.1",
        "cloudpickle>=3",
        "cryptography>=42",
        "foolscap>=24.9",
        "ipython>=8.12",
        "msgpack>=1.0.5",
        "psutil>=5.9",
        "pyOpenSSL>=24.3",
        "rich>=13",
        "tqdm>=4.64",
        "twisted[tls]>=23.10",
        "wrapt>=1.15",
        "zope.interface>=5.4",
    ],
    extras_require={
        "test": [
            "hypothesis>=6.80",
            "ipykernel>=6.20",
            "joblib>=1.3",
            "matplotlib>=3.7",
            "nbclient>=0.8",
            "numpy",
            "pandas",
            "pexpect>=4.8",
            "pytest>=7.4",
            "pytest-timeout>=2.1",
            "pytest-xdist>=3.5",
            "scikit-learn>=1.3",
        ],
        "dask": ["distributed>=2023.1"],
        "mpi": ["mpi4py>=3.1"],
        "services": ["dask[array,dataframe]", "distributed>=2023.1", "mpi4py>=3.1", "nbconvert>=7"],
        "bench": ["distributed", "ipyparallel", "matplotlib", "numpy", "ray"],
        "docs": ["sphinx>=7"],
        "lint": ["mypy>=1.8", "mypy-zope>=1.0", "ruff>=0.4"],
    },
    entry_points={
        "console_scripts": [
            "ipcluster = ipython1.scripts.ipcluster:main",
            "ipcontroller = ipython1.scripts.ipcontroller:main",
            "ipengine = ipython1.scripts.ipengine:main",
        ],
        "ipython1.launchers": [
            "local = ipython1.launch.local:LocalLauncher",
            "ssh = ipython1.launch.ssh:SshLauncher",
            "mpi = ipython1.launch.mpi:MpiLauncher",
            "slurm = ipython1.launch.batch:Slurm",
            "pbs = ipython1.launch.batch:PBS",
            "sge = ipython1.launch.batch:SGE",
            "lsf = ipython1.launch.batch:LSF",
            "htcondor = ipython1.launch.batch:HTCondor",
        ],
    },
    classifiers=[
        "Framework :: IPython",
        "Framework :: Twisted",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
