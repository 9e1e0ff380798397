"""Checkpoints prepared by an attacker, each made by a single change to a sound one."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.models.checkpoint import SHIPPED, CheckpointKind, copy_tokenizer
from tests.tiny_models import tiny_estimator, tiny_language_model, tiny_second_order

CANARY = "CANARY"
"""Name of the file in the working directory that an attacker's code creates when it runs."""
CODE = f"open({CANARY!r}, 'w', encoding='utf-8').close()\n"
CODE_OF_A_MODEL = (
    f"{CODE}from transformers import LlamaConfig, LlamaForCausalLM\n"
    "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
    "class EvilModel(LlamaForCausalLM):\n    config_class = EvilConfig\n"
)
MAP = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel", "AutoModel": "evil.EvilModel"}
MAP_OF_TEXT = {"AutoTokenizer": ["evil.EvilTokenizer", None], "AutoProcessor": "evil.EvilProcessor"}
DEEP = "[" * 100_000 + "]" * 100_000
OFTEN = 10**9
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OUTSIDE = "elsewhere"
"""Name of a sound checkpoint next to the hostile checkpoints. Loading a hostile one must not read it."""

Change = Callable[[Path], None]


class Bomb:
    """An object that pickles to a function call."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, (CANARY,)  # type: ignore[return-value]


@dataclass(frozen=True)
class Hostile:
    """A hostile checkpoint: a sound checkpoint of the kind `kind`, with one change."""

    name: str
    kind: CheckpointKind
    change: Change
    says: str | None
    """Pattern of the one-line error; None if the checkpoint is loaded and its hostile part is ignored."""

    def make(self, folder: Path) -> Path:
        """Write the checkpoint to a subfolder with its name, and return the subfolder."""
        made = sound(folder / self.name.replace(" ", "-"), self.kind)
        self.change(made)
        return made


def sound(folder: Path, kind: CheckpointKind) -> Path:
    """Write a tiny checkpoint with a tokenizer."""
    model: Any = {"second-order": tiny_second_order, "causal": tiny_language_model, "estimator": tiny_estimator}[kind]
    model(vocabulary=8192).save_pretrained(folder)
    copy_tokenizer(SHIPPED / "tokenizer", folder)
    return folder


def edit(folder: Path, change: Mapping[str, Any], file: str = "config.json") -> None:
    """Set keys of the JSON object in a file of the folder."""
    found = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**found, **change}), encoding="utf-8")


def setting(**change: Any) -> Change:
    return partial(edit, change=change)


def content(file: str, text: str | bytes) -> Change:
    """Return a change that writes a file with this content."""

    def changed(folder: Path) -> None:
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    return changed


def both(*changes: Change) -> Change:
    def changed(folder: Path) -> None:
        for change in changes:
            change(folder)

    return changed


def removed(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Return a change that applies `change` to the tensors of the weights."""

    def changed(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def index(named: str, file: bytes | None = None) -> Change:
    """Return a change that renames the file of weights, and adds an index that names the file `named` for every weight.

    If `file` is not None, it is the content that is written to the file `named`.
    """

    def changed(folder: Path) -> None:
        names = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).rename(folder / "decoy.safetensors")
        if file is not None:
            (folder / named).write_bytes(file)
        places = {"metadata": {}, "weight_map": dict.fromkeys(names, named)}
        (folder / INDEX).write_text(json.dumps(places), encoding="utf-8")

    return changed


def linked(file: str, target: str) -> Change:
    def changed(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target)

    return changed


def torch_pickle() -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, stream)
    return stream.getvalue()


def poisoned(value: float) -> Change:
    return weights(lambda tensors: next(iter(tensors.values())).view(-1)[-1:].fill_(value))


def header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def fold(name: str) -> Change:
    return lambda folder: (folder / name).mkdir()


def tokenizer(**change: Any) -> Change:
    return partial(edit, change=change, file="tokenizer.json")


def tokenizer_model(**change: Any) -> Change:
    def changed(folder: Path) -> None:
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        edit(folder, {"model": {**model, **change}}, "tokenizer.json")

    return changed


def sparse(folder: Path) -> None:
    parts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts["model"]["vocab"]["a"] = OFTEN
    (folder / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")


def code(folder: Path) -> None:
    (folder / "evil.py").write_text(CODE_OF_A_MODEL, encoding="utf-8")


def replaced(count: int) -> dict[str, Any]:
    twice = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [twice] * count}


