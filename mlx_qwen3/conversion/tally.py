"""The error of a tensor in a conversion: the difference between its values before and after."""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import CheckpointError
from ..files.values import Floats


@dataclass(frozen=True)
class TensorError:
    """The largest difference, the norm of the difference over the norm, and the latter for the worst row."""

    max: float
    relative: float
    worst_row: int
    worst_row_relative: float


class Tally:
    """Adds up the error of a tensor, one block of rows after the other."""

    def __init__(self, name: str):
        self._name = name
        self._rows = 0
        self._largest = 0.0
        self._difference = self._norm = 0.0  # squares
        self._worst = (0, 0.0)

    def add(self, source: Floats, result: Floats) -> None:
        """Add the next rows, before and after the conversion: float32 (rows, columns). Overwrites `result`."""
        with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are found below
            difference = np.subtract(result, source, out=result)
            squares = np.einsum("ij,ij->i", difference, difference)
            norms = np.einsum("ij,ij->i", source, source)
        self._largest = max(self._largest, float(difference.max()), -float(difference.min()))
        self._difference += float(squares.sum(dtype=np.float64))
        self._norm += float(norms.sum(dtype=np.float64))
        if not math.isfinite(self._difference + self._norm):
            row = self._rows + int(np.argmin(np.isfinite(squares + norms)))
            raise CheckpointError(
                f"{self._name} holds a value in row {row} that is not finite or too large for float32"
            )
        relative = squares / np.maximum(norms, np.finfo(np.float32).tiny)
        row = int(relative.argmax())
        if relative[row] > self._worst[1]:
            self._worst = (self._rows + row, float(relative[row]))
        self._rows += len(source)

    @property
    def used(self) -> bool:
        return self._rows > 0

    @property
    def error(self) -> TensorError:
        relative = math.sqrt(self._difference / self._norm) if self._norm else 0.0
        return TensorError(self._largest, relative, self._worst[0], math.sqrt(self._worst[1]))
