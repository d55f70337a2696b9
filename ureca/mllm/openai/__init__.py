"""Any OpenAI-compatible chat endpoint that sees images: a vLLM or SGLang server, ray.serve.llm, hosted models.

``engine`` is the chat model; it sends what ``messages`` writes by ``transport``, to one of ``endpoints``, each of which
has an adaptive limit (``concurrency``) and rests when it fails (``backoff``).
"""
