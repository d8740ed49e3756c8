"""A second implementation of probes that shares only the weights.

A NumPy decoder encodes whole texts from position 0 in float64, without cache,
groups or chunks, and scores all answers. The estimators follow docs/method.md.
"""

import dataclasses
import functools

import continuations
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from iapo_jax.config.model import ModelConfig
from iapo_jax.core.types import Array, Params
from iapo_jax.data import pipeline
from iapo_jax.models import head, transformer

_BATCHES = (512, 8192)  # texts encoded at a time: for few texts or many


@functools.partial(jax.jit, static_argnames="cfg")
def _log_distributions(
    params: Params, tokens: Array, cfg: ModelConfig
) -> Array:
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden, _ = transformer.extend(params, tokens, positions, cfg=cfg)
  return jax.nn.log_softmax(head.logits(params, hidden, cfg=cfg))


def log_distributions(
    params: Params, tokens: np.ndarray, cfg: ModelConfig
) -> np.ndarray:
  """Returns log π after every token of texts: int[n, x] -> float64[n, x, v]."""
  size = _BATCHES[len(tokens) > 2 * _BATCHES[0]]
  found = []
  for start in range(0, len(tokens), size):
    part = tokens[start : start + size]
    filled = np.pad(part, ((0, size - len(part)), (0, 0)))
    found.append(
        np.asarray(_log_distributions(params, filled, cfg))[: len(part)]
    )
  return np.concatenate(found).astype(np.float64)


def _rms_norm(x: np.ndarray, norm: Params, cfg: ModelConfig) -> np.ndarray:
  size = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + cfg.norm_eps)
  return x / size * norm["scale"]


def _rotated(x: np.ndarray, cfg: ModelConfig) -> np.ndarray:
  """Rotates pairs (i, i + h / 2) of [n, x, heads, h] by their position."""
  half = cfg.head_dim // 2
  speed = cfg.rope.theta ** (-np.arange(half) / half)
  angle = (np.arange(x.shape[1])[:, None] * speed)[:, None]
  a, b = x[..., :half], x[..., half:]
  turned = a * np.cos(angle) - b * np.sin(angle)
  return np.concatenate(
      [turned, a * np.sin(angle) + b * np.cos(angle)], axis=-1
  )


def _attended(layer: Params, x: np.ndarray, cfg: ModelConfig) -> np.ndarray:
  q, k, v = (
      np.tensordot(x, layer[f"{name}_kernel"], axes=1) for name in "qkv"
  )
  shared = cfg.num_heads // cfg.num_kv_heads
  k, v = (np.repeat(y, shared, axis=2) for y in (_rotated(k, cfg), v))
  scores = np.einsum("bqnh,bknh->bnqk", _rotated(q, cfg), k)
  scores /= np.sqrt(cfg.head_dim)
  later = np.triu(np.ones(scores.shape[-2:], bool), 1)
  weights = special.softmax(np.where(later, -np.inf, scores), axis=-1)
  mixed = np.einsum("bnqk,bknh->bqnh", weights, v)
  return np.tensordot(mixed, layer["o_kernel"], axes=2)


def decoded(
    params: Params, tokens: np.ndarray, cfg: ModelConfig
) -> np.ndarray:
  """Returns log π in NumPy's float64: int[n, x] -> [n, x, v].

  Covers the decoders of this study: pre-norm, no biases, windows or caps.
  """
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = params["embedding"][tokens]
  for index in range(cfg.num_layers):
    layer = jax.tree.map(lambda y, i=index: y[i], params["layers"])
    normed = _rms_norm(x, layer["attention_norm"], cfg)
    x = x + _attended(layer["attention"], normed, cfg)
    normed = _rms_norm(x, layer["mlp_norm"], cfg)
    mlp = layer["mlp"]
    gate = normed @ mlp["gate_kernel"]
    up = normed @ mlp["up_kernel"]
    x = x + (gate * special.expit(gate) * up) @ mlp["down_kernel"]
  x = _rms_norm(x, params["final_norm"], cfg)
  table = params["embedding" if cfg.tie_embeddings else "head"]
  return special.log_softmax(x @ table.T, axis=-1)


