"""Rules that make each command of a page small enough for a test. A command without a rule is an error."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Way = Literal["here", "process", "peer", "internet", "cluster", "make", "tests", "measurement", "docker"]

PLACEHOLDERS = {"USER/NAME": "user/name"}
"""Placeholders of repositories in the pages, and the repositories of the test Hub that replace them."""

_SMOLLM2 = "--estimator smollm2"
_TRAINING = "--training.steps 2 --training.tokens-per-batch 512"
_MODEL = "--model.context 32 --model.width 16 --model.layers 1 --model.heads 2"
_ENCODER = (
    "--model.context 32 --model.encoder-width 16 --model.encoder-layers 1"
    " --model.decoder-width 16 --model.decoder-layers 1 --model.decoder-heads 2"
)


@dataclass(frozen=True)
class Rule:
    """How commands with the same beginning are changed and run."""

    begins: str
    way: Way = "here"
    """Way in which a test runs the command, or checks a part of a command that it does not run.

    Ways to run the command:

    - here: in this process
    - process: in a separate process, with the test Hub
    - peer: like `process`, but only if lm-eval is installed
    - cluster: as a job of a Ray cluster

    Ways to check a part of the command without running it:

    - internet: the tasks of lm-eval exist
    - make: the target exists
    - tests: the pytest marks are known
    - measurement: the module has the flags
    - docker: the files exist
    """
    changed: Mapping[str, str] = field(default_factory=dict)
    """Parts of the command, each with the text that replaces it."""
    added: str = ""
    """Flags that a test appends to the command."""

    def applied(self, command: str) -> str:
        """Return the command that a test runs instead of the one on the page.

        Raises:
            AssertionError: if the command lacks a part that the rule changes.
        """
        for written, wanted in self.changed.items():
            assert written in command, f"the rule for `{self.begins}` changes {written}, which is not in `{command}`"
            command = command.replace(written, wanted)
        for name, wanted in PLACEHOLDERS.items():
            command = command.replace(name, wanted)
        return f"{command} {self.added}".strip()


RULES = (
    Rule("make ", "make"),
    Rule("docker ", "docker"),
    Rule(".venv/bin/python -m pytest", "tests"),
    Rule("python -m tests.", "measurement"),
    Rule("python -m pipeline --help", "process"),
    Rule("python -m pipeline.annotate", added="--workers 0"),
    Rule("python -m pipeline.annotate --limit 10 --output ten --workers 0"),
    Rule("python -m pipeline.annotate --output annotated --workers 0", added="--limit 12"),
    Rule("python -m pipeline.annotate --limit 10 --method causal", changed={_SMOLLM2: "--estimator language-model"}),
    Rule(
        "python -m pipeline.annotate --limit 10 --method causal --estimator HuggingFaceTB/SmolLM2-135M",
        changed={"HuggingFaceTB/SmolLM2-135M HuggingFaceTB/SmolLM2-360M": "language-model language-model"},
    ),
    Rule("python -m pipeline.annotate --input notes.txt"),
    Rule(
        "python -m pipeline.annotate --input documents.parquet --limit 164",
        changed={"--limit 164": "--limit 4"},
        added="--workers 0",
    ),
    Rule(  # a calibration needs labels that rise together, and an untrained model's may not
        "python -m pipeline.annotate --input documents.parquet --limit 300 --method causal",
        changed={f"--method causal {_SMOLLM2} --tokenizer": "--tokenizer"},
        added="--workers 0",
    ),
    Rule(
        "python -m pipeline.annotate --input notes.txt --method causal",
        changed={_SMOLLM2: "--estimator language-model"},
    ),
    Rule(
        "python -m pipeline.annotate --config jobs/annotate_fineweb_edu_smollm2.yaml",
        "process",
        changed={"USER/NAME": "user/judged"},
        added="--estimator language-model --workers 0 --staging judged",
    ),
    Rule(
        "python -m pipeline.annotate --input hf://",
        "process",
        changed={"USER/NAME": "user/streamed"},  # another repository than the one to which a folder is published
        added="--workers 0 --staging streamed",
    ),
    Rule("python -m pipeline.report"),
    Rule("python -m pipeline.report DATASET", changed={"DATASET": "ten"}),
    Rule("python -m pipeline.verify"),
    Rule("python -m pipeline.export"),
    Rule("python -m pipeline.join"),
    Rule("python -m pipeline.publish annotated", "process"),
    Rule("python -m pipeline.publish ten", "process", changed={"USER/NAME": "user/ten"}),
    Rule("python -m pipeline.publish DIR", "process", changed={"DIR": "annotated"}),
    Rule(
        "ray job submit --working-dir . -- python -m pipeline.annotate --config jobs/annotate_fineweb_edu.yaml",
        "cluster",
        added="--estimator pipeline/checkpoints/second-order --output hf://datasets/user/recipe --workers 1"
        " --gpus-per-worker 0 --dtype float32",
    ),
    Rule(
        "ray job submit --runtime-env-json",
        "cluster",
        added="--working-dir . -- python -m pipeline.annotate --limit 2 --workers 1 --output hf://datasets/user/token",
    ),
    Rule("python -m jobs.audit"),
    Rule("python -m jobs.measure_agreement"),
    Rule("python -m jobs.fit_calibration"),
    Rule(
        "python -m jobs.fit_calibration --labels SMALL --reference BETTER",
        changed={"SMALL": "runs/small", "BETTER": "runs/better", "FILE": "calibration.json"},
    ),
    Rule("python -m jobs.train_tokenizer"),
    Rule("python -m jobs.train_estimator", added=f"{_TRAINING} {_ENCODER}"),
    Rule(
        "python -m jobs.train_estimator --input documents.parquet --limit 149",
        changed={"--model.context 64": _ENCODER},
        added=_TRAINING,
    ),
    Rule(
        "python -m jobs.train_estimator --init-from HuggingFaceTB/SmolLM2-135M",
        changed={"HuggingFaceTB/SmolLM2-135M": "language-model"},
        added=f"{_TRAINING} --model.context 24",
    ),
    Rule(
        "python -m jobs.train_second_order --labels runs/around-labels",
        changed={"HuggingFaceTB/SmolLM2-135M": "language-model"},
        added=_TRAINING,
    ),
    Rule(
        "python -m jobs.train_estimator --config jobs/train_estimator_paper.yaml --dry-run",
        added="--input documents.parquet --tokenizer pipeline/checkpoints/tokenizer --held-out 2 --output dry",
    ),
    Rule(
        "python -m jobs.train_autoencoder",
        added="--input documents.parquet --tokenizer pipeline/checkpoints/tokenizer --output autoencoder"
        f" {_TRAINING} {_ENCODER}",
    ),
    Rule("python -m jobs.train_second_order", added=_TRAINING),
    Rule('python -m jobs.train_language_model --labels "sidecar::', added=f"{_TRAINING} {_MODEL}"),
    Rule("python -m jobs.train_language_model --labels annotated", added=f"{_TRAINING} {_MODEL}"),
    Rule("python -m jobs.train_language_model --config jobs/tutorial.yaml", added=f"{_TRAINING} {_MODEL}"),
    Rule(
        "python -m jobs.train_language_model --config jobs/slowrun_laptop.yaml",
        added=f"--held-out 1 {_TRAINING} {_MODEL}",
    ),
    Rule(
        "python -m jobs.train_language_model --config jobs/slowrun.yaml --dry-run",
        added=f"--labels annotated --held-out 2 --output dry {_MODEL}",
    ),
    Rule(
        "python -m jobs.train_language_model --labels hf://",
        "process",
        changed={"--training.steps 20000": _TRAINING, "USER/NAME": "user/ten"},
        added=_MODEL,
    ),
    Rule(
        "python -m jobs.train_language_model --workers",
        changed={"--workers 8": "--workers 1", "...": "--labels annotated --output model-of-workers"},
        added=f"{_TRAINING} {_MODEL}",
    ),
    Rule(
        "accelerate launch -m",
        "process",
        changed={"...": "--labels annotated --output model-launched"},
        added=f"{_TRAINING} {_MODEL}",
    ),
    Rule(
        "accelerate launch --config_file",
        "process",
        changed={
            "launch": "launch --main_process_port 0",  # any free port
            "...": "--labels annotated --output model-in-shards",
        },
        added=f"{_TRAINING} {_MODEL}",
    ),
    Rule(
        "python -m jobs.measure_truth --introduction",
        changed={"DIR": "introduction", "500": "2"},
        added="--config tiny/truth.yaml --sources markov-1 --widths 1 --processes 1",
    ),
    Rule(
        "python -m jobs.measure_truth --ensemble",
        changed={"DIR": "ensembles"},
        added="--config tiny/truth.yaml --sources markov-1 --processes 1",
    ),
    Rule(
        "python -m jobs.measure_truth",
        changed={"DIR": "truth"},
        added="--config tiny/truth.yaml --sources markov-1 --processes 1",
    ),
    Rule("python -m jobs.measure_compression", added="--input documents.parquet --held-out 2"),
    Rule("python -m jobs.measure_compression --models model --input documents.jsonl"),
    Rule("tail ", "process"),
    Rule("lm_eval --model hf --model_args pretrained=model,dtype=float32", "peer", added="--device cpu"),
    Rule("lm_eval --model hf --model_args pretrained=model,add_bos_token", "internet"),
    Rule(
        "python -m jobs.compare_objectives",
        changed={"DIR": "comparison"},
        added="--config tiny/objectives.yaml --methods EMA --processes 1",
    ),
    Rule(
        "python -m jobs.reproduce_figures",
        changed={"DIR": "figures"},
        added="--time 0.0004 --documents 20 --held-out 2 --processes 1",
    ),
)


def rule_for(command: str) -> Rule:
    """Return the rule whose beginning fits the command. If several fit, return the one with the longest beginning.

    Raises:
        AssertionError: if no rule fits; the message says what to add.
    """
    known = [rule for rule in RULES if command.startswith(rule.begins)]
    assert known, (
        f"a page has a command that no test runs: `{command}`. Add a Rule to RULES in tests/readme/rules.py that "
        "makes it end in seconds. Where it is no command, give its block a fence that names its language."
    )
    return max(known, key=lambda rule: len(rule.begins))


def way_of(command: str) -> Way:
    """Return how a command is run, according to its rule.

    For a command without a rule, return `here`. A test then tries to run the command in this process, and fails because
    the command has no rule.
    """
    return rule_for(command).way if any(command.startswith(rule.begins) for rule in RULES) else "here"
