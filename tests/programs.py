"""What must not be in a compiled step, and how it would be found."""

import math
import re

import jax

from iapo_jax.tools import collectives


def decoding_gathers(text, params, tensor):
  """All-gathers of weights in the decode loop.

  Weights are told from activations by how many numbers they have: all, one
  layer, and of either a tensor shard.

  Args:
    text: of a compiled program.
    params: shapes of the weights, those of `layers` stacked.
    tensor: shards of heads, MLP and vocabulary.
  """
  sizes = set()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    stacked = "layers" in jax.tree_util.keystr(path)
    if leaf.ndim - stacked < 2:
      continue  # norms and biases are on every device
    whole = {math.prod(leaf.shape)}
    if stacked:
      whole.add(math.prod(leaf.shape[1:]))
    sizes |= whole | {size // tensor for size in whole}
  return [
      moved
      for moved in collectives.transfers(text, lambda _: 1)
      if "rollout/while" in moved.scope and moved.kind == "all-gather"
      if any(math.prod(shape) in sizes for _, shape in moved.result)
  ]


def of_the_vocabulary(text, vocab, tensor, positions):
  """Shapes with an axis for the vocabulary, and `positions` times that.

  Args:
    text: of a compiled program.
    vocab: v.
    tensor: shards of the vocabulary.
    positions: too many of them to have scores at one time.
  """
  return [
      shape
      for shape in _shapes(text)
      for size in {vocab, vocab // tensor} & set(shape)
      if math.prod(shape) // size >= positions
  ]


def largest(text):
  """Numbers in the largest array of a compiled program."""
  return max(map(math.prod, _shapes(text)))


def _shapes(text):
  """Shapes of all arrays of a compiled program that have an axis."""
  found = re.findall(r"\b[a-z]\w*\[([\d,]+)\]", text)
  return {tuple(map(int, dims.split(","))) for dims in set(found)}