@dataclasses.dataclass(frozen=True)
class Elicited:
  """The answers of a policy that must answer at once, after n texts.

  Attributes:
    first: float64[n, v], log-probabilities of an answer's first token.
    second: float64[n, v, v], log-probabilities of its second token after each
      first one; None if answers have one token.
  """

  first: np.ndarray
  second: np.ndarray | None

  @property
  def first_entropy(self) -> np.ndarray:
    """The entropy of the first token: float64[n]."""
    return continuations.entropy(np.exp(self.first))

  @property
  def entropy(self) -> np.ndarray:
    """The entropy of whole answers: float64[n]."""
    if self.second is None:
      return self.first_entropy
    later = continuations.entropy(np.exp(self.second))
    return self.first_entropy + np.sum(np.exp(self.first) * later, axis=1)

  def log_chance(self, answer: tuple[int, ...]) -> np.ndarray:
    """Returns log π of an answer's tokens: float64[n]; 0 for no answer."""
    found = np.zeros(len(self.first))
    if answer:
      found = found + self.first[:, answer[0]]
    if answer[1:]:
      found = found + self.second[:, answer[0], answer[1]]
    return found

  def along(self, answer: tuple[int, ...]) -> np.ndarray:
    """Returns Σ_j H(a_j | a_<j) of an answer: float64[n]."""
    found = np.zeros(len(self.first))
    if answer:
      found = found + self.first_entropy
    if answer[1:]:
      found = found + continuations.entropy(np.exp(self.second[:, answer[0]]))
    return found

  def chance_of(
      self, answers: list[tuple[int, ...]], close: int
  ) -> np.ndarray:
    """Returns π of whole answers: float64[n, a]; `close` ends short ones."""
    columns = []
    for answer in answers:
      column = np.exp(self.log_chance(answer)) * bool(answer)
      if self.second is not None and len(answer) == 1:
        column = column * np.exp(self.second[:, answer[0], close])
      columns.append(column)
    return np.stack(columns, axis=1)


def elicited_of(
    params: Params,
    texts: list[tuple[int, ...]],
    elicitation: tuple[int, ...],
    answer_tokens: int,
    cfg: ModelConfig,
) -> Elicited:
  """Asks for the answer after every text, which includes the prompt."""
  firsts = [(i,) for i in range(cfg.vocab_size)]
  questions = [
      (*text, *elicitation, *first)
      for text in texts
      for first in (firsts if answer_tokens == 2 else [()])
  ]
  lengths = np.array([len(question) for question in questions])
  # Padding after a question does not change its scores.
  padded, _ = pipeline.right_pad(questions, max(lengths), 0)
  logp = np.concatenate([
      decoded(params, padded[start : start + _BATCHES[0]], cfg)
      for start in range(0, len(padded), _BATCHES[0])
  ])
  rows, last = np.arange(len(questions)), lengths - 1
  if answer_tokens == 1:
    return Elicited(logp[rows, last], None)
  shape = (len(texts), cfg.vocab_size, cfg.vocab_size)
  return Elicited(
      logp[rows, last - 1].reshape(shape)[:, 0],
      logp[rows, last].reshape(shape),
  )


def first_layer(params: Params, cfg: ModelConfig) -> tuple[Params, ModelConfig]:
  """Returns the decoder cut to its first layer."""
  layers = jax.tree.map(lambda x: x[:1], params["layers"])
  return params | {"layers": layers}, dataclasses.replace(cfg, num_layers=1)


def uncertainties(
    whole: Elicited, shallow: Elicited, gold: tuple[int, ...], own: tuple
) -> dict[str, np.ndarray]:
  """Returns U[n] of every estimator, as docs/method.md defines it."""
  return {
      "entropy": whole.first_entropy,
      "gold": -whole.log_chance(gold),
      "own": -whole.log_chance(own),
      "answer_entropy": whole.along(own),
      "stride 2": whole.first_entropy,
      "sentences": whole.first_entropy,
      "one layer": shallow.first_entropy,
  }


def probed(name: str, tokens: np.ndarray, ends: tuple[int, ...]) -> np.ndarray:
  """Returns the probed positions of a reasoning int[R], for interpolation."""
  last = len(tokens)
  inner = range(1, last)
  if name == "stride 2":
    inner = range(2, last, 2)
  if name == "sentences":
    inner = 1 + np.flatnonzero(np.isin(tokens[: last - 1], ends))
  return np.unique([0, *inner, last])
