"""The command line. Exit codes: 0, it ran; 1, it could not run, with a sentence on stderr; 2, a
claim failed with --strict; 130, it was stopped.

The commands import what they need, so that `dither --help` imports neither torch nor polars.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console

from dither.errors import DitherError
from dither.lab import parsing, terminal


class Sentences(typer.core.TyperGroup):
    """A group of commands. Each error, also typer's for a wrong option, is one sentence on stderr
    and exit code 1.
    """

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        try:
            code = super().main(*args, standalone_mode=False, **kwargs)
        except DitherError as error:
            code = _fail(str(error))
        except typer.Abort:
            code = _fail("stopped", 130)
        except MemoryError:
            code = _fail("this process has no memory left: what is finished is kept")
        except OSError as error:
            code = _fail(f"{error.filename or 'a file'} can't be used ({error.strerror or error})")
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer's and click's usage errors have one
                raise
            given = kwargs["args"] if kwargs.get("args") is not None else sys.argv[1:]
            code = _fail(_usage(error, " ".join(["dither", *_commands(self, given)])))
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        from dither.lab.runs.interrupts import heard

        try:
            with heard():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise typer.Exit(_fail(str(stop) or "stopped", 130)) from None


def _commands(group: Any, words: Sequence[str]) -> Iterator[str]:
    """The commands that a call begins with: data, fetch."""
    for word in words:
        group = getattr(group, "commands", {}).get(word)
        if group is None:
            return
        yield word


app = typer.Typer(cls=Sentences, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _complete(incomplete: str) -> Iterator[str]:
    from dither.lab import catalogue

    names = catalogue.names()
    papers = dict.fromkeys(name.split("/")[0] for name in names)
    return (name for name in [*papers, *names] if name.startswith(incomplete))


Figures = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FIGURE]…",
        help="levi2022/fig3, levi2022 (a whole paper) or '*/fig1*'; none: all.",
        autocompletion=_complete,
    ),
]
Out = Annotated[str, typer.Option("--out", metavar="DIR", help="Where the results are.")]


def _scales(incomplete: str) -> Iterator[str]:
    from dither.lab.figure import SCALES

    return (scale for scale in SCALES if scale.startswith(incomplete))


Scale = Annotated[
    str,
    typer.Option(
        metavar="smoke|quick|decisive|paper",
        help="Seconds, minutes, the hours that decide a claim, or what the paper did.",
        autocompletion=_scales,
    ),
]


def main() -> None:
    """The command `dither`."""
    terminal.steady()
    try:
        app(prog_name="dither")
    except SystemExit as end:
        sys.exit(end.code or int(not terminal.told()))


@app.callback(invoke_without_command=True)
def dither(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True)
    ] = False,
) -> None:
    """Noise injection and what it is worth: three papers reproduced, figure by figure, claim by
    claim.
    """
    if version:
        from dither.lab.runs.provenance import version as installed

        print(f"dither {installed('dither')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_figures() -> None:
    """The figures: their claims, the data they need, what they cost."""
    from dither.lab import catalogue, listing

    listing.figures(catalogue.names(), _console())


@app.command()
def show(
    figure: Annotated[
        str | None,
        typer.Argument(
            metavar="FIGURE",
            help="levi2022/fig3, or a paper; with --scale also a glob, or none for all.",
            autocompletion=_complete,
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="smoke|quick|decisive|paper",
            help="What this scale costs: runs, time on one core, the longest run.",
            autocompletion=_scales,
        ),
    ] = None,
    workers: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", min=1, help="And how long N workers take: 1, 8, 64, 512; may be repeated."
        ),
    ] = None,
    out: Out = "results",
) -> None:
    """One figure: its text, its runs at each scale, its claims and what came of them, departures;
    or a paper's figures; or, with --scale, what figures cost there.
    """
    from dither.lab import catalogue, listing

    names = catalogue.names()
    if scale is not None:
        names = catalogue.match([figure] if figure else [])
        listing.plan(names, scale, workers or (1, 8, 64, 512), out, _console())
    elif workers:
        raise DitherError("--workers tells how long a scale takes: give --scale, too")
    elif figure is None:
        raise DitherError("missing argument 'FIGURE'; `dither show --help` shows what there is")
    elif figure.strip("/") in {name.split("/")[0] for name in names}:
        console, paper = _console(), figure.strip("/")
        console.print(f"{catalogue.paper(paper)}\n", highlight=False, markup=False)
        listing.figures(catalogue.match([paper]), console)
    else:
        listing.figure(figure, out, _console())


@app.command()
def reproduce(
    figures: Figures = None,
    scale: Scale = "quick",
    seeds: Annotated[
        str | None, typer.Option(metavar="N|A:B", help="How many, or from A to B − 1.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="These runs alone, by label or glob; may be repeated."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes; as many as there are cores, up to 8."),
    ] = None,
    out: Out = "results",
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS|local", help="A Dask scheduler to compute on.")
    ] = None,
    resources: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N", help="What a Dask worker must offer for each run; may be repeated."
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Compute finished runs once more.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 2 if a claim fails.")] = False,
) -> None:
    """Run what is missing, draw the figures, judge the claims, write the page. Stop it when you
    like: it goes on from there.
    """
    from dither.lab import reproduce as runner
    from dither.lab.runs import provenance
    from dither.lab.runs.allocator import keep_freed
    from dither.lab.runs.screen import Bars, Lines

    keep_freed()
    console = _console(works=True)
    screen = Bars(console) if console.is_terminal else Lines(console)
    chosen, jobs = parsing.seeds(seeds), min(provenance.cores(), 8) if jobs is None else jobs
    results = runner.reproduce(
        figures or (),
        scale=scale,
        seeds=chosen,
        only=only or (),
        jobs=jobs,
        out=out,
        cluster=cluster,
        resources=parsing.resources(resources or ()),
        again=again,
        screen=screen,
    )
    failed, damaged = len(results.failures), len(results.damaged)
    counts = [f"{failed} run{'s' * (failed != 1)} failed"] if failed else []
    counts += [f"{damaged} thing{'s' * (damaged != 1)} could not be used"] if damaged else []
    if counts:
        where = f"named above and on {results.page}" if failed else "named above"
        raise DitherError(f"{' and '.join(counts)} ({where}); what is finished is kept")
    problems = [study.problem for study in results.figures.values() if study.problem]
    if len(problems) == len(results.figures):
        raise DitherError(f"nothing could be run: {problems[0]}")
    if strict and (failed := results.failed_claims):
        claims = f"{len(failed)} claim{'s' * (len(failed) != 1)} failed ({', '.join(failed)})"
        raise typer.Exit(_fail(f"{claims}, and --strict was given", 2))


@app.command()
def compare(
    file: Annotated[str, typer.Argument(metavar="FILE.py")],
    seeds: Annotated[
        str | None, typer.Option(metavar="N|A:B", help="How many, or from A to B − 1.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Epochs of each run.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes; as many as there are cores, up to 8."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Default: results/compare/FILE.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Train finished runs once more.")] = False,
) -> None:
    """Compare noises on your own problem. FILE.py defines make_model, data and methods, and if need
    be settings = {"seeds": 5, "epochs": 10, …}: the arguments of dither.compare. Stop it when you
    like: it goes on from there.
    """
    console = _console(works=True)
    from dither.lab.compare import command

    typed = {
        "seeds": parsing.seeds(seeds),
        "epochs": epochs,
        "jobs": jobs,
        "out": out,
        "again": again,
    }
    found, page = command.run(file, {n: v for n, v in typed.items() if v}, console)
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
    console.print(f"The page: {page.resolve()}", highlight=False, markup=False, soft_wrap=True)
    if found.failures:
        failed = f"{len(found.failures)} run{'s' * (len(found.failures) != 1)} failed"
        raise DitherError(f"{failed} (named above); what is finished is kept")


@app.command("report")
def write_report(out: Out = "results") -> None:
    """Make the page anew from what is in DIR."""
    from dither.lab.page import report
    from dither.lab.runs.store import Store

    root = Store(out).root
    if not (root / "figures").is_dir():
        raise DitherError(
            f"there are no figures in {out}: run `dither reproduce --out {out}` first"
        )
    _console().print(
        f"The page: {report.write_page(root).resolve()}", highlight=False, soft_wrap=True
    )
    if left := report.problems(root):
        raise DitherError(f"{len(left)} left out, as the page says: {left[0]}")


@app.command()
def check(
    folder: Annotated[str, typer.Argument(metavar="DIR")],
    repair: Annotated[bool, typer.Option("--repair", help="Compute the damaged anew.")] = False,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Processes for that.")] = 1,
) -> None:
    """Compare every result in DIR with the checksums it was sealed with."""
    from dither.lab import check as checking
    from dither.lab.runs.screen import Bars, Lines
    from dither.lab.runs.store import Store

    console, store = _console(works=True), Store(folder)
    say = console.print
    report = checking.check(store)
    for sentence in report.damaged.values():
        say(sentence, highlight=False, markup=False, soft_wrap=True)
    say(str(report), highlight=False, markup=False, soft_wrap=True)
    if not report.damaged:
        return
    if not repair:
        raise DitherError(
            f"{len(report.damaged)} damaged: `dither check {folder} --repair` computes them again"
        )
    screen = Bars(console) if console.is_terminal else Lines(console)
    left = checking.repair(store, report.damaged, jobs, screen)
    for sentence in left:
        say(sentence, highlight=False, markup=False, soft_wrap=True)
    if left:
        raise DitherError(f"{len(left)} could not be computed again (named above)")
    say(f"now {checking.check(store)}", highlight=False, markup=False, soft_wrap=True)


data = typer.Typer(rich_markup_mode="rich", invoke_without_command=True)
app.add_typer(data, name="data")


@data.callback()
def data_sets(context: typer.Context) -> None:
    """The data sets: where each was found, or which file goes where."""
    if context.invoked_subcommand:
        return
    from dither.lab.data import needs

    for name in needs.names():
        place = needs.found(name)
        verdict = f"found {place}" if place else f"missing: {needs.advice(name)}"
        _console().print(f"{name}: {verdict}", highlight=False, markup=False, soft_wrap=True)


@data.command("fetch")
def fetch(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Fetch a data set into the cache, checked by its checksums."""
    from dither.lab.data import needs

    _console().print(f"{name}: {needs.bring(name)}", highlight=False, markup=False, soft_wrap=True)


def _console(*, works: bool = False) -> Console:
    if works:
        terminal.works()
    return Console(file=sys.stdout)


def _usage(error: Any, path: str) -> str:
    """Typer's sentence about a wrong call of the command at a path, and where to find help."""
    said = error.format_message().strip().rstrip(".")
    return f"{said[:1].lower()}{said[1:]}; `{path} --help` shows what there is"


def _fail(sentence: str, code: int = 1) -> int:
    print(f"dither: {sentence}", file=sys.stderr)
    return code
