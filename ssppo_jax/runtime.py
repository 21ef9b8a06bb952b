"""Build what a run needs from its config: mesh, model, tokenizer, parameters and jitted sampler."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssppo_jax.config import bind
from ssppo_jax.data.chat import eos_ids
from ssppo_jax.distributed import hosts
from ssppo_jax.distributed.mesh import (
    AXES,
    Constrain,
    abstract,
    batch_ways,
    make_mesh,
    mesh_shape,
    replicated,
    sampling_mesh,
    shard_bytes,
)
from ssppo_jax.errors import ConfigError
from ssppo_jax.losses import LOSSES, ROWS
from ssppo_jax.losses.sft import with_sft
from ssppo_jax.models.arch import Arch
from ssppo_jax.models.decoder import Decoder, init_params
from ssppo_jax.models.int8 import quantized
from ssppo_jax.models.lora import Lora, join, split
from ssppo_jax.models.masks import layer_kinds
from ssppo_jax.models.policy import Apply, make_apply
from ssppo_jax.optimizer import make_run_optimizer
from ssppo_jax.runs.throughput import device_memory
from ssppo_jax.sampling.choose import SamplingParams
from ssppo_jax.sampling.sampler import CompiledSampler, Sampler
from ssppo_jax.sampling.slots import Slot, slot_of, slots_that_fit
from ssppo_jax.steps import abstract_state
from ssppo_jax.types import PyTree, TrainState
from ssppo_jax.weights import hf
from ssppo_jax.weights.source import load_tokenizer, resolve

# Streams of random keys, folded into the run's key first.
ROLLOUT, EVALUATION, ADAPTERS, DROPOUT, ROUNDING = range(5)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Hold a model on a mesh, with everything needed to sample from it and to score completions."""

    config: ConfigDict
    folder: Path  # of the initial policy
    mesh: Mesh
    arch: Arch
    decoder: Decoder
    tokenizer: Any
    eos: tuple[int, ...]

    @property
    def param_dtype(self):
        return jnp.dtype(self.config.model.param_dtype)

    @functools.cached_property
    def abstract_params(self) -> PyTree:
        """Return shapes, dtypes and shardings of the parameters."""
        shapes = jax.eval_shape(lambda: init_params(self.decoder, jax.random.key(0)))
        return abstract(self.mesh, shapes)

    @functools.cached_property
    def sampling_mesh(self) -> Mesh:
        """Return the mesh that sampling cuts the same devices into (`sampling.mesh`)."""
        return sampling_mesh(self.mesh, self.config.sampling.mesh.to_dict())

    @functools.cached_property
    def abstract_sampling_params(self) -> PyTree:
        """Return shapes, dtypes and shardings of the parameters as the sampler reads them."""
        shapes = jax.eval_shape(self._as_sampled, self.abstract_params)
        return abstract(self.sampling_mesh, shapes)

    def _as_sampled(self, params: PyTree) -> PyTree:
        """Return parameters in the dtype of sampling."""
        name = self.config.sampling.param_dtype
        if name == "int8":
            return quantized(params, self.decoder.dtype)
        dtype = self.param_dtype if name == "model" else jnp.dtype(name)
        return jax.tree.map(lambda x: x.astype(dtype), params)

    @functools.cached_property
    def relay(self) -> Callable[[PyTree], PyTree] | None:
        """Return the program that casts and moves parameters for sampling; None if none is needed.

        Sampling reads every weight once a token, so weights that are cut by `fsdp` would be
        gathered once a token. The program runs once per sampling phase, and its result is dropped
        after the phase."""
        if self.abstract_sampling_params == self.abstract_params:
            return None
        placed = jax.tree.map(lambda s: s.sharding, self.abstract_sampling_params)
        return jax.jit(self._as_sampled, out_shardings=placed)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Return the configured optimizer."""
        return make_run_optimizer(self.config, self.key(ROUNDING))

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Return the training state's shapes; it stays on the devices in every phase."""
        return abstract_state(self.mesh, self.parted(self.abstract_params)[1], self.optimizer)

    @property
    def beside_sampling(self) -> int:
        """Return the bytes that a device holds while it samples, besides what sampling reads."""
        held = shard_bytes(self.abstract_state.opt_state)
        return held if self.relay is None else held + shard_bytes(self.abstract_params)

    @property
    def cache_dtype(self):
        """Return the dtype of the keys and values that sampling keeps."""
        name = self.config.sampling.cache_dtype
        return jnp.dtype(self.decoder.dtype if name == "model" else name)

    def slot(self, num_samples: int, new: int = 0) -> Slot:
        """Count the bytes of a prompt at its widest and its K completions on one device.

        A completion has `new` tokens; 0: sampling.max_new_tokens.
        """
        return slot_of(
            self.arch,
            prompt=self.config.data.prompt_buckets[-1],
            new=new or self.config.sampling.max_new_tokens,
            samples=num_samples,
            tensor=self.sampling_mesh.shape["tensor"],
            itemsize=self.cache_dtype.itemsize,
            chunk=self.config.model.attention_chunk,
        )

    def slots(self, num_samples: int, policies: int = 1, new: int = 0) -> int:
        """Return the prompts sampled at one time: sampling.batch_size, or 0 for what fits.

        Process 0 counts, so that all processes agree.

        Raises:
          ConfigError: nothing fits, or the device does not say its memory.
        """
        if self.config.sampling.batch_size:
            return self.config.sampling.batch_size
        room = hosts.on_first(lambda: device_memory(self.mesh.devices.flat[0]))
        held = self.beside_sampling + policies * shard_bytes(self.abstract_sampling_params)
        ways = batch_ways(self.sampling_mesh.axis_sizes)
        slot = self.slot(num_samples, new)
        return slots_that_fit(slot, room=room, held=held, ways=ways, policies=policies)

    def for_sampling(self, params: PyTree) -> PyTree:
        """Return parameters in the layout of sampling; of a tuple of policies, each of them."""
        if self.relay is None:
            return params
        return tuple(map(self.relay, params)) if isinstance(params, tuple) else self.relay(params)

    def load_params(self, folder: Path | None = None) -> PyTree:
        """Load a model folder's parameters (the initial policy's by default), each leaf into its
        sharding.

        With lora.rank, fresh adapters come with them; they change nothing yet.
        """
        own = hf.load_placed(folder or self.folder, self.arch, self.abstract_params)
        return own if self.decoder.lora is None else join(own, self.fresh_adapters())

    def fresh_adapters(self) -> PyTree:
        """Return new adapters in their shardings: the same ones at every call."""
        return self._make_adapters(self.key(ADAPTERS))

    @functools.cached_property
    def _make_adapters(self) -> Callable:
        wanted = split(self.abstract_params)[1]
        placed = jax.tree.map(lambda s: s.sharding, wanted)
        return jax.jit(lambda key: split(init_params(self.decoder, key))[1], out_shardings=placed)

    def parted(self, params: PyTree) -> tuple[PyTree | None, PyTree]:
        """Split parameters into (frozen, trained): with lora.rank only the adapters are trained."""
        return (None, params) if self.decoder.lora is None else split(params)

    @functools.cached_property
    def loss(self) -> Callable:
        """Return the configured loss with its keywords bound: loss(policy, batch)."""
        loss, weight = bind(LOSSES, self.config.loss), self.config.loss.sft_weight
        return with_sft(loss, weight) if weight else loss

    def make_apply(self) -> Apply:
        model = self.config.model
        return make_apply(
            self.decoder,
            logprob_chunk=model.logprob_chunk,
            temperature=logprob_temperature(self.config),
            repulsion_pooling=self.config.loss.repulsion_pooling,
            repulsion_layer=self.config.loss.repulsion_layer,
        )

    def make_sampler(
        self,
        *,
        num_samples: int,
        sampling: SamplingParams,
        weights: tuple[float, ...] = (1.0,),
        first_sample: int = 0,
        slots: int = 0,
    ) -> CompiledSampler:
        """Compile a sampler; slots that are handed on are donated.

        With several `weights`, `params` is a tuple of as many policies and their geometric mixture
        is sampled. `slots` is the number of prompts in place of `Runtime.slots`."""
        sampler = Sampler(
            decoder=self.decoder.clone(
                remat="none",
                unroll=self.config.model.decode_unroll,
                constrain=Constrain(self.sampling_mesh),
            ),
            cache_dtype=self.cache_dtype,
            num_samples=num_samples,
            eos_ids=self.eos,
            pad_id=self.eos[0],
            sampling=sampling,
            weights=weights,
            first_sample=first_sample,
        )
        return CompiledSampler(
            slots or self.slots(num_samples, len(weights), sampling.max_new_tokens),
            jax.jit(sampler.start),
            jax.jit(sampler.run, donate_argnums=1),
            jax.jit(sampler.refill, donate_argnums=1),
            jax.jit(sampler.look, out_shardings=replicated(self.sampling_mesh)),  # whole everywhere
            jax.jit(sampler.step, donate_argnums=1),
        )

    def key(self, stream: int, index: int = 0):
        """Return the random key of one purpose: fold_in(fold_in(key(seed), stream), index)."""
        return jax.random.fold_in(
            jax.random.fold_in(jax.random.key(self.config.seed), stream), index
        )


