"""Check that a loss, gate or advantage gives what a run asks of it, before anything runs.

Functions of a user's own are the reason. Each is traced with abstract arrays, so nothing is
computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssppo_jax import config as cfg
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses import ADVANTAGES, GATES, LOSSES, RATIO_GATES
from ssppo_jax.losses.ratio_gates import Gated
from ssppo_jax.schema.keys import COMPONENTS
from ssppo_jax.types import Batch, Max, Mean, Min, Policy

# What a function of a user's own must look like: its arguments, and what it returns.
CALLS = {
    "loss": (2, "a loss is f(policy, batch, *, key=default) and returns (Mean, {name: Mean})"),
    "pairs.gate": (1, "a gate is f(similarity, *, key=default) and returns a factor for each"),
    "advantage": (1, "an advantage is f(reward, *, key=default) and returns one for each reward"),
    "oracle": (
        0,
        "an oracle is made by f(*, key=default), which returns Oracle(ask); a reward function is"
        " chosen by oracle.name=python and oracle.function=NAME",
    ),
    "data.source": (0, "a source is f(*, key=default) and returns a list of Prompt"),
    "optimizer": (
        0,
        "an optimizer is f(*, key=default) and returns an optax transformation without the learning"
        " rate, such as optax.scale_by_adam()",
    ),
}


RATIO_GATE_KEYS = {"sspo_gate", "sapo_gate"}  # the keywords of losses that choose one
RATIO_GATE = (
    "a ratio gate is f(u, temperature) and returns Gated(log_f, slope), two arrays of u's shape"
)


def function_problems(config: ConfigDict, known: list[str]) -> list[str]:
    """Ask loss, gate and advantage about their keywords with abstract arrays, computing nothing.

    A component that breaks a rule already is not asked: its answer would be the same problem.
    """
    shapes = ((3,), (3, 2), (3, 2, 4))  # B, K and T differ, so that a mistaken axis shows
    row, pair, tokens = (_abstract(shape, jnp.float32) for shape in shapes)
    fields: dict[str, Any] = dict.fromkeys(Batch._fields, tokens)
    fields |= dict.fromkeys(("win_rate", "target", "advantage"), pair)
    fields |= dict.fromkeys(("p_win", "similarity", "weight"), row)
    for name, shape in (("prompt", (3, 5)), ("prompt_length", (3,)), ("completion", (3, 2, 4))):
        fields[name] = _abstract(shape, jnp.int32)
    problems = _call_problems(config) + _ratio_gate_problems(config, tokens)
    questions = (
        ("loss", config.loss, LOSSES, (Policy(tokens, tokens), Batch(**fields))),
        ("pairs.gate", config.pairs.gate, GATES, (row,)),
        ("advantage", config.advantage, ADVANTAGES, (pair,)),
    )
    for path, node, table, arrays in questions:
        if any(problem.startswith((f"{path}.", f"{path}=")) for problem in [*known, *problems]):
            continue
        try:
            made: Any = jax.eval_shape(cfg.bind(table, node), *arrays)
        except (Exception, SystemExit) as error:
            own = cfg.OWN.fullmatch(node.name)
            if own is None and not isinstance(error, (ConfigError, ValueError)):
                raise
            told = str(error)
            if own is not None and not isinstance(error, ConfigError):
                said = str(error).partition("\n")[0]  # JAX goes on about its tracers
                told = f"{cfg.place_of(error, own['file'])}{type(error).__name__}: {said}"
            problems.append(f"{path}={node.name}: {told}{_advice(path, error)}")
            continue
        if path == "loss":
            problems += _loss_problems(node.name, made)
        elif _shape_of(made) != _shape_of(arrays[0]):
            problems.append(
                f"{path}={node.name}: for an array of shape {_shape_of(arrays[0])} it returns"
                f" {_named(made)}; {CALLS[path][1]}"
            )
    return problems


def _call_problems(config: ConfigDict) -> list[str]:
    """List the functions of a user's own that do not take the arguments they will be given."""
    problems, flat = [], cfg.flatten(config)
    for c in COMPONENTS:
        name = flat[f"{c.path}.name"]
        if c.path not in CALLS or not cfg.OWN.fullmatch(name):
            continue
        count, contract = CALLS[c.path]
        signature = inspect.signature(c.table[name])
        try:
            signature.bind(*[None] * count)
        except TypeError:
            problems.append(
                f"{c.path}={name}: it takes {signature}; {contract.replace('NAME', name)}"
            )
    return problems


def _own_ratio_gates(config: ConfigDict) -> Iterator[tuple[str, Callable]]:
    """Yield the gates on token ratios that are not the package's: what chooses one, and itself."""
    for key in RATIO_GATE_KEYS & set(config.loss):
        name = config.loss[key]
        gate = RATIO_GATES.get(name)
        if gate is not None and not getattr(gate, "__module__", "").startswith("ssppo_jax."):
            yield f"loss.{key}={name}", gate


