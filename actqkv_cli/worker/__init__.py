"""The resident worker, which keeps a model loaded between questions, and the thin client that talks to it."""
