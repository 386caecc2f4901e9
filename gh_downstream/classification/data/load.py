"""One call for every format."""

from dataclasses import dataclass
from pathlib import Path

from gh_downstream.classification.data.benchmarks import BENCHMARKS
from gh_downstream.classification.data.digits import FORMATS, load_digits
from gh_downstream.classification.data.embedded import DOMAINS, load_embedded
from gh_downstream.classification.data.folders import load_folder, load_list
from gh_downstream.classification.data.records import ClassificationDataset

_CHOICES = {"format": ("embedded", *FORMATS, "folder", "list"), "split": ("train", "test"), "benchmark": BENCHMARKS}


@dataclass
class DataConfig:
    """Which images, and how to read them.

    Attributes:
        format: ``embedded`` (digits that scikit-learn brings: no download), ``mnist`` (the folder of idx files, or
            .npz), ``usps`` (.h5, LIBSVM's .bz2 or the folder of both, or .npz), ``svhn`` (.mat, or the folder of both),
            ``folder`` (a folder for each class) or ``list`` (a text file with the path and the label of an image in
            each line).
        path: The file or folder; null for ``embedded`` alone.
        split: ``train`` or ``test``, of the digits, by default ``train``; a folder and a list have none of their own.
        domain: ``source`` or ``target``, of ``embedded`` alone.
        root: Folder that relative paths in a list start from; by default that of the list.
        benchmark: What a folder or list has to be, such as ``office31/amazon``, ``office-home/Real World``,
            ``visda-2017/validation`` or ``domainnet/clipart_train``: the number of classes and of images is checked.

    Raises:
        ValueError: A value is none of those, or is given for a format that has no use for it.
    """

    format: str
    path: str | None = None
    split: str | None = None
    domain: str | None = None
    root: str | None = None
    benchmark: str | None = None

    def __post_init__(self) -> None:
        for key, known in _CHOICES.items():
            if (value := getattr(self, key)) not in known and (key == "format" or value is not None):
                raise ValueError(f"{key} must be one of {', '.join(known)}; got {value!r}")
        embedded = self.format == "embedded"
        if embedded and self.domain not in DOMAINS:
            raise ValueError(f"format=embedded needs domain={'|'.join(DOMAINS)}; got {self.domain!r}")
        if not embedded and not self.path:
            raise ValueError(f"format={self.format} needs path=, the file or folder")
        files = self.format in ("folder", "list")
        useless = {
            "path": embedded and self.path is not None,
            "domain": not embedded and self.domain is not None,
            "root": self.format != "list" and self.root is not None,
            "benchmark": not files and self.benchmark is not None,
            "split": files and self.split == "test",
        }
        for key, given in useless.items():
            if given:
                raise ValueError(f"format={self.format} has no {key}; leave {key}={getattr(self, key)} out")
        self.split = None if files else self.split or "train"


def load_dataset(config: DataConfig, labels: bool = True) -> ClassificationDataset:
    """Read which images there are, and their labels; image files are looked for, and not opened.

    Without ``labels``, for a target, a folder need not hold folders of classes.

    Raises:
        FileNotFoundError: A file or folder does not exist.
        ImportError: The format needs a library that is not installed.
        ValueError: A file cannot be read as the format says, or it is not the benchmark.
    """
    split = config.split or "train"
    try:
        if config.path is None:
            assert config.domain is not None  # DataConfig has seen to it
            return load_embedded(config.domain, split)
        path = Path(config.path)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if not (path.is_dir() or path.is_file()):  # a pipe would be waited for
            raise ValueError(f"{path} is neither a file nor a folder")
        if config.format == "folder":
            return load_folder(path, config.benchmark, labels)
        if config.format == "list":
            return load_list(path, Path(config.root) if config.root else None, config.benchmark)
        return load_digits(config.format, path, split)
    except ImportError as error:
        raise ImportError(
            f"format={config.format} needs {error.name}: pip install 'gh_downstream[classification]'"
        ) from error
