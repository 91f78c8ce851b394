"""fetch.py on sockets as Java makes them: of family AF_INET6 also for IPv4, so that connect sees ::ffff:169.254.170.23.

The SDK is unmodified and dials 169.254.170.23; only the resolver's answer has the other form.
"""

import pathlib
import runpy
import socket

resolve = socket.getaddrinfo


def mapped(host, port, family=0, type=0, proto=0, flags=0):
    if host == "169.254.170.23":
        # A literal too: no name server is asked.
        return resolve(f"::ffff:{host}", port, socket.AF_INET6, type, proto, flags)
    return resolve(host, port, family, type, proto, flags)


socket.getaddrinfo = mapped
runpy.run_path(str(pathlib.Path(__file__).with_name("fetch.py")), run_name="__main__")
