"""SASRec: a causal transformer over item ids (Kang and McAuley, arXiv 1808.09781), with transformers' GPT-2 blocks.

RecTools' SASRec needs numpy below 2 on Python 3.11, which nothing else here needs, so the blocks come from
transformers. The loss is cross-entropy over all items, not one sampled negative: the stronger form of this baseline.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from igd_core.errors import InputError
from igd_core.evaluation.sasrec_settings import SASRecSettings
from igd_core.progress import progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from transformers import GPT2Model

    from igd_core.ids import ItemIndex

_IGNORED = -100
_SCORE_BATCH = 256


class SASRec:
    """A trained model.

    Attributes:
        model: the blocks; its input embeddings score items too.
        settings: its sizes.
        held_out: windows of item rows that it was not trained on; its epoch was chosen by them.
    """

    adds_up = False

    def __init__(self, model: GPT2Model, settings: SASRecSettings, held_out: list[list[int]]) -> None:
        self.model = model
        self.settings = settings
        self.held_out = held_out

    @staticmethod
    def train(
        sequences: Sequence[NDArray[np.int32]],
        *,
        num_items: int,
        seed: int,
        scratch: Path | None = None,
        settings: SASRecSettings | None = None,
    ) -> SASRec:
        """Train until the loss on one sequence in twenty stops falling, and keep the best epoch.

        Args:
            sequences: what each user chose, oldest first.
            num_items: of the catalogue.
            seed: of initial weights, batches and dropout.
            scratch: folder in which the loss by epoch is written as sasrec.json; None writes nothing.
            settings: None for the defaults.

        Raises:
            InputError: fewer than two sequences of two items.
        """
        import torch
        from transformers import GPT2Config, GPT2Model

        settings = settings or SASRecSettings()
        usable = [sequence for sequence in sequences if len(sequence) >= 2]
        if len(usable) < 2:
            raise InputError(f"sasrec: {len(usable)} training sequences of two items or more; 2 are needed")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = GPT2Config(
                vocab_size=num_items,
                n_positions=settings.length,
                n_embd=settings.width,
                n_layer=settings.layers,
                n_head=settings.heads,
                embd_pdrop=settings.dropout,
                attn_pdrop=settings.dropout,
                resid_pdrop=settings.dropout,
                use_cache=False,
                bos_token_id=None,  # GPT-2's own id would be outside the items
                eos_token_id=None,
            )
            model = GPT2Model(config)
            torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
            trainer = _Trainer(model, settings, seed)
            losses = trainer.fit(usable)
        if scratch is not None:
            import json

            (scratch / "sasrec.json").write_text(json.dumps({"validation_loss": losses}) + "\n", encoding="utf-8")
        return SASRec(model.eval(), settings, trainer.held_out)

    def scores(self, histories: Sequence[Sequence[ItemIndex]]) -> NDArray[np.float64]:
        """Logits of the next item, for each item; all equal after an empty history."""
        import torch

        result = np.zeros((len(histories), int(self.model.config.vocab_size)))
        filled = [row for row, history in enumerate(histories) if history]
        length = self.settings.length
        for first in range(0, len(filled), _SCORE_BATCH):
            rows = filled[first : first + _SCORE_BATCH]
            windows = [list(histories[row])[-length:] for row in rows]
            with torch.inference_mode():
                ids = _padded(windows, 0).to(self.model.device)
                hidden = self.model(input_ids=ids).last_hidden_state
                last = torch.tensor([len(window) - 1 for window in windows], device=ids.device)
                logits = hidden[torch.arange(len(rows), device=ids.device), last] @ self.model.wte.weight.T
            result[rows] = logits.double().cpu().numpy()
        return result


class _Trainer:
    def __init__(self, model: GPT2Model, settings: SASRecSettings, seed: int) -> None:
        import torch

        self._model = model
        self._settings = settings
        self._rng = np.random.default_rng(seed)
        self.held_out: list[list[int]] = []
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)

    def fit(self, sequences: Sequence[NDArray[np.int32]]) -> list[float]:
        """Train, and return the validation loss by epoch; the model keeps the weights of the best epoch."""
        order = self._rng.permutation(len(sequences))
        held_out = max(1, len(sequences) // 20)
        self.held_out = valid = self._windows([sequences[i] for i in order[:held_out]])
        train = self._windows([sequences[i] for i in order[held_out:]])
        losses: list[float] = []
        best: dict[str, Any] = {}
        for _ in (bar := progress(range(self._settings.epochs), desc="sasrec", unit="epoch")):
            self._model.train()
            self._rng.shuffle(train)
            for first in range(0, len(train), self._settings.batch):
                self._optimizer.zero_grad()
                self._loss(train[first : first + self._settings.batch]).backward()
                self._optimizer.step()
            losses.append(self._validate(valid))
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
            if losses[-1] == min(losses):
                best = copy.deepcopy(self._model.state_dict())
            elif len(losses) - 1 - int(np.argmin(losses)) >= self._settings.patience:
                break
        self._model.load_state_dict(best)
        return losses

    def _windows(self, sequences: Sequence[NDArray[np.int32]]) -> list[list[int]]:
        """Pieces of ``length + 1`` items that overlap by one, counted from the end of each sequence."""
        windows = []
        for sequence in sequences:
            end = len(sequence)
            while end > 1:
                windows.append(sequence[max(0, end - self._settings.length - 1) : end].tolist())
                end -= self._settings.length
        return windows

    def _loss(self, windows: list[list[int]]) -> torch.Tensor:
        import torch

        device = self._model.device
        ids = _padded([window[:-1] for window in windows], 0).to(device)
        labels = _padded([window[1:] for window in windows], _IGNORED).to(device)
        hidden = self._model(input_ids=ids).last_hidden_state
        wanted = labels != _IGNORED
        return torch.nn.functional.cross_entropy(hidden[wanted] @ self._model.wte.weight.T, labels[wanted])

    def _validate(self, windows: list[list[int]]) -> float:
        import torch

        self._model.eval()
        total = count = 0.0
        with torch.inference_mode():
            for first in range(0, len(windows), self._settings.batch):
                part = windows[first : first + self._settings.batch]
                targets = sum(len(window) - 1 for window in part)
                total += float(self._loss(part)) * targets
                count += targets
        return total / count


def _padded(windows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """Pad windows to ``(windows, longest)`` int64 at the end, where a causal model does not look."""
    import torch

    longest = max(map(len, windows))
    return torch.tensor([[*window, *[filler] * (longest - len(window))] for window in windows])
