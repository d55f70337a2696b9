"""A chat model of any family that transformers knows, in this process.

``engine`` is the chat model; ``batching`` forms batches of the requests that wait, ``local_model`` prepares and answers
them, each token drawn by ``drawing``.
"""
