"""Training rows for tests of the trainer: a handful of images with questions, in the interface of mixture.py."""

import numpy as np
import torch
from torch.utils.data import Dataset

from tiny_model import chat, noise_image


class TinyRows(Dataset):
    """`count` rows in an order that seed and epoch decide."""

    def __init__(self, count: int, seed: int = 0, fixed: bool = False):
        self.count, self.seed, self.fixed = count, seed, fixed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(0 if self.fixed else epoch)

    def __getitem__(self, position: int) -> dict:
        epoch = int(self.epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        row = position if self.fixed else int(order[position])
        return {"row": row, "epoch": epoch, "position": position}


class TinyCollator:
    """Encodes rows one by one and pads them on the right; every draw is keyed by (seed, epoch, row)."""

    def __init__(self, processor, seed: int = 0, token_dropout: float = 0.0, answers=("red", "a blue star")):
        self.processor, self.seed, self.token_dropout, self.answers = processor, seed, token_dropout, answers

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        rows = [self._encoded(**item) for item in items]
        padding = {"input_ids": 257, "labels": -100, "attention_mask": 0, "mask_noise": 1.0, "question_mask": 0}
        longest = max(row["input_ids"].shape[1] for row in rows)
        return {
            name: torch.cat(
                [
                    torch.nn.functional.pad(row[name], (0, longest - row[name].shape[1]), value=padding[name])
                    if name in padding
                    else row[name]
                    for row in rows
                ]
            )
            for name in rows[0]
        }

    def _encoded(self, row: int, epoch: int, position: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, epoch, row, 5])
        conversation = chat(f"What is {row}?", noise_image(row))
        start = len(self._ids(conversation, add_generation_prompt=True)["input_ids"][0])
        answer = {"role": "assistant", "content": self.answers[row % len(self.answers)]}
        inputs = self._ids([*conversation, answer])
        length = inputs["input_ids"].shape[1]
        inputs["labels"] = inputs["input_ids"].clone()
        inputs["labels"][:, :start] = -100
        inputs["diffusion_time"] = torch.tensor([rng.random()], dtype=torch.float32)
        inputs["mask_noise"] = torch.from_numpy(rng.random((1, length), dtype=np.float32))
        if self.token_dropout:
            budget = self.processor.image_processor.selection_budget
            inputs["dropped_tokens"] = torch.from_numpy(rng.random((1, budget)) < self.token_dropout)
        return dict(inputs)

    def _ids(self, messages: list[dict], **options):
        return self.processor.apply_chat_template(
            [messages], tokenize=True, return_dict=True, return_tensors="pt", **options
        )
