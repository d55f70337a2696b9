"""vLLM's asynchronous engine in this process: ``engine`` is the chat model."""
