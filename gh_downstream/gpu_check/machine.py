"""The machine and what runs on it: versions and clocks, collectives, recall, tests, trainings over seeds."""

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gh_downstream.gpu_check.networks import backward_of_sum, gradient, placed, small_classifier
from gh_downstream.gpu_check.setting import Checks, LeftOutError, Setting, relative_error
from gh_downstream.gpu_check.timing import timed
from gh_downstream.harmonization import Harmonizer, fork
from gh_downstream.reporting import Cell, Table

LIBRARIES = ["torch", "torchvision", "transformers", "timm", "accelerate", "omegaconf", "pycocotools", "torchjd"]

ROOT = Path(__file__).parents[2]
"""Of the source tree, where there is one."""


def versions(setting: Setting) -> Iterator[Table]:
    """Versions, the device, its clocks, and the two rates that bound everything."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in [*LIBRARIES, "pytest"]:
        found[name] = importlib.metadata.version(name) if importlib.util.find_spec(name) else "not installed"
    found |= {"CUDA of torch": str(torch.version.cuda), "threads": str(torch.get_num_threads())}
    if setting.on_gpu:
        properties = torch.cuda.get_device_properties(setting.device)
        found |= {"device": properties.name, "memory": f"{properties.total_memory / 2**30:.0f} GiB"}
        found["multiprocessors"] = str(properties.multi_processor_count)
        found["cuDNN"] = str(torch.backends.cudnn.version())
        source = torch.randn(setting.size(1 << 30, 1 << 20), device=setting.device)
        copying = _milliseconds(setting, partial(torch.empty_like(source).copy_, source))
        found["copy"] = f"{2 * source.nbytes / copying / 1e9:.2f} TB/s read and written"
        side = setting.size(8192, 256)
        for name, dtype in setting.precisions().items():
            a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
            found[f"product, {name}"] = (
                f"{2 * side**3 / _milliseconds(setting, partial(a.matmul, b)) / 1e9:.0f} TFLOP/s"
            )
        query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
            found |= dict(zip(query.split(","), told.strip().split(", "), strict=False))
        except (OSError, subprocess.TimeoutExpired) as error:
            found["nvidia-smi"] = str(error)
    yield Table("Machine", ["what", "value"], [*found.items()])


def _milliseconds(setting: Setting, run: Callable[[], object]) -> float:
    timed(setting, run, 3)  # To warm up.
    return timed(setting, run, 10)[0]


def one_rank(setting: Setting) -> Iterator[Table]:
    """A group of one process: DistributedDataParallel with both ways to harmonize, and what a reduction costs."""
    backend = "nccl" if setting.on_gpu else "gloo"
    checks = Checks(f"One process in a group of {backend}", "against the same step in no group")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            checks.add("DistributedDataParallel and the harmonizer", 1e-6, partial(_distributed, setting, forked=False))
            checks.add("DistributedDataParallel and fork", 1e-6, partial(_distributed, setting, forked=True))
            yield _reductions(setting)
        finally:
            dist.destroy_process_group()
    yield from checks.report()


def _distributed(setting: Setting, forked: bool) -> float:
    gradients = []
    for wrapped in (False, True):
        model = placed(setting, small_classifier)
        batch = model.batch()
        called = DistributedDataParallel(model) if wrapped else model
        if forked:
            backward_of_sum(called(batch, fork))
        else:
            harmonizer = Harmonizer("gh++", model.trunk, model=model)
            with called.no_sync() if isinstance(called, DistributedDataParallel) else nullcontext():
                harmonizer.backward(called(batch))
        gradients.append(gradient(model.parameters()))
    return relative_error(gradients[1], gradients[0])


def _reductions(setting: Setting) -> Table:
    """As many tensors as a CLIP has, one by one as now, and in one bucket."""
    sizes = [768 * 768] * setting.size(150, 2) + [768] * setting.size(150, 2)
    tensors = [torch.randn(size, device=setting.device) for size in sizes]
    bucket, gramian = torch.cat(tensors), torch.randn(2, 2, dtype=torch.float64, device=setting.device)

    def one_by_one() -> None:
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()

    runs: dict[str, Callable[[], object]] = {
        f"{len(sizes)} tensors, one by one": one_by_one,
        f"the same {bucket.nbytes >> 20} MiB in one bucket": partial(dist.all_reduce, bucket),
        "a Gramian of two tasks": partial(dist.all_reduce, gramian),
    }
    if setting.on_gpu:  # gloo cannot
        runs["the bucket, averaged"] = partial(dist.all_reduce, bucket, dist.ReduceOp.AVG)
    rows: list[list[Cell]] = [[name, _milliseconds(setting, run)] for name, run in runs.items()]
    return Table("All-reduce in a group of one", ["what", "ms"], rows, digits=3)


def recall(setting: Setting) -> Iterator[Table]:
    """Recall of 20 000 images and 100 000 captions, on the device and on the CPU."""
    from gh_downstream.retrieval.evaluation import evaluate_retrieval

    torch.manual_seed(0)
    images = torch.randn(setting.size(20_000, 200), 512)
    owner = torch.arange(5 * len(images)) // 5
    texts = images[owner] + 8 * torch.randn(len(owner), 512)
    rows: list[list[Cell]] = []
    found: list[dict[str, float]] = []
    for device in dict.fromkeys([setting.device, torch.device("cpu")]):
        placed_images, placed_texts, placed_owner = (part.to(device) for part in (images, texts, owner))
        setting.wait()
        began = time.perf_counter()
        found.append(evaluate_retrieval(placed_images, placed_texts, placed_owner, "random").metrics)
        rows.append([str(device), time.perf_counter() - began, *found[-1].values()])
    yield Table(f"Recall of {len(images)} images and {len(texts)} captions", ["device", "seconds", *found[0]], rows)
    if any(metrics != found[0] for metrics in found):
        raise AssertionError("wrong: recall on the GPU is not that of the CPU")


def tests(setting: Setting) -> Iterator[Table]:
    """The tests that are marked cuda, where the source tree and pytest are at hand."""
    if not (ROOT / "tests").is_dir() or importlib.util.find_spec("pytest") is None:
        raise LeftOutError("needs the source tree and pytest")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests/harmonization/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    yield Table("Tests marked cuda", ["pytest"], [[done.stdout.strip().splitlines()[-1]]])
    if done.returncode:
        raise AssertionError("a test failed: its output is in the log")


def engine(setting: Setting) -> Iterator[Table]:
    """The step of the torchvision engine, as its trainer makes it, at the size of Cityscapes."""
    config = "mini" if setting.small else "benchmark-r50"
    words = ["benchmark", "--config", f"detection/torchvision/{config}", "--rounds", str(setting.size(3, 2))]
    sizes = [] if setting.small else ["detector.min_size=600", "detector.max_size=1200", "batch_size=2"]
    precision = ["training.mixed_precision=bf16"] if setting.on_gpu else []
    yield from _command([*words, *sizes, *precision], f"torchvision-{config}.json")


def seeds(setting: Setting) -> Iterator[Table]:
    """The mini retrieval task over five seeds, the plain sum and GH++."""
    words = ["compare", "--task", "retrieval", "--weightings", "sum,gh++", "--no-source-only", "--datasets", "datasets"]
    small = ["--seeds", "1", "--jobs", "1", "--steps", "2", "batch_size=8", "optimizer.warmup_steps=0"]
    yield from _command([*words, *(small if setting.small else ["--seeds", "5", "--jobs", "5"])], "tables.json")


def _command(words: Sequence[str], tables: str) -> Iterator[Table]:
    """Run a command of this package in a folder of its own, and give the tables that it writes."""
    needed = ("omegaconf", "PIL", "torchvision", "pycocotools")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise LeftOutError(f"needs {', '.join(missing)}: pip install 'gh_downstream[detection,retrieval]'")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gh_downstream.cli", words[0], "--output", "output", *words[1:]]
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
        content = json.loads(Path(folder, "output", tables).read_text())
    for table in content if isinstance(content, list) else [content]:
        rows = [[_shown(cell) for cell in row] for row in table["rows"]]
        yield Table(table["title"], table["columns"], rows, table["header"], table["notes"])


def _shown(cell: Any) -> Cell:
    """A cell of a table's JSON."""
    if isinstance(cell, dict):
        return f"{cell['mean']:.3g} ± {cell['std']:.2g} of {cell['runs']}"
    return f"{cell:.4g}" if isinstance(cell, float) else "–" if cell is None else cell
