"""What vLLM's worker tells of the model, in whichever process it lives."""

from __future__ import annotations

from typing import Any

EXTENSION = f"{__name__}.T5Gemma2Worker"


class T5Gemma2Worker:
    """Mixed into vLLM's worker class: `collective_rpc("t5gemma2_counts")` calls the method below."""

    model_runner: Any

    def t5gemma2_counts(self) -> dict[str, float]:
        """What was encoded since the model was loaded: see encode.Counts."""
        return self.model_runner.get_model().counted()
