"""The science of SmartRAG: data, prompts, episodes, rewards, advantages, losses, evaluation. No machines in here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the project: conf/ and models/ lie there
