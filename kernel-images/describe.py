"""Prints the runtime.json of an image whose kernels speak these languages: `describe.py python bash`."""

from __future__ import annotations

import json
import sys

KERNEL = "/opt/llmsafespace/kernel/bin"
HOME = "/home/sandbox"
CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
PROXY = "http://127.0.0.1:3128"  # the agent's, on the sandbox's own loopback


def runtime(languages: list[str]) -> dict[str, object]:
    """What `ImageRuntime` of llmsafespace_protocol has; the first language is the default."""
    python = f"{KERNEL}/python"
    version = "{}.{}".format(*sys.version_info)
    return {
        "kernels": [
            {"language": language, "argv": [python], "displayName": language.capitalize(), "template": True}
            for language in languages
        ],
        "packageManager": [python, "-m", "pip", "install", "--no-input", "--progress-bar", "off"],
        "env": {
            "HOME": HOME,
            "USER": "sandbox",
            "LOGNAME": "sandbox",
            "SHELL": "/bin/bash",
            "PATH": f"{HOME}/.local/bin:{KERNEL}:/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "TMPDIR": "/tmp",  # noqa: S108  # the sandbox's own
            "PIP_CONFIG_FILE": "/opt/llmsafespace/pip.conf",
            **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), CA_FILE),
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), PROXY),
            **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1"),
        },
        # Python looks for the user's packages only where the folder is there when it starts.
        "folders": [f"{HOME}/.local/bin", f"{HOME}/.local/lib/python{version}/site-packages"],
    }


if __name__ == "__main__":
    print(json.dumps(runtime(sys.argv[1:]), indent=2))
