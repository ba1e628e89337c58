"""Servers that run as long as they are measured."""
import contextlib
import os
import socket
import subprocess
import tempfile
import time
import urllib.request


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(command, name):
    """Its address and process, once it is ready."""
    port = free_port()
    log = open(os.path.join(tempfile.gettempdir(), f"measured-{name}.log"), "w")
    process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"{name} ended at once; see {log.name}")
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{url}/health").status == 200:
                    break
            time.sleep(0.2)
        yield url, process
    finally:
        process.terminate()
        process.wait()
