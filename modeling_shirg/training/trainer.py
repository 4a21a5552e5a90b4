"""Fine-tuning with transformers' Trainer: what is changed of it, and nothing else.

- Rows are read in order, because the data set shuffles itself; what does not fill an optimizer step waits for another
  epoch.
- The loss is the mean over the answer tokens of the whole optimizer step, however they are spread over devices and
  accumulated batches.
- The validation loss is the mean over all answer tokens.
- Module groups have learning rates of their own.
- A gradient that is not finite ends the training before it reaches a weight.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback
from transformers.utils import logging

from modeling_shirg.objective_shirg import IGNORED, token_losses
from modeling_shirg.training.footprints import GROUPS, check_trainable, group_of
from modeling_shirg.training.trainer_arguments import ShirgTrainingArguments

logger = logging.get_logger(__name__)


class ShirgTrainer(Trainer):
    """Trainer of one LoRA footprint.

    Args:
        model: with an adapter; see footprints.py.
        args: the recipe.
        rows: `TrainingRows`.
        collator: makes batches of them and of the validation rows.
        validation_rows: rows of the validation loss; `None` for none.
        callbacks: others than the trainer's own.

    Raises:
        ValueError: something outside the footprint would be trained, or there are too few rows.
    """

    # The loss is a mean over the whole step already.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PeftModel,
        args: ShirgTrainingArguments,
        rows: Dataset,
        collator: Callable,
        validation_rows: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        check_trainable(model)
        check_rows(rows, args)
        own = [EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else []
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=rows,
            eval_dataset=validation_rows,
            compute_metrics=mean_loss,
            callbacks=[*own, *(callbacks or [])],
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        """The places of whole optimizer steps, in the order of the rows."""
        batch = self.args.effective_batch_size
        return SequentialSampler(range(len(self.train_dataset) // batch * batch))

    def _run_epoch(self, **epoch: Any) -> None:
        """The Trainer's, but a run that was killed after its last step was saved does not take another (5.23 does)."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**epoch)
        else:
            self.control.should_training_stop = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ):
        """This batch's part of the mean over the step: the sum of all parts is the mean.

        Devices average their gradients, so each part counts as often as there are devices.
        """
        outputs = model(**inputs)
        share = self.num_items(inputs) / num_items_in_batch * self.accelerator.num_processes
        loss = outputs.loss * share
        return (loss, outputs) if return_outputs else loss

    def num_items(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the model's loss is a mean over, a number: answer tokens, or rows where each row weighs alike."""
        labels = inputs["labels"]
        if self.model.config.loss_weighting != "none":
            return torch.tensor(len(labels), device=labels.device)
        return answer_tokens(labels, self.model.config.infill_token_id).sum()

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device):
        items = torch.stack([self.num_items(batch).to(device) for batch in batch_samples]).sum()
        return self.accelerator.gather(items).sum()

    def prediction_step(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args, **kwargs):
        """The sum of the losses of each row's answer tokens, and their number; no loss of the batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            sums_B, counts_B = self.row_losses(model(**inputs), inputs)
        return None, sums_B, counts_B

    def row_losses(self, outputs: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row the sum of its losses and how many there are, (B,) each."""
        masked_2BL = outputs.masked_positions
        losses_2BL = torch.zeros(masked_2BL.shape, device=masked_2BL.device)
        losses_2BL[masked_2BL] = token_losses(outputs.logits, inputs["labels"], masked_2BL)
        return losses_2BL.sum(-1).unflatten(0, (2, -1)).sum(0), masked_2BL.sum(-1).unflatten(0, (2, -1)).sum(0)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The configured optimizer, with a group for each module group, with and without weight decay."""
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = optimizer_groups(model, self.get_decay_parameter_names(model), self.args)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        """The gradient's norm, the same on every device, after checking it. float16 skips bad steps by itself."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None and not math.isfinite(norm):
            raise ValueError(
                f"Step {self.state.global_step + 1}: the gradient is {float(norm)}, so training stops before it "
                f"reaches a weight. Checkpoints in {self.args.output_dir}, if there are any, are from before; `shirg "
                f"push {self.args.output_dir} REPO_ID --checkpoint NAME` publishes one. Lower the learning rate, or "
                "look for bad values in the data."
            )
        return norm


def check_rows(rows: Dataset, args: ShirgTrainingArguments) -> None:
    """Warns if the warm-up is all there is; a `ValueError` if there are too few rows for a step."""
    per_epoch = len(rows) // args.effective_batch_size
    if per_epoch == 0:
        raise ValueError(
            f"There are {len(rows)} training rows, one optimizer step takes effective_batch_size="
            f"{args.effective_batch_size}: lower it, or give more data."
        )
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    if steps <= args.warmup_steps:
        logger.warning(
            f"The run has {steps} steps and warmup_steps={args.warmup_steps}: the learning rate is never at its peak."
        )


def answer_tokens(labels_BL: torch.LongTensor, infill_token_id: int | None) -> torch.BoolTensor:
    """Which positions are predicted, each once per step by complementary masks, bool (B, L)."""
    targets_BL = labels_BL != IGNORED
    return targets_BL if infill_token_id is None else targets_BL & (labels_BL != infill_token_id)


def optimizer_groups(model: nn.Module, decayed: list[str], args: ShirgTrainingArguments) -> list[dict[str, Any]]:
    """Parameter groups: each module group's learning rate, weight decay on the names in `decayed`."""
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault((group_of(name), name in decayed), []).append(parameter)
    return [
        {
            "params": members[group, decay],
            "lr": args.learning_rates[group],
            "weight_decay": args.weight_decay if decay else 0.0,
        }
        for group in GROUPS
        for decay in (True, False)
        if (group, decay) in members
    ]


def mean_loss(prediction: EvalPrediction) -> dict[str, float]:
    """The mean over all answer tokens, from each row's sum and number."""
    sums, counts = (np.asarray(each, dtype=np.float64) for each in (prediction.predictions, prediction.label_ids))
    return {"loss": float(sums.sum() / counts.sum())}
