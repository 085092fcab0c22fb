"""An endpoint as OpenAI's chat completions, whose models are the library's documents."""
