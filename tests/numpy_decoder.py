"""An independent decoder in NumPy, one sequence and one loop at a time.

Written from the architecture's definition, in float64, sharing nothing with
the code under test but the names of the weights.
"""

import numpy as np


def _rms_norm(x, scale, eps):
  return x / np.sqrt(np.mean(x**2) + eps) * scale


def _rotate(vector, position, theta):
  """Rotates pairs (i, i + h/2) by position · theta^(−2i/h)."""
  half = len(vector) // 2
  rotated = np.empty_like(vector)
  for i in range(half):
    angle = position * theta ** (-2.0 * i / len(vector))
    a, b = vector[i], vector[i + half]
    rotated[i] = a * np.cos(angle) - b * np.sin(angle)
    rotated[i + half] = b * np.cos(angle) + a * np.sin(angle)
  return rotated


def _attend(layer, x, cfg):
  """Causal attention of normalised states x [t, d]; returns [t, d]."""

  def project(name, position, norm):
    y = np.einsum("d,dnh->nh", x[position], layer[f"{name}_kernel"])
    if cfg.qkv_bias:
      y = y + layer[f"{name}_bias"]
    if norm and cfg.qk_norm == "head":
      scale = layer[f"{name}_norm"]["scale"]
      y = np.stack([_rms_norm(head, scale, cfg.norm_eps) for head in y])
    if norm:
      y = np.stack([_rotate(head, position, cfg.rope.theta) for head in y])
    return y

  times = range(len(x))
  queries = [project("q", i, True) for i in times]
  keys = [project("k", i, True) for i in times]
  values = [project("v", i, False) for i in times]
  shared = cfg.num_heads // cfg.num_kv_heads
  outputs = []
  for i in times:
    output = np.zeros(cfg.d_model)
    for head in range(cfg.num_heads):
      kv = head // shared
      scores = np.array([
          queries[i][head] @ keys[j][kv] / np.sqrt(cfg.head_dim)
          for j in range(i + 1)
      ])
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      mixed = sum(w * values[j][kv] for j, w in enumerate(weights))
      output += mixed @ layer["o_kernel"][head]
    outputs.append(output)
  return np.stack(outputs)


def _mlp(layer, x):
  gate = x @ layer["gate_kernel"]
  return (gate / (1 + np.exp(-gate)) * (x @ layer["up_kernel"])) @ layer[
      "down_kernel"
  ]


def log_distributions(params, tokens, cfg):
  """log π(next token) after each of `tokens` [t]: float64[t, v]."""

  def double(tree):
    if isinstance(tree, dict):
      return {name: double(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)

  def layer_of(tree, index):
    if isinstance(tree, dict):
      return {name: layer_of(value, index) for name, value in tree.items()}
    return tree[index]

  params = double(params)
  x = params["embedding"][np.asarray(tokens)]
  for index in range(cfg.num_layers):
    layer = layer_of(params["layers"], index)
    scale = layer["attention_norm"]["scale"]
    normed = np.stack([_rms_norm(row, scale, cfg.norm_eps) for row in x])
    x = x + _attend(layer["attention"], normed, cfg)
    scale = layer["mlp_norm"]["scale"]
    normed = np.stack([_rms_norm(row, scale, cfg.norm_eps) for row in x])
    x = x + _mlp(layer["mlp"], normed)
  scale = params["final_norm"]["scale"]
  x = np.stack([_rms_norm(row, scale, cfg.norm_eps) for row in x])
  table = params["embedding" if cfg.tie_embeddings else "head"]
  logits = x @ table.T
  logits -= logits.max(axis=1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