def with_source(config: ConfigDict, source: str) -> ConfigDict:
    """Return a copy of a config with another `model.source`."""
    own = config.copy_and_resolve_references()
    own.model.source = source
    return own


def build_runtime(config: ConfigDict) -> Runtime:
    """Build mesh, tokenizer and model of a checked config; load no parameters yet.

    Raises:
      ConfigError: a model that does not load.
    """
    shape = mesh_shape({axis: config.mesh[axis] for axis in AXES}, jax.device_count())
    mesh = make_mesh(shape)
    folder = resolve(config.model.source)
    arch = hf.read_arch(folder)
    if arch.num_labels:
        raise ConfigError(
            f"model.source={config.model.source!r} is a reward model ({arch.family.classifier}),"
            " not a language model; use it as an oracle: --config.oracle.name=reward_model"
            " --config.oracle.source=..."
        )
    tokenizer = load_tokenizer(folder, vocab_size=arch.vocab_size)
    decoder = make_decoder(config, arch, mesh)
    ends = eos_ids(tokenizer, arch.eos_ids)
    return Runtime(config, folder, mesh, arch, decoder, tokenizer, ends)


def make_decoder(config: ConfigDict, arch: Arch, mesh: Mesh) -> Decoder:
    """Make the configured model on a mesh.

    Raises:
      ConfigError: adapters that fit no projection, an attention kernel or remat that cannot run
        here, or responses that reach beyond the model's positions.
    """
    platform = mesh.devices.flat[0].platform
    problem = attention_problem(config, arch, platform)
    if problem:
        raise ConfigError(f"model.attention={config.model.attention}: {problem}")
    longest = config.data.max_prompt_length + longest_response(config)
    if longest > arch.reach:
        own = config.eval.max_new_tokens > config.sampling.max_new_tokens
        raise ConfigError(
            f"data.max_prompt_length={config.data.max_prompt_length} and"
            f" {'eval' if own else 'sampling'}.max_new_tokens={longest_response(config)}"
            f" make {longest} positions, and the model reads"
            f" {arch.reach} (max_position_embeddings in its config.json); lower one of them, or"
            " take a model with a longer context"
        )
    if config.model.remat == "offload" and platform == "cpu":
        raise ConfigError(
            "model.remat=offload: a CPU's memory is the host's; set dots, none or full"
        )
    decoder = Decoder(
        arch,
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.dtype(config.model.param_dtype),
        remat=config.model.remat,
        constrain=Constrain(mesh),
        lora=lora_of(config),
        attention=config.model.attention,
        attention_chunk=config.model.attention_chunk,
    )
    if decoder.lora is not None:
        _check_targets(decoder, decoder.lora.targets)
    return decoder


