"""Storage of window embeddings in fewer bits, by post-training casts of the bottleneck's numbers (paper: quantization).

A codec stores every number in a fixed number of bits and decodes it to float32. The loss of accuracy depends on the
model's training. Noise with an amplitude of half of the codec's step size (`WindowEncoderConfig.noise`) makes a model
tolerate the codec.

B rows, T tokens, E bottleneck width, N windows.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.window_encoder import WindowEncoder

CodecKind = Literal["float32", "float16", "int8", "float8_e4m3fn", "float8_e5m2"]
KINDS: tuple[CodecKind, ...] = get_args(CodecKind)
LARGEST_INTEGER = 127  # -128 is not used, so that the range is symmetric


@dataclass(frozen=True)
class Codec:
    """Storage format of bottleneck values. Values beyond the format's range saturate.

    Errors inside the range, in addition to float32's own rounding:

    | kind | range | largest error |
    |---|---|---|
    | float32 | 3.4e38 | 0 |
    | float16 | 65504 | 2^-11 of the value, at least 2^-25 |
    | int8 | 127 scales | half of a scale |
    | float8_e4m3fn | 448 | 2^-4 of the value, at least 2^-10 |
    | float8_e5m2 | 57344 | 2^-3 of the value, at least 2^-17 |

    For int8, `scale_E` is the step size for each of the E values of a bottleneck, or one step size for all E. For other
    kinds, `scale_E` is None.
    """

    kind: CodecKind
    scale_E: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.kind == "int8") != (self.scale_E is not None):
            raise ValueError(f"a codec of kind {self.kind} {'needs a' if self.kind == 'int8' else 'has no'} scale")
        if self.scale_E is not None and not (self.scale_E.isfinite() & (self.scale_E > 0)).all():
            raise ValueError("a scale must be finite and above 0; calibrate it on values that are finite")

    @classmethod
    def calibrated(cls, kind: CodecKind, values_NE: Tensor) -> Self:
        """Return a codec for these values.

        The range of int8 is made just large enough for the values. The other kinds have fixed ranges. Pass values from
        training text, because the scale is part of the model and must be known before encoding.
        """
        if kind != "int8":
            return cls(kind)
        scale_E = values_NE.detach().float().abs().amax(dim=0) / LARGEST_INTEGER
        return cls(kind, scale_E.clamp(min=torch.finfo(torch.float32).tiny))  # for a number that is 0 in all windows

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the stored numbers."""
        dtype: torch.dtype = getattr(torch, self.kind)
        return dtype

    @property
    def bits(self) -> int:
        """Bits per number."""
        return 8 * self.dtype.itemsize

    def encode(self, values_BE: Tensor) -> Tensor:
        """Return values converted to the codec's dtype.

        Raises:
            ValueError: if a value is NaN or infinite.
        """
        if not values_BE.isfinite().all():
            raise ValueError("NaN or infinite values cannot be stored; the model that made them has diverged")
        if self.scale_E is not None:
            steps_BE = (values_BE.float() / self.scale_E.to(values_BE.device)).round()
            return steps_BE.clamp(-LARGEST_INTEGER, LARGEST_INTEGER).to(self.dtype)
        largest = torch.finfo(self.dtype).max
        return values_BE.float().clamp(-largest, largest).to(self.dtype)  # e5m2 and float16 would overflow to infinity

    def decode(self, stored_BE: Tensor) -> Tensor:
        """Return stored values converted to float32.

        Raises:
            ValueError: if a codec of another kind stored the values.
        """
        if stored_BE.dtype != self.dtype:
            raise ValueError(f"values of {stored_BE.dtype} were not stored by a codec of kind {self.kind}")
        values_BE = stored_BE.float()
        return values_BE if self.scale_E is None else values_BE * self.scale_E.to(values_BE.device)

    def round_trip(self, values_BE: Tensor) -> Tensor:
        """Return the values after encoding and decoding, in their original dtype."""
        return self.decode(self.encode(values_BE)).to(values_BE.dtype)


class StoredLosses(NamedTuple):
    """Losses of windows' tokens in nats (0 at padding), and the stored embeddings from which they were computed."""

    losses_BT: Tensor
    stored_BE: Tensor

    @property
    def bits(self) -> int:
        """Size of all rows' stored embeddings together, in bits."""
        return 8 * self.stored_BE.nbytes

    @property
    def code_lengths_B(self) -> Tensor:
        """Code length of each window in nats, float64: its tokens' losses plus the size of its stored embedding."""
        return self.losses_BT.double().sum(dim=1) + self.bits / len(self.stored_BE) * math.log(2)


def stored_losses(model: WindowEncoder, codec: Codec, input_ids_BT: Tensor, lengths_B: Tensor) -> StoredLosses:
    """Return the encoded embeddings of windows, and the model's token losses given the embeddings after decoding."""
    values_BE = model.window_bottlenecks(input_ids_BT, lengths_B)
    stored_BE = codec.encode(values_BE)
    decoded_BE = codec.decode(stored_BE).to(values_BE.dtype)
    return StoredLosses(model.decode_losses(decoded_BE, input_ids_BT, lengths_B), stored_BE)


def write_embeddings(file: Path, codec: Codec, stored_NE: Tensor) -> None:
    """Write the stored embeddings of a set of windows, together with their codec, to a safetensors file.

    The file has a header of some 200 bytes, and all values in the codec's dtype. A codec of kind int8 also stores its
    scale in float32.
    """
    tensors = {"embeddings": stored_NE.contiguous()}
    if codec.scale_E is not None:
        tensors["scale"] = codec.scale_E.float().contiguous()
    save_file(tensors, file, metadata={"kind": codec.kind})


def read_embeddings(file: Path) -> tuple[Codec, Tensor]:
    """Return the codec and the stored embeddings [N, E] from a file.

    Raises:
        ValueError: if `write_embeddings` did not write the file.
    """
    try:
        with safe_open(file, "pt") as opened:
            kind, names = (opened.metadata() or {}).get("kind"), set(opened.keys())
            if kind not in KINDS or "embeddings" not in names:
                raise ValueError(f"{file} holds no window embeddings")
            codec = Codec(kind, opened.get_tensor("scale") if "scale" in names else None)
            stored_NE: Tensor = opened.get_tensor("embeddings")
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from error
    if stored_NE.dtype != codec.dtype:
        raise ValueError(f"{file} names {kind} and holds {stored_NE.dtype}")
    return codec, stored_NE
