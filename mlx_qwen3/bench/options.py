"""What to measure: which contestants, and whether they can read the checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from .. import blas
from ..engine.memory import default_budget
from ..engine.weights import PACKED, UNPACKED, choose
from ..errors import UsageError
from ..files.adapters import Adapter, open_adapter
from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.dtypes import DTYPES, dtype_name

DEFAULT = "default"  # every contestant uses its own default dtype, as it does for its users


@dataclass(frozen=True)
class Kind:
    """A contestant that can be measured: the module of workers/ that runs it, and what it needs."""

    module: str
    packages: tuple[str, ...] = ()  # as imported
    install: str = ""
    reads: tuple[str, ...] = ("plain", "packed", "native", "awq", "release")
    any_dtype: bool = True
    adapts: tuple[str, ...] = ("PEFT", "mlx-lm")  # whose adapters it applies
    batches: bool = False  # whether its users can run many requests at once, of which --rows measures the speed
    # Without a cache each token costs a pass over all tokens before it. So prompts of up to N tokens get M new ones:
    # (N, M), smallest N first; longer prompts are left out.
    limited: tuple[tuple[int, int], ...] = ()


OURS = "mlx-qwen3"
KINDS = {
    OURS: Kind("ours", batches=True),
    "transformers": Kind(
        "peer_transformers", ("torch", "transformers"), "torch transformers", reads=("plain",), adapts=("PEFT",)
    ),
    "reference": Kind("peer_reference", ("torch",), "torch", any_dtype=False, limited=((64, 8), (512, 1))),
    "mlx-lm": Kind(
        "peer_mlx_lm", ("mlx_lm",), "mlx-lm", reads=("plain", "packed", "awq"), adapts=("mlx-lm",), batches=True
    ),
}
# form of a checkpoint -> what it is, and how others can be measured with it
FORMS = {
    "packed": ("quantized", "compare with the checkpoint that is not quantized"),
    "native": ("in this package's native layout", "convert with --layout hf"),
    "awq": ("an AWQ release", "compare with the release that is not quantized"),
    "release": ("an FP8, GPTQ or compressed-tensors release", "convert with --layout hf"),
}
MOST_ROWS = 32  # that one step of any contestant computes; more would wait for others
DEFAULT_PEERS = ("transformers", "mlx-lm")


@dataclass(frozen=True)
class Options:
    """`against`: names, such as mlx-lm or mlx-lm:fp32. None: all that are installed and can read the checkpoint.

    `rows`: numbers of requests that run at once, each with a prompt of the shortest length. `repeat`: None for as many
    rounds as end in about a minute, at most 5. `fit`: make prompts and replies smaller if they would take longer.
    """

    source: str
    against: tuple[str, ...] | None = None
    prompt_tokens: tuple[int, ...] = (16, 512)
    generate: int = 64
    repeat: int | None = None
    dtype: str = DEFAULT
    same_blas: bool = False
    reference: bool = True
    rows: tuple[int, ...] = ()
    weights: str | None = None  # of this package, see `mlx_qwen3.load`
    adapters: tuple[str, ...] = ()  # each FOLDER|HUBID[=SCALE], for all contestants
    fit: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError."""
        numbers = {"--generate": self.generate, "--repeat": 1 if self.repeat is None else self.repeat}
        numbers |= {f"--prompt-tokens {length}": length for length in self.prompt_tokens}
        numbers |= {f"--rows {rows}": rows for rows in self.rows}
        for name, value in numbers.items():
            if value < 1:
                raise UsageError(f"{name.split()[0]} is {value}; expected 1 or more")
        if not self.prompt_tokens or len(set(self.prompt_tokens)) < len(self.prompt_tokens):
            given = ",".join(map(str, self.prompt_tokens))
            raise UsageError(f"--prompt-tokens is {given!r}; expected different lengths, such as 16,512")
        if len(set(self.rows)) < len(self.rows) or any(rows > MOST_ROWS for rows in self.rows):
            given = ",".join(map(str, self.rows))
            raise UsageError(f"--rows is {given!r}; expected different numbers up to {MOST_ROWS}, such as 1,8")
        if self.dtype not in (DEFAULT, *DTYPES):
            raise UsageError(f"--dtype is {self.dtype!r}; expected {DEFAULT}, {', '.join(DTYPES)}")
        if self.same_blas and not blas.in_use:
            raise UsageError(f"--same-blas needs a BLAS to share; {blas.advice() or 'none is in use here'}")


@dataclass(frozen=True)
class Contestant:
    name: str  # as it was asked for
    kind: Kind
    dtype: str | None  # None: its own default
    blas: str = ""  # a library to load first
    weights: str | None = None  # packed or unpacked: of this package alone
    adapters: tuple[str, ...] = ()  # each FOLDER or FOLDER=SCALE, with an absolute path

    @property
    def dtype_name(self) -> str | None:
        """Its dtype by the name that MLX and torch have for it, such as bfloat16."""
        return dtype_name(DTYPES[self.dtype]) if self.dtype else None


