"""A GRPO step of TRL, in its own trainer's loop.

  python trl_worker.py JOB.json

Settings beyond the job's, each the fastest that the trainer offers on a CPU:
the whole batch in one micro-batch (four are no faster), no gradient
checkpointing, float32, the attention and the optimizer that PyTorch fuses, no
padding, no dataloader processes, nothing logged or saved. Generation is
transformers' own, as vLLM needs an accelerator; a static cache and continuous
batching were measured to be slower, compilation by PyTorch no faster. `old`
log-probabilities are not computed, for the trainer knows that one update
follows each rollout.

The clock runs from `on_step_begin` to `on_step_end`: prompts are fetched
before that, which takes it no time. What it calls the update begins when the
rollout is scored.
"""

import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import protocol
import torch
import transformers
import trl


class Turns(transformers.TrainerCallback):
  """Lets one step run whenever one is asked for."""

  def __init__(self, session: protocol.Session) -> None:
    """Keeps the session; `watch` gives it the trainer."""
    self._session = session
    self._facts: dict[str, Any] = {}

  def watch(self, trainer: trl.GRPOTrainer) -> None:
    """Times the trainer's own methods, and notes what they return."""
    session, facts = self._session, self._facts
    generate = session.timed("generation", trainer._generate)
    score = trainer._get_per_token_logps_and_entropies
    timed_score = session.timed("scoring", score)
    finish, train = trainer._prepare_inputs, trainer.training_step
    clip = trainer.accelerator.clip_grad_norm_

    def generated(prompts: list[str]) -> tuple:
      found = generate(prompts)
      facts["prompts"], facts["completions"] = found[:2]
      return found

    def scored(*args: Any, **kwargs: Any) -> tuple:
      chosen = score if torch.is_grad_enabled() else timed_score
      return chosen(*args, **kwargs)

    def finished(batch: Any) -> Any:
      found = finish(batch)
      session.enter("update")
      return found

    def trained(*args: Any) -> torch.Tensor:
      facts["loss"] = train(*args)
      return facts["loss"]

    def clipped(*args: Any, **kwargs: Any) -> torch.Tensor:
      facts["grad_norm"] = clip(*args, **kwargs)
      return facts["grad_norm"]

    trainer._generate = generated
    trainer._get_per_token_logps_and_entropies = scored
    trainer._prepare_inputs = finished
    trainer.training_step = trained
    trainer.accelerator.clip_grad_norm_ = clipped

  def on_step_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
    """Waits until a step is asked for; ends the process when none is."""
    weight = model.get_input_embeddings().weight
    self._facts["before"] = weight.detach().clone()
    if not self._session.wait():
      raise SystemExit
    self._session.start()

  def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
    """Answers with the step's figures."""
    self._session.stop()
    facts = self._facts
    after = model.get_input_embeddings().weight.detach()
    self._session.answer(
        **self._session.seconds,
        **protocol.counted(facts["prompts"], facts["completions"]),
        loss=float(facts["loss"]),
        grad_norm=float(facts["grad_norm"]),
        moved=float((after - facts["before"]).abs().max()),
    )


def config(job: dict[str, Any], folder: pathlib.Path) -> trl.GRPOConfig:
  """The trainer's settings; nothing is written to the folder it asks for."""
  batch = job["prompts_per_step"] * job["group_size"]
  return trl.GRPOConfig(
      output_dir=str(folder),
      use_cpu=True,
      bf16=False,
      seed=job["seed"],
      per_device_train_batch_size=batch,
      gradient_accumulation_steps=1,
      num_generations=job["group_size"],
      max_completion_length=job["new_tokens"],
      temperature=1.0,
      top_p=1.0,
      top_k=0,
      beta=job["kl_weight"],
      loss_type="grpo",
      learning_rate=job["learning_rate"],
      lr_scheduler_type="constant",
      optim="adamw_torch_fused",
      max_grad_norm=1.0,
      max_steps=job["steps"],
      gradient_checkpointing=False,
      shuffle_dataset=False,
      dataloader_num_workers=0,
      dataloader_pin_memory=False,
      logging_strategy="no",
      save_strategy="no",
      report_to=[],
      disable_tqdm=True,
      model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
  )


def main() -> None:
  """Makes the trainer and runs its loop."""
  session = protocol.Session()
  job = protocol.load_job(sys.argv[1])
  torch.set_num_threads(job["threads"])
  turns = Turns(session)
  texts = [protocol.as_text(ids) for ids in job["prompts"]]

  def reward(completions: list[str], **kwargs: Any) -> list[float]:
    return [protocol.reward(text) for text in completions]

  checkpoint = job["checkpoint"]
  trainer = trl.GRPOTrainer(
      model=checkpoint,
      args=config(job, pathlib.Path(sys.argv[1]).parent / "trl"),
      reward_funcs=reward,
      train_dataset=datasets.Dataset.from_dict({"prompt": texts}),
      processing_class=transformers.PreTrainedTokenizerFast.from_pretrained(
          checkpoint
      ),
      callbacks=[turns],
  )
  turns.watch(trainer)
  session.answer(
      versions={
          "trl": trl.__version__,
          "torch": torch.__version__,
          "transformers": transformers.__version__,
      },
      weights=sum(p.numel() for p in trainer.model.parameters()),
      threads=torch.get_num_threads(),
  )
  trainer.train()


if __name__ == "__main__":
  main()
