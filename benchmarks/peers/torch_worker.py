"""`generate` of transformers and a plain update in PyTorch, part by part.

  python torch_worker.py JOB.json

The decoder is transformers' own, with random weights of the job's shapes and
the attention that PyTorch fuses (`sdpa`). Generation has weights in the compute
dtype and runs twice, for which is faster depends on the shapes: with a cache
that grows, and with a static one, for which transformers compiles the decoder
on an accelerator. Scoring is a forward pass with such weights. The update is
mixed precision as ours: master weights, gradients and AdamW's moments (fused)
in float32, products in the compute dtype under autocast; GRPO's loss with a KL
penalty, behind a gradient clip. It is not compiled.

Of micro-batches and gradient checkpointing it takes the first that has room:
no checkpointing, then with it, each from large to small micro-batches.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import protocol
import torch
import transformers
from torch.nn import functional

# Of timed calls, after which no further one is begun.
_ENOUGH_SECONDS = 30.0
_MOST_ROWS = 64


class Part:
  """The phases of a part, as they are measured.

  Attributes:
    phases: the figures of each.
  """

  def __init__(self, job: dict[str, Any]) -> None:
    """Puts the prompts on the device; there is no model yet."""
    self.phases: dict[str, dict[str, Any]] = {}
    self._job = job
    self._cuda = torch.cuda.is_available() and not job["rehearsal"]
    self._device = torch.device("cuda" if self._cuda else "cpu")
    self._dtype = getattr(torch, job["dtype"])
    prompts = torch.tensor(protocol.batch_of(job, 0), device=self._device)
    self._prompts = prompts.repeat_interleave(job["group_size"], dim=0)

  def device_name(self) -> str:
    """What it runs on."""
    return torch.cuda.get_device_name() if self._cuda else "cpu"

  def generation(self, cache: str) -> dict[str, Any]:
    """Samples with a `dynamic` or `static` cache; what the last rollout was."""
    model = self._model(self._dtype).eval()
    model.generation_config.eos_token_id = None  # nothing ends a completion
    found: dict[str, torch.Tensor] = {}

    def generate() -> None:
      found.clear()
      found["tokens"] = model.generate(
          self._prompts,
          attention_mask=torch.ones_like(self._prompts),
          do_sample=True,
          temperature=1.0,
          top_p=1.0,
          top_k=0,
          max_new_tokens=self._job["new_tokens"],
          pad_token_id=0,
          cache_implementation=cache,
      )

    self._try("generation", generate)
    if not found:
      return {}
    begin = self._prompts.shape[1]
    tokens = found["tokens"].tolist()
    return protocol.counted(
        (row[:begin] for row in tokens), (row[begin:] for row in tokens)
    )

  def scoring(self) -> dict[str, Any]:
    """Log-probabilities of made-up completions; nothing else to tell."""
    model, tokens = self._model(self._dtype).eval(), self._tokens()

    @torch.no_grad()
    def score(rows: int) -> None:
      for part in tokens.split(rows):
        self._logprobs(model, part)

    for rows in self._sizes():
      if self._try("scoring", lambda rows=rows: score(rows), rows=rows):
        break
    return {}

  def update(self) -> dict[str, Any]:
    """Loss, gradient and optimizer, on made-up completions."""
    model = self._model(torch.float32).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=self._job["learning_rate"],
        betas=(0.9, 0.99),
        weight_decay=0.0,
        fused=True,
    )
    batch = self._batch()
    before = model.model.norm.weight.detach().clone()
    found: dict[str, Any] = {}
    for stored in (True, False):
      if not stored:
        model.gradient_checkpointing_enable({"use_reentrant": False})
      for rows in self._sizes():

        def learn(rows: int = rows) -> None:
          found.update(self._learn(model, optimizer, batch, rows))

        settings = {"rows": rows, "checkpointing": not stored}
        if self._try("update", learn, **settings):
          moved = (model.model.norm.weight.detach() - before).abs().max()
          found["moved"] = moved
          return {name: float(value) for name, value in found.items()}
        optimizer.zero_grad(set_to_none=True)
    return {}

  def _learn(
      self,
      model: transformers.PreTrainedModel,
      optimizer: torch.optim.Optimizer,
      batch: tuple[torch.Tensor, ...],
      rows: int,
  ) -> dict[str, torch.Tensor]:
    """One update from (tokens, reference log-probabilities, advantages)."""
    count, loss = batch[1].numel(), 0.0
    optimizer.zero_grad(set_to_none=True)
    for tokens, reference, advantages in zip(
        *(x.split(rows) for x in batch), strict=True
    ):
      with torch.autocast(
          self._device.type, self._dtype, self._dtype != torch.float32
      ):
        logprobs = self._logprobs(model, tokens)
      ratio = torch.exp(logprobs - logprobs.detach())
      surrogate = -torch.minimum(
          ratio * advantages, ratio.clamp(0.8, 1.28) * advantages
      )
      delta = reference - logprobs
      divergence = torch.expm1(delta) - delta
      per_token = surrogate + self._job["kl_weight"] * divergence
      part = per_token.sum() / count
      part.backward()
      loss += part.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return {"loss": loss, "grad_norm": norm}

  def _logprobs(
      self, model: transformers.PreTrainedModel, tokens: torch.Tensor
  ) -> torch.Tensor:
    """fp32[b, t] of the completions in int64[b, p + t]."""
    new = self._job["new_tokens"]
    logits = model(
        input_ids=tokens, logits_to_keep=new + 1, use_cache=False
    ).logits[:, :-1]
    targets = tokens[:, -new:]
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none"
    )
    return -loss.view_as(targets)

  def _model(self, dtype: torch.dtype) -> transformers.PreTrainedModel:
    torch.manual_seed(self._job["seed"])
    config = transformers.AutoConfig.from_pretrained(self._job["config"])
    with self._device:
      return transformers.AutoModelForCausalLM.from_config(
          config, dtype=dtype, attn_implementation="sdpa"
      )

  def _tokens(self) -> torch.Tensor:
    """int64[b, p + t]: the prompts with any completions."""
    vocabulary = self._job["eos_id"]
    shape = (self._prompts.shape[0], self._job["new_tokens"])
    made_up = torch.randint(vocabulary, shape, device=self._device)
    return torch.cat([self._prompts, made_up], dim=1)

  def _batch(self) -> tuple[torch.Tensor, ...]:
    tokens = self._tokens()
    shape = (tokens.shape[0], self._job["new_tokens"])
    uniform = torch.tensor(1 / self._job["eos_id"], device=self._device)
    return (
        tokens,
        uniform.log().expand(shape),
        torch.randn(shape, device=self._device),
    )

  def _sizes(self) -> Iterator[int]:
    """Sequences of a micro-batch, from many to few."""
    rows = min(_MOST_ROWS, self._prompts.shape[0])
    while rows:
      yield rows
      rows //= 2

  def _try(
      self, phase: str, call: Callable[[], None], **settings: Any
  ) -> bool:
    """Measures a phase, where there is room for it."""
    if self._cuda:
      torch.cuda.empty_cache()
      torch.cuda.reset_peak_memory_stats()
    print(f"{phase} {settings}", file=sys.stderr)
    try:
      found = self._timed(call)
    except torch.OutOfMemoryError:
      self.phases[phase] = {"out_of_memory": True} | settings
      return False
    peak = torch.cuda.max_memory_allocated() if self._cuda else None
    self.phases[phase] = found | settings | {"peak_bytes": peak}
    return True

  def _timed(self, call: Callable[[], None]) -> dict[str, float]:
    """Seconds of some calls, after one that does not count."""
    seconds: list[float] = []
    while len(seconds) <= self._job["rounds"]:
      begin = time.perf_counter()
      call()
      if self._cuda:
        torch.cuda.synchronize()
      seconds.append(time.perf_counter() - begin)
      if sum(seconds[1:]) > _ENOUGH_SECONDS:
        break
    first, *seconds = seconds
    return {
        "seconds": statistics.median(seconds),
        "min_seconds": min(seconds),
        "max_seconds": max(seconds),
        "first_seconds": first,
        "calls": len(seconds),
    }


def main() -> None:
  """Answers once."""
  session = protocol.Session()
  job = protocol.load_job(sys.argv[1])
  part = Part(job)
  measure = {
      "generation": lambda: part.generation("dynamic"),
      "static_generation": lambda: part.generation("static"),
      "scoring": part.scoring,
      "update": part.update,
  }[job["part"]]
  found = measure()
  session.answer(
      phases=part.phases,
      found=found,
      versions={
          "torch": torch.__version__,
          "transformers": transformers.__version__,
      },
      device=part.device_name(),
  )


if __name__ == "__main__":
  main()
