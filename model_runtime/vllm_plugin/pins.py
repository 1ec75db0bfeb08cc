"""Placeholder for now."""


def check_vllm() -> None:
    """Nothing yet."""
