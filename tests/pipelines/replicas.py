"""The processes of a service."""

import psutil

CAPTIONER, INGRESS, SEGMENTER = (f"ServeReplica:ureca:{part}" for part in ("captioner", "ingress", "segmenter"))
PROXY = "ProxyActor"


def processes(parent: psutil.Process, role: str) -> list[psutil.Process]:
    """Those of a role that are below a process, in the order in which they began."""
    found = []
    for process in parent.children(recursive=True):
        try:
            if role in " ".join(process.cmdline()):
                found.append((process.create_time(), process))
        except psutil.NoSuchProcess:
            continue
    return [process for _, process in sorted(found, key=lambda item: item[0])]
