"""Processes of a service, by role."""

import psutil

CAPTIONER, INGRESS, SEGMENTER = (f"ServeReplica:ureca:{part}" for part in ("captioner", "ingress", "segmenter"))
PROXY = "ProxyActor"


def processes(parent: psutil.Process, role: str) -> list[psutil.Process]:
    """Return the descendants of a process with a role, oldest first."""
    found = []
    for process in parent.children(recursive=True):
        try:
            if role in " ".join(process.cmdline()):
                found.append((process.create_time(), process))
        except psutil.NoSuchProcess:
            continue
    return [process for _, process in sorted(found, key=lambda item: item[0])]
