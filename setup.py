"""Installation of gh_downstream: ``pip install -e .`` needs torch alone; the extras bring what each workload needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "gh_downstream" / "__init__.py").read_text())

TRAINING = [
    "accelerate>=1.0",
    "matplotlib>=3.7",
    "jinja2>=3.1",
    "omegaconf>=2.3",
    "rich>=13",
    "tensorboard>=2.14",
    "tqdm>=4.65",
]
EXTRAS = {
    "detection": [*TRAINING, "numpy>=1.24", "pillow>=10", "pycocotools>=2.0.7", "torchvision>=0.19"],
    "retrieval": [*TRAINING, "open_clip_torch>=3.0", "pillow>=10", "torchvision>=0.19", "transformers>=4.40"],
    "classification": [*TRAINING, "h5py>=3.8", "pillow>=10", "scikit-learn>=1.3", "timm>=1.0", "torchvision>=0.19"],
    "lora": ["peft>=0.17"],
    "torchjd": ["torchjd[cagrad,fairgrad,quadprog_projector]>=0.18,<0.20"],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
# What Detectron2 itself needs where it is used from a source tree; it is on no registry.
EXTRAS["detectron2"] = [
    *EXTRAS["detection"],
    *("black", "cloudpickle", "fvcore", "hydra-core>=1.3", "iopath", "setuptools<81", "tabulate", "termcolor", "yacs"),
]
EXTRAS["dev"] = [
    *EXTRAS["detection"],
    *EXTRAS["retrieval"],
    *EXTRAS["classification"],
    *EXTRAS["lora"],
    *EXTRAS["torchjd"],
    "datasets>=3.0",  # format=hf of the retrieval data, and the trainer of sentence-transformers
    "faiss-cpu>=1.9",
    "hypothesis>=6.100",
    "lightning>=2.4",
    "mypy>=1.10",
    "pandas>=2.0",  # open_clip_train imports it
    "pytest>=8.2",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
    "sentence-transformers>=6.0",
    "types-pyyaml",
    "types-tqdm",
    "wandb>=0.20",
    "webdataset>=0.2.86",  # writes the shards that the tests read; open_clip_train imports it
]

setup(
    name="gh_downstream",
    version=VERSION.group(1) if VERSION else "",
    description="Gradient Harmonization (GH, GH++) for detection, image-text retrieval and any PyTorch loop",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["gh_downstream", "gh_downstream.*"]),
    package_data={"gh_downstream": ["py.typed", "reporting/templates/*.html"]},
    install_requires=["torch>=2.4"],
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
