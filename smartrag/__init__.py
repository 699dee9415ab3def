"""The science of SmartRAG: data, prompts, episodes, rewards, advantages, losses, evaluation. No machines in here."""
