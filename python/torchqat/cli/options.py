"""Options that commands share."""

import typer

RECIPE = typer.Argument(
    ..., metavar="RECIPE", help="A recipe that ships (torchqat recipes lists them), or a YAML file."
)
SET = typer.Option(
    [],
    "--set",
    metavar="KEY=VALUE",
    help="In place of what the recipe says, such as train.steps=300 or layers.0.weight.group_size=64; the value is YAML, "
    "and without one (schedule=) the key is taken out. May be repeated, each key once.",
)
STEPS = typer.Option(None, "--steps", min=0, help="Optimizer steps, in place of the recipe's steps or epochs.")
MODEL = typer.Option(
    "", "--model", help="Hugging Face folder, GGUF file, hub id or module:function, in place of the recipe's."
)
DATA = typer.Option(
    "",
    "--data",
    help="File or folder of text, jsonl or Parquet, org/name of the Hub, python-stdlib or module:function, in place of the "
    "recipe's.",
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