def contestants(options: Options, checkpoint: Checkpoint) -> list[Contestant]:
    """This package and those it is measured against. Raises UsageError that names what is missing, and the remedy."""
    form, adapters = _form(checkpoint), [open_adapter(adapter, checkpoint.config) for adapter in options.adapters]
    _check_lengths(options, checkpoint.config)
    wanted = options.against
    if wanted is None:
        able = (n for n in DEFAULT_PEERS if form in KINDS[n].reads and not _missing(KINDS[n]))
        wanted = tuple(name for name in able if not _unfit(name, adapters))
    names = [OURS, *dict.fromkeys(wanted)]
    first = next((i for i, name in enumerate(names) if name.split(":")[0] == "transformers"), None)
    if first is not None and options.reference and "reference" not in names:
        names.insert(first + 1, "reference")
    asked = tuple(adapter.placed for adapter in adapters)
    found = [replace(_contestant(name, options), adapters=asked) for name in names]
    for contestant in found:
        _check(contestant, form)
        if reason := _unfit(contestant.name.partition(":")[0], adapters):
            raise UsageError(f"{reason}; leave {contestant.name} out of --against")
        if contestant.weights:
            choose([checkpoint], None, contestant.weights, default_budget())
    return found


def _contestant(name: str, options: Options) -> Contestant:
    base, _, choice = name.partition(":")
    if base not in KINDS:
        raise UsageError(f"--against has {base!r}; expected some of {', '.join(KINDS)}")
    kind, forms = KINDS[base], (PACKED, UNPACKED) if base == OURS else ()
    if ":" in name and choice not in ((*DTYPES, *forms) if kind.any_dtype else ()):
        known = f"one of {', '.join((*DTYPES, *forms))} after the colon"
        allowed = known if kind.any_dtype else "no dtype: it is float32"
        raise UsageError(f"--against has {name!r}; {base} takes {allowed}")
    weights = (choice if choice in forms else options.weights) if base == OURS else None
    dtype = (choice if choice in DTYPES else "") or (options.dtype if options.dtype != DEFAULT else None)
    library = blas.in_use or "" if options.same_blas and base != OURS else ""
    return Contestant(name, kind, dtype if kind.any_dtype else None, library, weights)


def _check(contestant: Contestant, form: str) -> None:
    if missing := _missing(contestant.kind):
        raise UsageError(
            f"--against {contestant.name} needs the package {missing}; pip install {contestant.kind.install}, "
            "or leave it out"
        )
    if form not in contestant.kind.reads:
        what, remedy = FORMS[form]
        raise UsageError(
            f"the checkpoint is {what}, which {contestant.name} cannot read; leave it out of --against, or {remedy}"
        )


def _unfit(name: str, adapters: Sequence[Adapter]) -> str | None:
    """Why a contestant cannot be measured with these adapters."""
    kind = KINDS[name]
    if other := next((a for a in adapters if a.config.form not in kind.adapts), None):
        return f"{other.source} is {other.config.in_words}, which {name} cannot apply"
    if name in (OURS, "reference") or not adapters:
        return None
    if len(adapters) > 1 or adapters[0].strength != 1:
        return f"{name} is measured with one adapter and without a scale"
    return (
        "transformers needs the package peft for adapters" if name == "transformers" and not find_spec("peft") else None
    )


def _missing(kind: Kind) -> str | None:
    return next((package for package in kind.packages if find_spec(package) is None), None)


def _form(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    if (checkpoint.raw_config.get("mlx_qwen3") or {}).get("layout") == "native":
        return "native"
    if config.form:
        return "awq" if config.form.method == "awq" else "release"
    return "packed" if config.quantization or any(config.quantization_overrides.values()) else "plain"


def _check_lengths(options: Options, config: Qwen3Config) -> None:
    longest = max(options.prompt_tokens) + options.generate
    if options.rows and (needed := min(options.prompt_tokens) + options.generate + max(options.rows)) > longest:
        longest = needed  # the first row makes a token more for each row that begins after it
    if longest > config.context_length:
        raise UsageError(
            f"--prompt-tokens {max(options.prompt_tokens)} and --generate {options.generate} exceed the context of "
            f"{config.context_length}{', with --rows' if options.rows else ''}; make one of them smaller"
        )


def parse(against: str | None, prompt_tokens: str, rows: str | None = None, **choices: Any) -> Options:
    """Options from a command line's words. Raises UsageError."""
    lengths = parse_numbers("--prompt-tokens", prompt_tokens, "16,512,2048")
    numbers = () if rows is None else parse_numbers("--rows", rows, "1,2,4,8,16")
    return Options(against=parse_names(against), prompt_tokens=lengths, rows=numbers, **choices)


def parse_numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    """`16,512` as numbers, smallest first. Raises UsageError."""
    try:
        return tuple(sorted(int(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f"{option} is {text!r}; expected numbers with commas, such as {example}") from None


def tokens_made(kind: Kind, length: int, wanted: int) -> int:
    """How many tokens a contestant makes after a prompt of this length; 0 leaves it out."""
    if not kind.limited:
        return wanted
    return next((min(made, wanted) for most, made in kind.limited if length <= most), 0)


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """`transformers,mlx-lm` as names; an empty text is no names, and None stays None."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