def _ratio_gate_problems(config: ConfigDict, tokens: jax.ShapeDtypeStruct) -> list[str]:
    """List what is wrong with a gate on token ratios of a user's own, computing nothing."""
    problems = []
    for key in RATIO_GATE_KEYS & set(config.loss):
        try:
            RATIO_GATES.enter(config.loss[key])  # a file that changed is read again
            cfg.entry(RATIO_GATES, config.loss[key])
        except ConfigError as error:
            problems.append(f"loss.{key}={config.loss[key]}: {error}")
    for path, gate in _own_ratio_gates(config):
        try:
            made: Any = jax.eval_shape(gate, tokens, tokens)
        except Exception as error:  # whatever a user's function can raise
            said = str(error).partition("\n")[0]
            code = getattr(inspect.unwrap(gate), "__code__", None)
            place = cfg.place_of(error, code.co_filename) if code else ""
            told = f"{place}{type(error).__name__}: {said}{_advice('', error)}"
            problems.append(f"{path}: {told}; {RATIO_GATE}")
            continue
        if not isinstance(made, Gated):
            problems.append(f"{path}: it returns {_named(made)}; {RATIO_GATE}")
        elif wrong := {_shape_of(x) for x in made} - {tokens.shape}:
            problems.append(
                f"{path}: for an array of shape {tokens.shape} it returns one of shape"
                f" {wrong.pop()}; {RATIO_GATE}"
            )
    return problems


def ratio_gate_problems(config: ConfigDict) -> list[str]:
    """Name a log-ratio at which a gate of a user's own is not finite."""
    problems = []
    u = np.linspace(-30, 30, 601, dtype=np.float32)
    for path, gate in _own_ratio_gates(config):
        made = gate(jnp.asarray(u), jnp.full_like(u, 10.0))
        log_f, slope = np.asarray(made.log_f), np.asarray(made.slope)
        wrong = ~(np.isfinite(log_f) & np.isfinite(slope))
        if wrong.any():
            at = np.flatnonzero(wrong)[0]
            problems.append(
                f"{path}: at u = {u[at]:.1f} and temperature 10 it gives log_f = {log_f[at]:.3g}"
                f" and slope = {slope[at]:.3g}; both must be finite for any u"
            )
    return problems


def gate_problems(config: ConfigDict) -> list[str]:
    """Name a similarity at which a gate of a user's own turns a verdict around or leaves [0, 1]."""
    name = config.pairs.gate.name
    if not cfg.OWN.fullmatch(name):
        return []
    similarity = np.linspace(-1, 1, 201, dtype=np.float32)  # a NumPy array, as in a run
    try:
        with np.errstate(all="ignore"):
            factor = np.asarray(cfg.bind(GATES, config.pairs.gate)(similarity))
    except Exception as error:
        place = cfg.place_of(error, name.rpartition(":")[0])
        return [f"pairs.gate={name}: {place}{type(error).__name__} on a NumPy array: {error}"]
    right = np.isfinite(factor) & (factor >= 0) & ((factor <= 1) | (similarity < 0))
    if right.all():
        return []
    return [
        f"pairs.gate={name}: at a similarity of {similarity[~right][-1]:.2f} it gives"
        f" {factor[~right][-1]:.3g}; a gate gives 0 (a tie) to 1 (the verdict as it is), and for"
        " similarities from -1 to 0 no negative number"
    ]


def _advice(path: str, error: BaseException) -> str:
    """Return what helps with a mistake that JAX or NumPy tells in its own words."""
    jax_only = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)
    branches = "truth value" in str(error) or "Only scalar arrays" in str(error)
    if branches or isinstance(error, jax_only):
        return "; use jax.numpy, and jnp.where in place of if"
    if isinstance(error, AttributeError) and path == "loss":
        which, record = ("policy", Policy) if "'Policy'" in str(error) else ("batch", Batch)
        return f"; a {which} has {', '.join(record._fields)}"
    return ""


def _shape_of(made: Any) -> Any:
    return getattr(made, "shape", None)


def _named(made: Any) -> str:
    """Return what an abstract result is called in a message."""
    shape = _shape_of(made)
    return f"a {type(made).__name__}" if shape is None else f"an array of shape {shape}"


def _loss_problems(name: str, made: Any) -> list[str]:
    """List what is wrong with an abstract result of a loss."""
    if not _is_loss(made):
        return [
            f"loss={name}: it returns {_named(made)}; a loss returns (Mean, {{name: Mean}}), as"
            " sum_terms of ssppo_jax.losses.core does"
        ]
    wrong = {key: x for key, x in made[1].items() if not isinstance(x, (Mean, Max, Min))}
    if wrong:
        return [
            f"loss={name}: its metric {key!r} is {_named(x)}; a metric is a Mean, Max or Min, as"
            " weighted_mean of ssppo_jax.losses.core returns"
            for key, x in wrong.items()
        ]
    if wide := {leaf.shape for leaf in jax.tree.leaves(made) if leaf.shape}:
        return [f"loss={name}: its totals and weights must be scalars, and one has shape {wide}"]
    return []


def _is_loss(made: Any) -> bool:
    return (
        isinstance(made, tuple)
        and len(made) == 2
        and isinstance(made[0], Mean)
        and isinstance(made[1], dict)
    )


def _abstract(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return an array without values, which stands for one while a function is traced."""
    return jax.ShapeDtypeStruct(shape, dtype)
