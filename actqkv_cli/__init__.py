"""actqkv: read a long document once, keep the key-value cache on disk, ask it questions for ever after."""

__version__ = "0.1.0"
