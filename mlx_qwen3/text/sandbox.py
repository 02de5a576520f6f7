"""Jinja as transformers runs a chat template, with limits: a template is a program that came with a checkpoint.

The options, filters and functions are those of transformers. The limits are ours: a template that would fill the memory
or never end raises TemplateLimitError.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ..errors import CheckpointError
from .growth import (
    FILTERS,
    MAX_SIZE,
    MAX_SOURCE,
    METHODS,
    OPERATORS,
    TemplateLimitError,
    check_growth,
    check_size,
    size,
)
from .template_parts import Dict, Generation, SafeNamespace, raise_exception, tojson

MAX_SECONDS = 5.0  # of the thread's processor time for one conversation
TOO_DEEP = "the chat template nests too deeply; take the template of the model's release"
CHECK, COUNT = "a value", "a round"  # filters that no template can write, since their names hold a space


@lru_cache(maxsize=32)
def compile_template(source: str) -> jinja2.Template:
    """The template of a source text. Raises CheckpointError if it is not Jinja, too long or nested too deeply."""
    tree = _tree(source)
    environment: jinja2.Environment = tree.environment  # type: ignore[assignment]  # that of every parsed node
    with _budget, _refused():
        code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


@lru_cache(maxsize=32)
def variables(source: str) -> frozenset[str]:
    """The names that a template reads and does not set itself."""
    with _refused():
        return frozenset(meta.find_undeclared_variables(_tree(source)))


@lru_cache(maxsize=32)
def written_text(source: str) -> str:
    """The literal texts of a template, which it writes or compares with, joined by null characters."""
    with _refused():
        texts = [node.data for node in _tree(source).find_all(nodes.TemplateData)]
        constants = [node.value for node in _tree(source).find_all(nodes.Const)]
    return "\0".join(texts + [value for value in constants if isinstance(value, str)])


def render(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """The text of a template. Raises whatever the template raises; TemplateLimitError if it is past a limit."""
    with _budget:
        return template.render(values)


@lru_cache(maxsize=32)
def _tree(source: str) -> nodes.Template:
    """The parsed template, with its limits."""
    if len(source) > MAX_SOURCE:
        raise CheckpointError(f"the chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are read")
    environment = _Environment()
    with _budget, _refused():
        tree: nodes.Template = _Limits(environment).visit(environment.parse(source))
    return tree


@contextmanager
def _refused() -> Iterator[None]:
    """Raise the errors of Jinja and Python about the source of a template as CheckpointError."""
    try:
        yield
    except (jinja2.TemplateError, ValueError) as error:  # ValueError: a number of 5,000 digits
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the chat template is not valid Jinja: {reason}") from None
    except (RecursionError, MemoryError, SyntaxError):  # of Python, which compiles what Jinja made of the source
        raise CheckpointError(TOO_DEEP) from None


class _Budget(threading.local):
    """The time and the output that the rendering in this thread has used."""

    def __init__(self) -> None:
        self._depth = 0
        self._end = 0.0
        self._written = 0
        self._checks = 0

    def __enter__(self) -> None:
        if not self._depth:
            self._end, self._written = time.thread_time() + MAX_SECONDS, 0
        self._depth += 1

    def __exit__(self, *_error: object) -> None:
        self._depth -= 1

    def write(self, characters: int) -> None:
        self._written += characters
        if self._depth and self._written > MAX_SIZE:
            raise TemplateLimitError(f"it writes more than {MAX_SIZE:,} characters")

    def check_time(self) -> None:
        self._checks += 1
        if self._checks % 32 == 0 and self._depth and time.thread_time() > self._end:  # asking costs 0.3 us
            raise TemplateLimitError(f"it runs for more than {MAX_SECONDS:g} seconds")


_budget = _Budget()


class _Environment(ImmutableSandboxedEnvironment):
    """The environment whose checks every operator, filter and call of a template passes."""

    intercepted_binops = frozenset(OPERATORS)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], finalize=_write)
        functions = {**self.filters, "tojson": tojson, CHECK: lambda value: value}
        self.filters = {name: _limited(name, function) for name, function in functions.items()}
        self.filters[COUNT] = _count_round
        del self.globals["lipsum"]  # random text of any length
        self.globals |= {
            "raise_exception": raise_exception,
            "strftime_now": lambda pattern: datetime.now().strftime(pattern),
            "dict": Dict(),
            "namespace": SafeNamespace,
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_growth(OPERATORS[operator], left, right)
        return _checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int):
            args = _materialized(args)
            given = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
            check_growth(METHODS.get(method.__name__), owner, *args, **given)
        return _checked(super().call(__context, __obj, *args, **kwargs))


class _Limits(NodeTransformer):
    """Adds to a parsed template the checks for which Jinja has no hook.

    Every iteration of a loop and every call of a macro checks the time, and counts its plain text as output. Every
    list, tuple, dict and `~` checks the size of its value.
    """

    def __init__(self, environment: jinja2.Environment):
        self._environment = environment

    def get_visitor(self, node: nodes.Node) -> Any:
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
            return self._count
        if isinstance(node, nodes.List | nodes.Dict | nodes.Concat | nodes.Tuple) and not _is_constant(node):
            return self._check
        return None

    def _count(self, node: Any) -> nodes.Node:
        parts = [text for part in node.body for text in part.find_all(nodes.TemplateData)]
        self.generic_visit(node)
        count = self._filter(nodes.Const(sum(len(text.data) for text in parts)), COUNT, node)
        node.body.insert(0, self._placed(nodes.ExprStmt(count), node))
        return node

    def _check(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, CHECK, node)

    def _filter(self, value: nodes.Expr, name: str, origin: nodes.Node) -> Any:
        return self._placed(nodes.Filter(value, name, [], [], None, None), origin)

    def _placed(self, node: nodes.Node, origin: nodes.Node) -> nodes.Node:
        return node.set_lineno(origin.lineno).set_environment(self._environment)


def _is_constant(node: nodes.Expr) -> bool:
    """True for a value that is as long as its source, and for a target of an assignment."""
    if getattr(node, "ctx", "load") != "load":
        return True
    try:
        node.as_const()
    except nodes.Impossible:
        return False
    return True


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks what it is about to make, and what it made."""
    takes_context = hasattr(function, "jinja_pass_arg")

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        if name in FILTERS:
            args = _materialized(args)
            check_growth(FILTERS[name], *args[takes_context:], **kwargs)
        return _checked(function(*args, **kwargs))

    return limited


def _materialized(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Generators as lists, since their size counts."""
    return tuple(list(_timed(arg)) if isinstance(arg, Iterator) else arg for arg in args)


def _timed(values: Iterator[Any]) -> Iterator[Any]:
    for value in values:
        _budget.check_time()
        yield value


def _checked(value: Any) -> Any:
    """A new value, unless it is too large or the time is over."""
    _budget.check_time()
    check_size(value)
    return value


def _write(value: Any) -> Any:
    """What is between {{ and }}, before it becomes text."""
    _budget.write(len(value) if isinstance(value, str) else size(value))
    return value


@jinja2.pass_context  # or Jinja would compute it once, when it compiles
def _count_round(_context: Context, characters: int) -> None:
    _budget.check_time()
    _budget.write(max(0, characters))
