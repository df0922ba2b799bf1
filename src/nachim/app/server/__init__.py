"""Text over HTTP: an engine behind the interface that OpenAI's clients speak."""
