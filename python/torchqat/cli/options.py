"""Options that commands share."""

import typer

RECIPE = typer.Argument(..., metavar="RECIPE", help="A YAML recipe.")
MODEL = typer.Option("", "--model", help="Hugging Face folder or hub id, in place of the recipe's.")
DATA = typer.Option(
    "", "--data", help="File or folder of text, jsonl or Parquet, or org/name of the Hub, in place of the recipe's."
)
OUTPUT = typer.Option("", "--output", help="The run's folder; runs/<model>-<recipe> when not given.")
DTYPE = typer.Option(
    "",
    "--dtype",
    help="float32, bfloat16 or float16, of scales and of what is not quantized; the model's when not given.",
)
DEVICE = typer.Option("", "--device", help="auto, cpu, cuda or cuda:N: where to compute; the recipe's when not given.")
PUSH = typer.Option(
    "", "--push-to-hub", help="org/name: also put the export there, in a private repository where there is none yet."
)
RUNS = typer.Argument(..., metavar="RUN...", help="Folders of runs; several are compared.")
RESUME = typer.Option(False, "--resume", help="Go on where an interrupted run stopped.")
RESTART = typer.Option(False, "--restart", help="Delete the run that is in the folder, and begin again.")
