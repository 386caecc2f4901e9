"""The machine and what runs on it: versions and clocks, collectives, recall, tests, steps and trainings of engines."""

import importlib.metadata
import importlib.util
import json
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
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.collect_env import get_env_info

from gh_downstream.gpu_check.networks import backward_of_sum, flat, gradient, small_classifier
from gh_downstream.gpu_check.setting import Checks, LeftOutError, Setting, relative_error
from gh_downstream.gpu_check.timing import timed
from gh_downstream.harmonization import Harmonizer, fork
from gh_downstream.reporting import Cell, Spread, Table

ROOT = Path(__file__).parents[2]
"""Of the source tree, where there is one."""


def versions(setting: Setting) -> Iterator[Table]:
    """Versions, the device, its clocks, and the two rates that bound everything."""
    found = {name: value for name, value in get_env_info()._asdict().items() if value and "\n" not in str(value)}
    libraries = {"accelerate", "omegaconf", "open_clip_torch", "pycocotools", "pytest", "torchjd", "torchvision"}
    found |= {part.name: part.version for part in importlib.metadata.distributions() if part.name in libraries}
    found["threads"] = torch.get_num_threads()
    if setting.on_gpu:
        properties = torch.cuda.get_device_properties(setting.device)
        found |= {"memory": f"{properties.total_memory / 2**30:.0f} GiB", "cores": properties.multi_processor_count}
        source = torch.randn(setting.size(1 << 30, 1 << 20), device=setting.device)
        copying = _milliseconds(setting, partial(torch.empty_like(source).copy_, source))
        found["copy"] = f"{2 * source.nbytes / copying / 1e9:.2f} TB/s read and written"
        side = setting.size(8192, 256)
        for name, dtype in setting.precisions().items():
            a = torch.randn(side, side, device=setting.device).to(dtype)
            rate = 2 * side**3 / _milliseconds(setting, partial(a.matmul, a)) / 1e9
            found[f"product, {name}"] = f"{rate:.0f} TFLOP/s"
        query = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"
        found[query] = subprocess.getoutput(f"nvidia-smi --query-gpu={query} --format=csv,noheader")
    yield Table("Machine", ["what", "value"], [[name, str(value)] for name, value in found.items()])


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
            for name in ("Harmonizer", "fork"):
                checks.add(f"DistributedDataParallel and {name}", 1e-6, partial(_distributed, setting, name == "fork"))
            yield _reductions(setting)
        finally:
            dist.destroy_process_group()
    yield from checks.report()


def _distributed(setting: Setting, forked: bool) -> float:
    gradients = []
    for wrapped in (False, True):
        model = small_classifier(setting)
        batch = model.batch()
        called = DistributedDataParallel(model) if wrapped else model
        if forked:
            backward_of_sum(called(batch, fork))
        else:
            with called.no_sync() if isinstance(called, DistributedDataParallel) else nullcontext():
                Harmonizer("gh++", model.trunk, model=model).backward(called(batch))
        gradients.append(gradient(model.parameters()))
    return relative_error(gradients[1], gradients[0])


def _reductions(setting: Setting) -> Table:
    """As many tensors as a CLIP has, one by one and in one vector, and a Gramian."""
    sizes = [768 * 768] * setting.size(150, 2) + [768] * setting.size(150, 2)
    tensors = [torch.randn(size, device=setting.device) for size in sizes]
    gramian = torch.randn(2, 2, dtype=torch.float64, device=setting.device)
    runs = {f"{len(sizes)} tensors": tensors, "as one vector": [flat(tensors)], "a Gramian of two tasks": [gramian]}
    rows: list[list[Cell]] = [[name, _milliseconds(setting, partial(_all_reduce, x))] for name, x in runs.items()]
    return Table("All-reduce in a group of one", ["what", "ms"], rows, digits=3)


def _all_reduce(tensors: Sequence[Tensor]) -> None:
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
        work.wait()


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
    done.check_returncode()


def pairs(setting: Setting) -> Iterator[Table]:
    """Whole steps of the retrieval engine, as its trainer makes them: CLIP ViT-B/32 with 256 + 256 pairs."""
    full = ["--config", "retrieval/benchmark_ViT-B-32", "batch_size=256", "alignment.mmd.side=both"]
    yield from _steps(setting, full, ["--config", "retrieval/mini", "batch_size=8"], "open_clip")


def detector(setting: Setting) -> Iterator[Table]:
    """Whole steps of the native engine: Faster R-CNN R50-FPN with 2 + 2 images of 600 by 1200."""
    full = ["--config", "detection/native/benchmark-r50", "batch_size=2"]
    full += ["detector.min_size=600", "detector.max_size=1200"]
    yield from _steps(setting, full, ["--config", "detection/native/mini", "training.init_from=null"])


def _steps(setting: Setting, full: Sequence[str], small: Sequence[str], *needed: str) -> Iterator[Table]:
    """What ``gh-downstream benchmark`` measures, in every precision."""
    for precision in ["bf16"] if setting.small else setting.precisions():
        mixed = f"training.mixed_precision={'no' if precision == 'float32' else precision}"
        words = [*(small if setting.small else full), "--rounds", str(setting.size(4, 2)), mixed]
        yield from _command(["benchmark", *words], "*.json", *needed)


def seeds(setting: Setting) -> Iterator[Table]:
    """The mini retrieval task over five seeds, the plain sum and GH++."""
    words = ["compare", "--task", "retrieval", "--weightings", "sum,gh++", "--no-source-only", "--datasets", "datasets"]
    small = ["--seeds", "1", "--jobs", "1", "--steps", "2", "batch_size=8", "optimizer.warmup_steps=0"]
    yield from _command([*words, *(small if setting.small else ["--seeds", "5", "--jobs", "5"])], "tables.json")


def _command(words: Sequence[str], tables: str, *needed: str) -> Iterator[Table]:
    """Run a command of this package, and give the tables that it writes."""
    libraries = ("accelerate", "omegaconf", "PIL", "pycocotools", "torchvision", *needed)
    if missing := [name for name in libraries if importlib.util.find_spec(name) is None]:
        raise LeftOutError(f"needs {', '.join(missing)}: pip install 'gh_downstream[detection,retrieval]'")
    output = tempfile.mkdtemp(dir=".")
    command = [sys.executable, "-m", "gh_downstream.cli", words[0], "--output", output, *words[1:]]
    subprocess.run(command, check=True, stdout=sys.stderr)
    (path,) = Path(output).glob(tables)
    content = json.loads(path.read_text())
    for table in content if isinstance(content, list) else [content]:
        rows = [[*map(_cell, row)] for row in table.pop("rows")]
        yield Table(**table, rows=rows, digits=3)


def _cell(value: Any) -> Cell:
    return Spread(**value) if isinstance(value, dict) else float("nan") if value is None else value
