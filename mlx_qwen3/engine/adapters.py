"""The adapters of an engine: a model for each name, all with the arrays of one base."""

from collections.abc import Mapping
from pathlib import Path

from ..errors import MemoryBudgetError, UsageError
from ..files.adapters import Adapter, open_adapter
from ..files.reading import short
from ..files.sizes import gigabytes
from ..model.adapted import adapted
from ..model.qwen3 import Qwen3

Models = dict[str | None, Qwen3]  # by adapter; None is the base
Named = Mapping[str, Adapter | str | Path]  # by name, each opened or a FOLDER|HUBID[=SCALE]


def adapted_models(model: Qwen3, adapters: Named, budget: int) -> Models:
    """The model, and the model with each of these adapters. All share the arrays of `model`, which stays as it is.

    Raises MemoryBudgetError, before anything is loaded, if they do not fit beside the model in `budget` bytes, and what
    `open_adapter` raises.
    """
    if not isinstance(adapters, Mapping):
        raise UsageError(f"adapters is {short(repr(adapters))}; expected adapters by name, as in {{NAME: FOLDER}}")
    opened = {name: open_adapter(adapter, model.config) for name, adapter in adapters.items()}
    dtype = model.norm.weight.dtype
    more = sum(adapter.nbytes(model.config, dtype) for adapter in opened.values())
    if (need := model.nbytes + more) > budget:
        parts, remedy = "the weights", "use fewer bits (convert --quantize affine4)"
        if opened:
            parts, remedy = f"the weights and {len(opened)} adapters", "give fewer adapters"
        raise MemoryBudgetError(
            f"{parts} take {gigabytes(need)} and the memory budget is {gigabytes(budget)}; {remedy} or a larger memory "
            "budget"
        )
    return {None: model, **{name: adapted(model, [adapter]) for name, adapter in opened.items()}}


def check_adapter(adapter: str | None, known: Models) -> None:
    """Raises UsageError for a name that is not one of the engine's adapters."""
    if adapter not in known:
        names = ", ".join(name for name in known if name) or "none"
        raise UsageError(f"adapter is {adapter!r:.200}; this engine has {names}")