def attention_problem(config: ConfigDict, arch: Arch, platform: str) -> str | None:
    """Say why the configured attention cannot run this model on such devices; None if it can."""
    how = config.model.attention
    if how == "splash" and platform != "tpu":
        return (
            f"is a TPU kernel, and these devices are {platform}; set einsum, or cudnn on an"
            " NVIDIA GPU"
        )
    if how == "cudnn" and platform not in ("gpu", "cuda"):
        return (
            f"runs on NVIDIA GPUs, and these devices are {platform}; set einsum, or splash on a TPU"
        )
    if how == "cudnn" and config.model.dtype != "bfloat16":
        return (
            f"computes in 16 bits; set model.dtype=bfloat16 (it is {config.model.dtype}), or einsum"
        )
    if how in ("xla", "cudnn") and arch.attn_softcap is not None:
        return f"has no soft cap, which {arch.model_type} needs; set einsum"
    longest = config.data.prompt_buckets[-1] + longest_response(config)
    if how == "splash" and layer_kinds(arch, longest) is not None:
        return (
            f"has no sliding windows, and {arch.model_type}'s could bind within {longest} tokens;"
            " set einsum"
        )
    return None


def lora_of(config: ConfigDict) -> Lora | None:
    """Return the configured adapters; None at rank 0."""
    c = config.lora
    return Lora(c.rank, float(c.alpha), float(c.dropout), c.targets) if c.rank else None


