"""Chat models that see images: the protocol, structured answers, and the engines behind it."""