NO_SIZES: tuple[Any, ...] = (-1, 0, "8192", [1], {}, 32.0, True)
NOT_FINITE, TOO_LARGE, OTHER_TYPE = "not finite", "is more than weights of", "has the wrong type"
OWN_CODE = "it needs code of its own, which is never run"
OF_ITS_OWN = "not a safetensors file in its folder"
LOADS: None = None

CONFIGURATIONS = [
    Hostile("cut", "causal", content("config.json", '{"model_type": "'), "config.json is not JSON"),
    Hostile("empty", "causal", content("config.json", ""), "config.json is not JSON"),
    Hostile("of bytes", "causal", content("config.json", b'\xff\xfe{"a": 1}'), "config.json is not JSON"),
    Hostile("a list", "causal", content("config.json", "[]"), "config.json holds no JSON object"),
    Hostile("a null", "causal", content("config.json", "null"), "config.json holds no JSON object"),
    Hostile("nested deep", "causal", content("config.json", DEEP), "config.json is nested too deeply"),
    Hostile("long", "causal", content("config.json", b" " * 2**25), "config.json has more than 16,777,216 bytes"),
    Hostile("long number", "causal", content("config.json", f'{{"a": {"9" * 5000}}}'), "config.json is not JSON"),
    Hostile("a folder", "causal", both(removed("config.json"), fold("config.json")), "config.json is not a plain file"),
    Hostile("type list", "second-order", setting(model_type=["x"]), f"config.json: model_type .* {OTHER_TYPE}"),
    Hostile("type object", "second-order", setting(model_type={"a": 1}), f"config.json: model_type .* {OTHER_TYPE}"),
    Hostile("type unknown", "causal", setting(model_type="llama99"), "cannot be loaded: .*llama99"),
    Hostile("architectures number", "causal", setting(architectures=5), f"architectures 5 {OTHER_TYPE}"),
    Hostile("architectures null", "causal", setting(architectures=[None]), f"architectures .* {OTHER_TYPE}"),
    Hostile("text config", "causal", setting(text_config=3), f"text_config 3 {OTHER_TYPE}"),
    Hostile("transformer", "second-order", setting(transformer=[]), f"transformer .* {OTHER_TYPE}"),
    *(
        Hostile(f"{key} {value!r:.12}", "second-order", setting(**{key: value}), f"config.json: {key} .* whole number")
        for key in ("vocab_size", "context")
        for value in NO_SIZES
    ),
    Hostile("no vocabulary", "second-order", setting(vocab_size=None), "config.json has no vocab_size"),
    Hostile("positions list", "causal", setting(max_position_embeddings=[1]), "max_position_embeddings .* whole"),
    Hostile("positions text", "causal", setting(max_position_embeddings="x"), "max_position_embeddings .* whole"),
    Hostile("heads text", "causal", setting(num_attention_heads="x"), "cannot be loaded|do not fit"),
    Hostile("heads null", "causal", setting(num_attention_heads=None), "cannot be loaded|do not fit"),
    Hostile("heads zero", "causal", setting(num_attention_heads=0), "cannot be loaded|do not fit"),
    Hostile("width negative", "causal", setting(hidden_size=-24), "cannot be loaded|do not fit"),
    Hostile("activation", "causal", setting(hidden_act="evil"), "cannot be loaded"),
    Hostile("ropes", "causal", setting(rope_parameters=[]), "cannot be loaded"),
    Hostile("ids beyond", "second-order", setting(vocab_size=9000), "do not fit the 8192 ids of the transformer"),
    Hostile("start beyond", "second-order", setting(start_token=9000), "start_token 9000 do not fit"),
    Hostile("start negative", "second-order", setting(start_token=-1), "start_token -1 do not fit"),
    Hostile("deviation", "second-order", setting(label_deviation=float("inf")), f"labels that are {NOT_FINITE}"),
    Hostile("deviation text", "second-order", setting(label_deviation="x"), "cannot"),
]
SIZES = [
    Hostile("vocabulary 2^40", "second-order", setting(vocab_size=2**40), f"vocab_size .* {TOO_LARGE}"),
    Hostile("context 2^40", "second-order", setting(context=2**40), f"context .* {TOO_LARGE}"),
    Hostile("many layers", "causal", setting(num_hidden_layers=OFTEN), f"num_hidden_layers .* {TOO_LARGE}"),
    Hostile("layers", "causal", setting(num_hidden_layers=10**4), "describes more than 10,000 modules"),
    Hostile("heads", "causal", setting(num_attention_heads=OFTEN), f"num_attention_heads .* {TOO_LARGE}"),
    Hostile("width", "causal", setting(hidden_size=10**12), f"hidden_size .* {TOO_LARGE}"),
    Hostile("positions", "causal", setting(max_position_embeddings=2**40), f"max_position_embeddings .* {TOO_LARGE}"),
    Hostile("fold of many", "second-order", fold("fold-0-of-1000000000"), "is not a fold of a checkpoint"),
    Hostile("fold of fewer", "second-order", fold("fold-0-of-999999"), "does not hold 999999 folds: see fold-1-of-"),
    Hostile("fold of letters", "second-order", fold("fold-x-of-y"), "fold-x-of-y is not a fold of a checkpoint"),
    Hostile("fold a link", "second-order", linked("fold-0-of-1", f"../{OUTSIDE}"), "is not a fold of a checkpoint"),
]
WEIGHT_FILES = [
    Hostile("pickle", "second-order", both(removed(WEIGHTS), content("pytorch_model.bin", pickle.dumps(Bomb()))),
            r"only pickled ones \(pytorch_model.bin\)"),
    Hostile("index of pickle", "second-order", index("evil.bin", pickle.dumps(Bomb())), OF_ITS_OWN),
    Hostile("index of torch", "second-order", index("weights.json", torch_pickle()), OF_ITS_OWN),
    Hostile("index of torch named safetensors", "second-order", index("a.safetensors", torch_pickle()),
            "a.safetensors is not a safetensors file"),
    Hostile("index elsewhere", "second-order", index(f"../{OUTSIDE}/{WEIGHTS}"), OF_ITS_OWN),
    Hostile("index absolute", "second-order", index("/etc/passwd"), OF_ITS_OWN),
    Hostile("index of nothing", "second-order", index("absent.safetensors"), "names 'absent.saf"),
    Hostile("index of numbers", "second-order", both(index("x"), content(INDEX, '{"weight_map": {"a": 5}}')),
            OF_ITS_OWN),
    Hostile("index list", "second-order", both(index("x"), content(INDEX, "[]")), "index.json holds no JSON object"),
    Hostile("index without map", "second-order", both(index("x"), content(INDEX, "{}")), "has no weight_map"),
    Hostile("index deep", "second-order", both(index("x"), content(INDEX, DEEP)), "is nested too deeply"),
    Hostile("weights a link", "second-order", linked(WEIGHTS, f"../{OUTSIDE}/{WEIGHTS}"), "outside its folder"),
    Hostile("configuration a link", "causal", linked("config.json", f"../{OUTSIDE}/config.json"), "outside its"),
    Hostile("other weights", "causal", setting(transformers_weights="decoy.safetensors"), "transformers_weights "),
    Hostile("other configuration", "causal", setting(configuration_files=["../x.json"]), "configuration_files "),
    Hostile("parts of ranks", "causal", content("shard-00000-model-00001-of-00001.safetensors", b""), "is a part of"),
    Hostile("two of a name", "causal", both(index("decoy.safetensors"), lambda folder: two_of_a_name(folder)),
            "which another file holds too"),
    Hostile("header long", "second-order", content(WEIGHTS, header(b"{}", 2**60)), "is not a safetensors file"),
    Hostile("header deep", "second-order", content(WEIGHTS, header(DEEP.encode())), "is not a safetensors file"),
    Hostile("offsets beyond", "second-order", content(WEIGHTS, header(json.dumps(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode())), "is not a safetensors file"),
    Hostile("not a number", "second-order", poisoned(float("nan")), f"has weights that are {NOT_FINITE}"),
    Hostile("infinite", "estimator", poisoned(float("inf")), f"has weights that are {NOT_FINITE}"),
    Hostile("not a number causal", "causal", poisoned(float("nan")), f"has weights that are {NOT_FINITE}"),
    Hostile("overflow", "estimator", weights(lambda found: [each.fill_(3e38) for each in found.values()]), NOT_FINITE),
]  # fmt: skip
CODES = [
    Hostile("own class", "causal", both(setting(model_type="evil", auto_map=MAP), code), OWN_CODE),
    Hostile("own class from the Hub", "causal", setting(model_type="evil", auto_map={
        name: f"evil/repository--{value}" for name, value in MAP.items()}), OWN_CODE),
    Hostile("own class beside a known one", "causal", both(setting(auto_map=MAP), code), LOADS),
    Hostile("own class of ours", "second-order", both(setting(auto_map=MAP), code), LOADS),
    Hostile("own tokenizer", "causal", both(partial(
        edit, change={"auto_map": MAP_OF_TEXT, "tokenizer_class": "Evil"}, file="tokenizer_config.json"), code),
            LOADS),
    Hostile("own processor", "causal", both(content(
        "processor_config.json", json.dumps({"auto_map": MAP_OF_TEXT})), code), LOADS),
    Hostile("own generation", "causal", both(fold("custom_generate"), content(
        "custom_generate/generate.py", CODE)), LOADS),
    Hostile("kernel", "causal", setting(attn_implementation="evil/kernel"), "attn_implementation .* is not one of"),
    Hostile("kernel internal", "causal", setting(_attn_implementation_internal="evil/kernel"), "is not one of"),
    Hostile("kernel of a part", "causal", setting(attn_implementation={"text_config": "evil/kernel"}), "is not one of"),
    Hostile("kernel of experts", "causal", setting(experts_implementation="evil/kernel"), "is not one of"),
    Hostile("kernel within", "second-order", lambda folder: kernel_within(folder), "transformer.attn.* not one of"),
    Hostile("adapter", "causal", content("adapter_config.json", json.dumps(
        {"peft_type": "LORA", "base_model_name_or_path": "evil/base"})), "has an adapter_config.json"),
    Hostile("quantization", "causal", setting(quantization_config={"quant_method": "evil"}), LOADS),
]  # fmt: skip
UNREAD = [
    Hostile("generation", "causal", content("generation_config.json", "{"), LOADS),
    Hostile("special tokens", "causal", content("special_tokens_map.json", DEEP), LOADS),
    Hostile("card", "causal", content("README.md", b"---\n\xff: [\n" + DEEP.encode()), LOADS),
    Hostile("template", "causal", content("chat_template.jinja", "{{ ''.__class__ }}" * 99), LOADS),
]
TOKENIZERS = [
    Hostile("text cut", "causal", content("tokenizer.json", '{"version": "1.0", "mod'), "json is not a tokenizer"),
    Hostile("text empty", "causal", content("tokenizer.json", ""), "json is not a tokenizer"),
    Hostile("text bytes", "causal", content("tokenizer.json", b"\xff\xfe"), "json is not a tokenizer"),
    Hostile("text deep", "causal", content("tokenizer.json", DEEP), "json is not a tokenizer"),
    Hostile("text types", "causal", tokenizer(added_tokens={"id": "x"}), "json is not a tokenizer"),
    Hostile("text a link", "causal", linked("tokenizer.json", f"../{OUTSIDE}/tokenizer.json"), "outside its folder"),
    Hostile("text panics", "causal", tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "tokenizer.json is not a tokenizer: it cannot be loaded: Precompiled"),
    Hostile("text sparse", "causal", sparse, "with ids up to 1,000,000,000, unlike any sound tokenizer"),
    Hostile("text grows", "causal", tokenizer(normalizer=replaced(30)), "more than 64 times as long"),
    Hostile("words long", "causal", tokenizer_model(
        type="WordPiece", unk_token="a", continuing_subword_prefix="##", max_input_chars_per_word=OFTEN),
        "max_input_chars_per_word 1000000000"),
    Hostile("affix long", "causal", tokenizer_model(end_of_word_suffix="x" * 99), "to each piece|not a tokenizer"),
    Hostile("declared cut", "causal", content("tokenizer_config.json", "{"), "tokenizer_config.json is not JSON"),
    Hostile("declared list", "causal", content("tokenizer_config.json", "[]"), "holds no JSON object"),
    Hostile("declared deep", "causal", content("tokenizer_config.json", DEEP), "is nested too deeply"),
    Hostile("declared number", "causal", content("tokenizer_config.json", '{"bos_token": 5}'), "is not the text of"),
    Hostile("declared list of text", "causal", content(
        "tokenizer_config.json", '{"bos_token": {"content": ["x"]}}'), "is not the text of"),
    Hostile("start beyond the model", "causal", both(
        content("tokenizer_config.json", "{}"), setting(bos_token_id=OFTEN)), f"bos_token_id .* {TOO_LARGE}"),
    Hostile("start just beyond", "causal", both(
        content("tokenizer_config.json", "{}"), setting(bos_token_id=8192)), "declares token 8192 .*"),
    Hostile("start text", "causal", both(content("tokenizer_config.json", "{}"), setting(bos_token_id="x")),
            "cannot be loaded"),
]  # fmt: skip
ALL = [*CONFIGURATIONS, *SIZES, *WEIGHT_FILES, *CODES, *UNREAD, *TOKENIZERS]


def kernel_within(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit(folder, {"transformer": {**config["transformer"], "attn_implementation": "evil/kernel"}})


def two_of_a_name(folder: Path) -> None:
    shutil.copyfile(folder / "decoy.safetensors", folder / "other.safetensors")
    places = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    first = next(iter(places["weight_map"]))
    edit(folder, {"weight_map": {**places["weight_map"], first: "other.safetensors"}}, INDEX)
