"""The error of a tensor in a conversion: the difference between its values before and after."""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import CheckpointError
from ..files.values import Floats


@dataclass(frozen=True)
class TensorError:
    """The largest difference, the norm of the difference over the norm, and the latter for the worst row.

    `experts` has the latter for each expert of a stack, and is empty for any other tensor.
    """

    max: float
    relative: float
    worst_row: int
    worst_row_relative: float
    experts: tuple[float, ...] = ()


class Tally:
    """Adds up the error of a tensor, one block of rows after the other."""

    def __init__(self, name: str, shape: tuple[int, ...] = ()):
        """`shape` is that of the whole tensor: with 3 dimensions it is a stack of experts."""
        self._name = name
        self._experts, self._rows_each = shape[:2] if len(shape) == 3 else (0, 0)
        self._sums = np.zeros((2, self._experts))  # squares of the differences and of the values, of each expert
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
        if self._experts:
            experts = np.arange(self._rows, self._rows + len(source)) // self._rows_each
            self._sums += [np.bincount(experts, values, self._experts) for values in (squares, norms)]
        self._rows += len(source)

    @property
    def used(self) -> bool:
        return self._rows > 0

    @property
    def error(self) -> TensorError:
        relative = math.sqrt(self._difference / self._norm) if self._norm else 0.0
        differences, norms = self._sums
        experts = np.sqrt(differences / np.where(norms > 0, norms, 1))  # an expert of zeros has no error
        return TensorError(self._largest, relative, self._worst[0], math.sqrt(self._worst[1]), tuple(experts.tolist()))
