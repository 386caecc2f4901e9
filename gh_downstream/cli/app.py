"""The table of the commands."""

import sys
from collections.abc import Callable
from typing import Any

try:
    import typer
except ImportError as error:
    raise ImportError("the command needs typer: pip install 'gh_downstream[training]'") from error

from gh_downstream.cli import benchmark, compare, configs, data, demo, diagnose, gpu_check, search, train

UsageError: Any = typer.BadParameter.__base__  # click's, or that of typer's own copy of click


def _alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None and context.info_name == "configs":
        configs.list_names()
    elif context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def _group(purpose: str, commands: dict[str, Callable[..., Any] | typer.Typer], **options: Any) -> typer.Typer:
    group = typer.Typer(
        help=purpose,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 120},
        invoke_without_command=True,
        callback=_alone,
        **options,
    )
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            group.add_typer(command, name=name)
        else:
            group.command(name)(command)
    return group


app = _group(
    "Gradient Harmonization (GH, GH++) for detection, image-text retrieval and classification.",
    {
        "demo": demo.demo,
        "train": train.train,
        "evaluate": train.evaluate,
        "predict": train.predict,
        "export": train.export,
        "search": search.search,
        "compare": compare.compare,
        "diagnose": diagnose.diagnose,
        "benchmark": benchmark.benchmark,
        "gpu-check": gpu_check.gpu_check,
        "data": _group(
            "Draw small data, check Cityscapes, make fog, convert annotations, cache features.",
            {
                "make": _group("Draw a small data set.", {"streets": data.make_streets, "scenes": data.make_scenes}),
                "check": data.check,
                "fog": data.fog,
                "voc": data.voc,
                "features": data.features,
            },
        ),
        "configs": _group(
            "List, show and explain configurations.",
            {"list": configs.list_names, "show": configs.show, "explain": configs.explain},
        ),
    },
    epilog="--version, alone, shows the version; --debug, anywhere, shows the whole trace of an error.",
)
