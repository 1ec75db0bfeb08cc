"""Kills a running job at random, over and over, while somebody reads its table: `python -m tests.chaos --rounds 20`."""
