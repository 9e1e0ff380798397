"""Codecs of the bottleneck: errors, ranges, sizes, and losses of a model with a codec."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.quantization import KINDS, Codec, CodecKind, read_embeddings, stored_losses, write_embeddings
from pipeline.models.window_encoder import WindowEncoder
from tests.tiny_models import random_tokens, tiny_autoencoder, tiny_estimator

BITS: dict[CodecKind, int] = {"float32": 32, "float16": 16, "int8": 8, "float8_e4m3fn": 8, "float8_e5m2": 8}
RANGE: dict[CodecKind, float] = {"float16": 65504, "float8_e4m3fn": 448, "float8_e5m2": 57344}
# Largest error, as a share of the value and as an absolute minimum
ERROR: dict[CodecKind, tuple[float, float]] = {
    "float32": (0, 0),
    "float16": (2**-11, 2**-25),
    "float8_e4m3fn": (2**-4, 2**-10),
    "float8_e5m2": (2**-3, 2**-17),
}
LENGTHS_B = torch.tensor([12, 5, 1])

floats = st.floats(-(2.0**100), 2.0**100, width=32)
rows = st.lists(st.tuples(floats, floats), min_size=1, max_size=20)


def codec_of(kind: CodecKind) -> Codec:
    return Codec.calibrated(kind, torch.tensor([[1.0, 0.5], [-2.0, 3.0]]))


@pytest.mark.parametrize("kind", ERROR)
@settings(max_examples=200, deadline=None)
@given(values=rows, exponent=st.integers(-40, 0))
def test_the_error_of_a_float_is_within_its_bound(
    kind: CodecKind, values: list[tuple[float, float]], exponent: int
) -> None:
    values_NE = torch.tensor(values) * 10.0**exponent
    largest = RANGE.get(kind, math.inf)
    share, least = ERROR[kind]
    expected_NE = values_NE.clamp(-largest, largest)
    error_NE = (expected_NE - codec_of(kind).round_trip(values_NE)).abs().double()
    assert (error_NE <= (share * expected_NE.abs().double()).clamp(min=least)).all()


@settings(max_examples=200, deadline=None)
@given(training=rows, values=rows)
def test_the_error_of_an_integer_is_half_of_its_step(
    training: list[tuple[float, float]], values: list[tuple[float, float]]
) -> None:
    training_NE, values_NE = torch.tensor(training), torch.tensor(values)
    codec = Codec.calibrated("int8", training_NE)
    assert codec.scale_E is not None and (codec.scale_E * 127 >= training_NE.abs() * (1 - 1e-6)).all()
    largest_E = 127 * codec.scale_E.double()
    for seen_NE in (training_NE, values_NE):
        expected_NE = seen_NE.double().clamp(min=-largest_E, max=largest_E)
        error_NE = (expected_NE - codec.round_trip(seen_NE)).abs()
        assert (error_NE <= 0.50001 * codec.scale_E).all()


@pytest.mark.parametrize("kind", KINDS)
def test_values_beyond_the_range_saturate(kind: CodecKind) -> None:
    codec, far_1E = codec_of(kind), torch.tensor([[3e38, -3e38]])
    decoded_1E = codec.round_trip(far_1E)
    assert decoded_1E.isfinite().all()
    if kind == "int8":
        torch.testing.assert_close(decoded_1E, torch.tensor([[2.0, -3.0]]))
    else:
        largest = RANGE.get(kind, 3e38)
        assert decoded_1E.tolist() == [[pytest.approx(largest), pytest.approx(-largest)]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_numbers_are_refused(kind: CodecKind, value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        codec_of(kind).encode(torch.tensor([[0.0, value]]))


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_values_are_encoded_to_the_same_bits(kind: CodecKind) -> None:
    codec, values_NE = codec_of(kind), torch.randn(100, 2)
    stored_NE = codec.encode(values_NE)
    assert torch.equal(codec.encode(codec.decode(stored_NE)).view(torch.uint8), stored_NE.view(torch.uint8))


def test_a_number_that_is_always_zero_stays_zero() -> None:
    codec = Codec.calibrated("int8", torch.tensor([[0.0, 1.0]]))
    assert codec.round_trip(torch.tensor([[0.0, 1.0]])).tolist() == [[0.0, 1.0]]


def test_a_scale_must_fit_its_kind() -> None:
    for kind, scale_E, message in (
        ("int8", None, "needs a scale"),
        ("float16", torch.ones(1), "has no scale"),
        ("int8", torch.zeros(1), "finite and above 0"),
        ("int8", torch.tensor([math.nan]), "finite and above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Codec(kind, scale_E)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not stored by a codec of kind int8"):
        codec_of("int8").decode(torch.zeros(1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_has_the_size_of_its_values_and_is_read_back(kind: CodecKind, tmp_path: Path) -> None:
    codec, values_NE = codec_of(kind), torch.randn(1000, 2)
    stored_NE, file = codec.encode(values_NE), tmp_path / "windows.safetensors"
    write_embeddings(file, codec, stored_NE)
    assert codec.bits == BITS[kind]
    assert 0 <= file.stat().st_size - 1000 * 2 * codec.bits // 8 <= 250
    again, read_NE = read_embeddings(file)
    assert again.kind == kind
    assert torch.equal(read_NE.view(torch.uint8), stored_NE.view(torch.uint8))
    assert torch.equal(again.decode(read_NE), codec.round_trip(values_NE))


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other"
    file.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_embeddings(file)
    save_file({"embeddings": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="holds no window embeddings"):
        read_embeddings(file)
    save_file({"embeddings": torch.zeros(1)}, file, metadata={"kind": "float16"})
    with pytest.raises(ValueError, match=r"names float16 and holds torch\.float32"):
        read_embeddings(file)


def losses_rounded_in_place(model: WindowEncoder, codec: Codec, input_ids_BT: Tensor) -> Tensor:
    """Return the losses from a second implementation, in which `down` itself returns rounded numbers."""

    def rounded(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return codec.round_trip(output)

    hook = model.down.register_forward_hook(rounded)
    losses_BT = model.token_losses(input_ids_BT, LENGTHS_B)
    hook.remove()
    return losses_BT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [tiny_estimator, lambda: tiny_autoencoder(bottleneck_width=3)])
def test_losses_are_those_of_the_stored_embedding(make: type[WindowEncoder], kind: CodecKind) -> None:
    model, input_ids_BT = make(), random_tokens(3, 12)  # type: ignore[call-arg]
    codec = Codec.calibrated(kind, model.window_bottlenecks(random_tokens(9, 12, seed=1), torch.full((9,), 12)))
    found = stored_losses(model, codec, input_ids_BT, LENGTHS_B)
    expected_BT = losses_rounded_in_place(model, codec, input_ids_BT)
    exact_BT = model.token_losses(input_ids_BT, LENGTHS_B)
    torch.testing.assert_close(found.losses_BT, expected_BT, atol=1e-6, rtol=1e-6)
    assert torch.equal(found.losses_BT, exact_BT) == (kind == "float32")
    assert found.bits == 3 * 3 * BITS[kind]
    for row, code_length in enumerate(found.code_lengths_B.tolist()):
        by_hand = math.fsum(found.losses_BT[row].tolist()) + 3 * BITS[kind] * math.log(2)
        assert code_length == pytest.approx(by_hand, rel=1e-12)