def _check_targets(decoder: Decoder, targets: str) -> None:
    shapes = jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))
    if not split(shapes)[1]:
        kernels = [
            path.removesuffix("/kernel")
            for path, _ in hf.flatten(shapes["layers"])
            if path.endswith("kernel")
        ]
        raise ConfigError(
            f"lora.targets={targets!r} is found in no projection of this model; they"
            " are " + ", ".join(f"layers/{path}" for path in kernels)
        )


def logprob_temperature(config: ConfigDict) -> float:
    """Return what divides the logits of the log-probs that are trained on.

    It is the sampler's temperature for a group loss, whose ratio is then that of the distribution
    sampled from, and 1 for the others.
    """
    group = ROWS.get(config.loss.name) == "group"
    shared = group and config.group.logprob_temperature == "sampling"
    return config.sampling.temperature if shared else 1.0


def rollout_params(config: ConfigDict) -> SamplingParams:
    """Return the settings of rollouts: the trainer computes the log-probs that they record."""
    return dataclasses.replace(
        sampling_params(config), logp_temperature=logprob_temperature(config)
    )


def evaluation_params(config: ConfigDict) -> SamplingParams:
    """Return the settings of evaluations: the config's sampling settings where `eval` has none."""
    own = config.eval
    return dataclasses.replace(
        sampling_params(config),
        temperature=own.temperature,
        top_p=own.top_p or config.sampling.top_p,
        max_new_tokens=own.max_new_tokens or config.sampling.max_new_tokens,
    )


def longest_response(config: ConfigDict) -> int:
    """Return the most tokens of a response, in training or in an evaluation."""
    return max(config.sampling.max_new_tokens, config.eval.max_new_tokens)


def sampling_params(config: ConfigDict, *, temperature: float | None = None) -> SamplingParams:
    """Return the config's sampling settings, at another temperature if one is given."""
    s = config.sampling
    return SamplingParams(
        temperature=s.temperature if temperature is None else temperature,
        top_k=s.top_k,
        top_p=s.top_p,
        min_p=s.min_p,
        max_new_tokens=s.max_new_tokens,
    )
