"""The machines of SmartRAG: Ray actors that hold an engine and call `smartrag` functions. `.remote` never leaves this package."""
