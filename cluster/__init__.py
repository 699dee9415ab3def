"""The machines of SmartRAG: Ray actors that hold an engine and call `smartrag`. `.remote` never leaves this package."""
