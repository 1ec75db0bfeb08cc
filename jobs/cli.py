"""The command line: `corpusmill`. Heavy imports stand inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .choices import Format, Retry

app = typer.Typer(
    name="corpusmill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job file (YAML).", show_default=False)]
Table = Annotated[str, typer.Argument(metavar="OUT", help="The table: a folder or a URL.", show_default=False)]
# metavar="": a flag takes no value, and Typer would show <bool>.
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON, for programs.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"corpusmill {version('corpusmill')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", metavar="", help="Show the traceback when something goes wrong.")
    ] = False,
) -> None:
    """Run T5Gemma 2 over a whole corpus of documents and images.

    Each document is encoded once; every task is decoded from that one encoding; the results are a Parquet table.

    New here? Start with [bold]corpusmill demo[/bold].
    """


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo writes.")] = Path("corpusmill-demo"),
) -> None:
    """Write a small corpus, run a job over it, and show what came out."""
    from .demo.run import run_demo

    run_demo(folder)


@app.command(
    epilog="Exit codes: 0 done, 1 a mistake of corpusmill's own, 2 job file or usage, 3 source or model, "
    "4 too many rows failed, 5 another run holds the table, 130 interrupted."
)
def run(
    job: JobFile,
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Make N documents into a scratch table and extrapolate.", show_default=False
        ),
    ] = None,
    retry: Annotated[
        Retry | None,
        typer.Option(help="Try rows again that failed too often to be retried by themselves.", show_default=False),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, help="What one worker costs an hour; with --sample.", show_default=False),
    ] = None,
) -> None:
    """Make every row of a job that is not in its table yet.

    Stop it whenever you like: the same command goes on where it stopped. Nothing is made twice.
    """
    from .running import run_file

    run_file(job, sample=sample, retry_failed=retry is not None, price_per_hour=price_per_hour)


@app.command()
def plan(job: JobFile, json: AsJson = False) -> None:
    """Show what a run would do, without loading the model's weights."""
    from .running import plan_file

    plan_file(job, as_json=json)


@app.command()
def status(out: Table, json: AsJson = False) -> None:
    """Show what a table holds, its newest runs, and who is writing to it."""
    from .status import show_status

    show_status(out, as_json=json)


@app.command()
def query(
    out: Table,
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="Reads the views results, errors and latest.", show_default=False)
    ],
    form: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.TABLE,
) -> None:
    """Ask a table in SQL. It reads the table and touches nothing else.

    The views are [bold]results[/bold] (what was made), [bold]errors[/bold] (what was not, and why) and
    [bold]latest[/bold] (of the results those that the newest complete run asked for):

    corpusmill query OUT "SELECT task, count(*) FROM results GROUP BY task"
    """
    from .query import query as ask
    from .render import consoles

    ask(out, sql, form, consoles()[0])


@app.command(
    epilog="Exit codes: 0 everything holds, 1 something does not, 2 a part could not be checked, or usage, "
    "3 no table, source or storage, 130 interrupted."
)
def verify(
    out: Table,
    job: Annotated[
        Path | None,
        typer.Option(metavar="JOB", help="The job file, instead of what the runs recorded.", show_default=False),
    ] = None,
    reproduce: Annotated[int, typer.Option(metavar="N", min=0, help="Make N rows again and compare their texts.")] = 0,
    seed: Annotated[int, typer.Option(metavar="S", help="Which rows those are.")] = 0,
    json: AsJson = False,
) -> None:
    """Check that a table is whole: no row lost, none twice, each what its lineage says.

    Reads every file of the table and, to compare contents, the source files that its rows name.
    """
    from .verify import verify_path

    if code := verify_path(out, job=job, reproduce=reproduce, seed=seed, as_json=json):
        raise typer.Exit(code)


@app.command()
def trace(
    out: Table,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A row's key, or its first digits.", show_default=False)],
    json: AsJson = False,
) -> None:
    """Follow one row back to its document, model, prompt and run, and forward to what took its place."""
    from .trace import trace_key

    trace_key(out, key, as_json=json)


@app.command()
def finetune(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The training job (YAML).", show_default=False)],
) -> None:
    """Train a checkpoint on your own documents and targets.

    Stop it whenever you like: the same command goes on from the last checkpoint. The result is a model folder that
    transformers and [bold]corpusmill run[/bold] both load.
    """
    from .finetune import finetune_file

    finetune_file(job)


@app.command()
def evaluate(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The evaluation file (YAML).", show_default=False)],
    compare: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Another table, scored on the same references.", show_default=False),
    ] = None,
    json: AsJson = False,
) -> None:
    """Score a table against references, with intervals, and look for bad outputs.

    Writes evaluation.json and evaluation.png into the file's output folder. Needs: pip install 'corpusmill\\[evaluate]'
    """
    from .evaluate import evaluate_file

    evaluate_file(job, compare=compare, as_json=json)


@app.command()
def benchmark(
    figures: Annotated[
        str,
        typer.Option(metavar="NAMES", help="encode, long, decode, corpus, share, pipeline, resume, scale, gpu; all."),
    ] = "encode,decode,corpus,share",
    peers: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="native, transformers-plain, transformers-expert, ctranslate2, vllm; or name:dtype; all.",
        ),
    ] = "all",
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="What native computes in.", show_default="bfloat16,int8 on a CPU"),
    ] = None,
    size: Annotated[str, typer.Option(metavar="SIZE", help="demo, 270m, 1b, 4b: random weights.")] = "270m",
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Your own checkpoint instead.", show_default=False)
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Document lengths.", show_default="each figure's own")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Tasks on one document.", show_default="each figure's own")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens that each task produces.")] = 32,
    documents: Annotated[int, typer.Option(metavar="N", min=1, help="Documents of the figure corpus.")] = 48,
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Times that peers take turns.")] = 3,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of every peer.", show_default="all cores")
    ] = None,
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="After this a case is not repeated again.")
    ] = 900,
    limit: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="A peer that takes longer for one answer is stopped.")
    ] = 1800,
    folder: Annotated[Path, typer.Option("--dir", help="Where checkpoints and conversions are kept.")] = Path(
        "corpusmill-benchmark"
    ),
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Append a dated section, its plot beside it.", show_default=False),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the figures as JSON lines.", show_default=False)
    ] = None,
) -> None:
    """Measure speed and memory against every peer that is installed, on the same weights and inputs.

    One JSON line for each case on standard output. Use a machine that does nothing else meanwhile.
    """
    from .benchmark import Asked
    from .benchmark import benchmark as measure

    measure(
        Asked(
            folder=folder,
            model=model,
            size=size,
            figures=figures,
            peers=peers,
            dtype=dtype,
            lengths=lengths,
            tasks=tasks,
            tokens=tokens,
            documents=documents,
            repeat=repeat,
            device=device,
            threads=threads,
            budget=budget,
            limit=limit,
            output=output,
            json=json,
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: one line on standard error for whatever goes wrong, and its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # --debug is understood wherever it stands.
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = app(words, prog_name="corpusmill", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
        code = 141
    except (Exception, KeyboardInterrupt) as error:
        from .failures import explain, traceback_of

        if debug:
            print(traceback_of(error), end="", file=sys.stderr)
        failure = explain(error)
        for line in failure.lines:
            print(f"corpusmill: {line}", file=sys.stderr)
        code = failure.exit_code
    else:
        if code == 130:
            from .failures import INTERRUPTED

            print(f"corpusmill: {INTERRUPTED}", file=sys.stderr)
    sys.exit(code or 0)


def _close_stdout() -> None:
    """Nobody reads any more (`| head`): leave without Python's own complaint at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
